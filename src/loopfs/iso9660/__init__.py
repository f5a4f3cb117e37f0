"""ISO 9660, with Rock Ridge, Joliet, zisofs and High Sierra, read as by the kernel's isofs.

``options``, ``descriptor`` (which finds the root directory), ``record`` (directory records),
``names``, ``joliet``, ``rock`` (SUSP and Rock Ridge), ``dates`` and ``zisofs`` encode and decode;
``inode`` is a file as these describe it, ``volume`` finds inodes and directories on a device,
``filesystem`` implements the operations for a FUSE server.

Sources: ECMA-119, IEEE P1281 (SUSP) and P1282 (RRIP), the Joliet Specification (Microsoft, 1995),
Documentation/filesystems/isofs.rst and zisofs.rst.
"""
