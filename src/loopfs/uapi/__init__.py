"""Structures, numbers and flags of the kernel's user-space interface.

There is one module for each header; none does I/O or depends on loopfs.
"""
