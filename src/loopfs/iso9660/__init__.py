"""ISO 9660, with Rock Ridge, Joliet, zisofs and High Sierra, read as the kernel's isofs does.

``options``, ``descriptor`` (which root directory), ``record`` (directory records), ``names``,
``joliet``, ``rock`` (SUSP and Rock Ridge), ``dates`` and ``zisofs`` take and return bytes;
``inode`` is a file as these describe it, ``volume`` finds inodes and directories on a device,
``filesystem`` is what a FUSE server asks.

Sources: ECMA-119, IEEE P1281 (SUSP) and P1282 (RRIP), the Joliet Specification (Microsoft, 1995),
Documentation/filesystems/isofs.rst and zisofs.rst.
"""
