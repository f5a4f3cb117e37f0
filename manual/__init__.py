"""Make the files that the wheel installs in share/: manual pages, and completions of shells.

Made from :mod:`loopfs.cli.usage` by ``python3 -m manual``; tests/cli/test_manual.py compares.
"""
