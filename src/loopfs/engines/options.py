"""Options of the kernel's drivers that have no effect in an engine.

They control how a driver allocates, caches, checks or reports, so an engine accepts and ignores
them. Options that would show another filesystem, such as an offset, another journal or another
superblock, are not listed here: an engine that does not support one refuses it.

From Documentation/admin-guide/ext4.rst, xfs.rst, Documentation/filesystems/*.rst, ext4(5), xfs(5),
btrfs(5), mount(8). "=#" stands for a number, "=*" for any value.
"""

from __future__ import annotations

_EXT = """
debug grpid bsdgroups nogrpid sysvgroups resuid=# resgid=# nouid32 data_err=ignore data_err=abort
nouser_xattr noacl journal_checksum nojournal_checksum journal_async_commit delalloc nodelalloc
max_batch_time=# min_batch_time=# journal_ioprio=# stripe=# inode_readahead_blks=# auto_da_alloc
auto_da_alloc=# noauto_da_alloc dioread_lock dioread_nolock block_validity noblock_validity
discard init_itable init_itable=# noinit_itable i_version nombcache data=journal data=writeback
quota noquota grpquota usrquota prjquota usrjquota=* grpjquota=* jqfmt=vfsold jqfmt=vfsv0
jqfmt=vfsv1 max_dir_size_kb=# oldalloc orlov nolazytime mb_optimize_scan=# prefetch_block_bitmaps
no_prefetch_block_bitmaps warn_on_error nowarn_on_error bh nobh check=none nocheck reservation
noreservation inlinecrypt dax=never dax=inode usrjquota= grpjquota= debug_want_extra_isize=#
"""
_XFS = """
allocsize=* attr2 noattr2 discard nodiscard grpid bsdgroups nogrpid sysvgroups filestreams ikeep
noikeep inode32 inode64 largeio nolargeio logbufs=# logbsize=* noalign norecovery nouuid noquota
quota uquota usrquota uqnoenforce qnoenforce gquota grpquota gqnoenforce pquota prjquota
pqnoenforce sunit=# swidth=# swalloc wsync lifetime nolifetime dax dax=never dax=inode dax=always
"""
_BTRFS = """
acl noacl autodefrag noautodefrag barrier nobarrier clear_cache commit=# compress compress=*
compress-force compress-force=* datacow nodatacow datasum nodatasum degraded discard discard=sync
discard=async nodiscard enospc_debug noenospc_debug fatal_errors=bug fatal_errors=panic
flushoncommit noflushoncommit space_cache space_cache=v1 space_cache=v2 nospace_cache max_inline=*
metadata_ratio=# norecovery nologreplay rescan_uuid_tree rescue=* skip_balance ssd nossd
ssd_spread nossd_spread thread_pool=# treelog notreelog usebackuproot user_subvol_rm_allowed
"""
_EXFAT = """
allow_utime=# iocharset=* discard nodiscard debug namecase=# codepage=# keep_last_dots sys_tz
time_offset=# zero_size_dir
"""
_NTFS = """
noacsrules discard nodiscard nohidden sparse nosparse prealloc noprealloc hide_dot_files
sys_immutable iocharset=* nls=* norecovery big_writes streams_interface=*
"""
# Owners and modes are taken from Rock Ridge if the image has it, as by the kernel's driver.
_ISO9660 = """
check=relaxed check=strict nocompress cruft hide unhide showassoc uid=# gid=# mode=# dmode=#
"""
_SQUASHFS = "errors=continue errors=panic threads=single threads=multi threads=percpu threads=#"
_EROFS = """
user_xattr nouser_xattr acl noacl cache_strategy=disabled cache_strategy=readahead
cache_strategy=readaround
"""

WITHOUT_EFFECT = {
    fstype: frozenset(words.split())
    for fstype, words in {
        **dict.fromkeys(("ext2", "ext3", "ext4"), _EXT),
        "xfs": _XFS,
        "btrfs": _BTRFS,
        "exfat": _EXFAT,
        **dict.fromkeys(("ntfs", "ntfs3"), _NTFS),
        "iso9660": _ISO9660,
        "squashfs": _SQUASHFS,
        "erofs": _EROFS,
    }.items()
}


def is_without_effect(fstype: str, option: str) -> bool:
    """Return whether the driver of a type accepts a mount option that has no effect here."""
    known = WITHOUT_EFFECT.get(fstype, frozenset())
    if "#" in option or "*" in option:
        return False
    key, equals, value = option.partition("=")
    return option in known or (
        bool(equals and value)
        and (f"{key}=*" in known or (value.isdecimal() and f"{key}=#" in known))
    )
