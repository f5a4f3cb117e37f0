"""Structures, numbers and flags of the kernel's user-space interface.

One module for each header; nothing here does I/O or knows of loopfs.
"""
