"""linux/magic.h: the filesystem types of statfs(2)."""

from __future__ import annotations

EXT4_SUPER_MAGIC = 0xEF53
BTRFS_SUPER_MAGIC = 0x9123683E
XFS_SUPER_MAGIC = 0x58465342
F2FS_SUPER_MAGIC = 0xF2F52010
NILFS_SUPER_MAGIC = 0x3434
REISERFS_SUPER_MAGIC = 0x52654973
TMPFS_MAGIC = 0x01021994
RAMFS_MAGIC = 0x858458F6
HUGETLBFS_MAGIC = 0x958458F6
SQUASHFS_MAGIC = 0x73717368
EROFS_SUPER_MAGIC_V1 = 0xE0F5E1E2
ISOFS_SUPER_MAGIC = 0x9660
UDF_SUPER_MAGIC = 0x15013346
MSDOS_SUPER_MAGIC = 0x4D44
EXFAT_SUPER_MAGIC = 0x2011BAB0
PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
FUSE_SUPER_MAGIC = 0x65735546
OVERLAYFS_SUPER_MAGIC = 0x794C7630
LOOPFS_SUPER_MAGIC = 0x6C6F6F71  # patch 2/8
# These are not in a header of user space: fs/ntfs3/super.c, fs/bcachefs, OpenZFS.
_NTFS3, _BCACHEFS, _ZFS = 0x7366746E, 0xCA451A4E, 0x2FC12FC1

# Filesystems that the kernel serves from its memory and local disks, without a process or server.
LOCAL_FILESYSTEMS = frozenset(
    {
        EXT4_SUPER_MAGIC,
        BTRFS_SUPER_MAGIC,
        XFS_SUPER_MAGIC,
        F2FS_SUPER_MAGIC,
        NILFS_SUPER_MAGIC,
        REISERFS_SUPER_MAGIC,
        TMPFS_MAGIC,
        RAMFS_MAGIC,
        HUGETLBFS_MAGIC,
        SQUASHFS_MAGIC,
        EROFS_SUPER_MAGIC_V1,
        ISOFS_SUPER_MAGIC,
        UDF_SUPER_MAGIC,
        MSDOS_SUPER_MAGIC,
        EXFAT_SUPER_MAGIC,
        PROC_SUPER_MAGIC,
        _NTFS3,
        _BCACHEFS,
        _ZFS,
    }
)

# By filesystem type of mount(2), for those that engines serve.
OF_TYPE = {
    **dict.fromkeys(("ext2", "ext3", "ext4"), EXT4_SUPER_MAGIC),
    **dict.fromkeys(("vfat", "msdos"), MSDOS_SUPER_MAGIC),
    **dict.fromkeys(("ntfs", "ntfs3"), _NTFS3),
    "btrfs": BTRFS_SUPER_MAGIC,
    "xfs": XFS_SUPER_MAGIC,
    "squashfs": SQUASHFS_MAGIC,
    "erofs": EROFS_SUPER_MAGIC_V1,
    "iso9660": ISOFS_SUPER_MAGIC,
    "udf": UDF_SUPER_MAGIC,
    "exfat": EXFAT_SUPER_MAGIC,
}
