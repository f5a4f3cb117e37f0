"""The embedded engine: parses filesystems in Python, and serves them through FUSE.

The parsers are those of the dissect project (the extra ``loopfs[engines]``). Each module that is
named after a filesystem converts its parser's objects to those of
:mod:`~loopfs.engines.embedded.volume`. The engine runs in a separate process, so a malicious image
affects only that process.
"""
