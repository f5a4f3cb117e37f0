"""FAT12, FAT16 and FAT32 with long names, read and written by the rules of Linux's fs/fat.

Modules are named after the kernel's: ``boot`` (the boot sector and FSInfo), ``names`` and ``times``
(namei_vfat.c, misc.c) take bytes and return bytes; ``fatent`` is the table, ``cache`` a file's runs
of clusters, ``inode`` a file, ``volume`` all of them, ``dir`` a directory's entries, ``namei`` and
``file`` what is done with them, ``ioctl`` the rest; ``filesystem`` has a method for each operation.
All of it is on a :class:`loopfs.file_device.Device`.

An answered operation has been written to the device: first data, then the table, then the
directory entry; only FSInfo and the dirty bit wait for a sync or the end.
"""
