"""FAT12, FAT16 and FAT32 with long names, read and written as by Linux's fs/fat.

Modules are named after the kernel's files. ``boot`` (the boot sector and FSInfo), ``names`` and
``times`` (namei_vfat.c, misc.c) encode and decode; ``fatent`` is the table, ``cache`` a
file's runs of clusters, ``inode`` a file, ``volume`` a filesystem, ``dir`` the entries of a
directory; ``namei`` and ``file`` implement the operations on these, ``ioctl`` the ioctls;
``filesystem`` has a method for each operation. All of it uses a :class:`loopfs.file_device.Device`.

When an operation is answered it has been written to the device: first data, then the table, then
the directory entry. Only FSInfo and the dirty bit are written by a sync or at the unmount.
"""
