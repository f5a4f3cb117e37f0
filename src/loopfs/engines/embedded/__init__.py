"""The embedded engine: reads filesystems in Python, and serves them through FUSE.

The parsers are those of the dissect project (the extra ``loopfs[engines]``). Each module
named after a filesystem translates its parser's objects to those of
:mod:`~loopfs.engines.embedded.volume`. It runs in a process of its own, so an image that
misleads a parser misleads nobody else.
"""
