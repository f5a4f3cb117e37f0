/*
 * What the system's headers make of every structure, constant and syscall number of
 * loopfs.uapi. Compiled to an object that is never run (see golden.py), so that it can be
 * made for other ABIs without their C library:
 *
 *   x86-64   everything
 *   i386     -m32
 *   aarch64  -DGENERIC: its headers are the generic ones
 *   arm      -m32 -malign-double: i386's structures, with eight-byte members aligned
 *   libc     -DLIBC: constants that only the C library has
 *
 * and by cross compilers for aarch64 and arm, with their own headers and no trick: golden.CROSS
 *
 * The section "numbers" holds constants, "structures" bytes. Every field holds a number of
 * its own, repeated in all its bytes, so that a field of the wrong place or width shows.
 */
#define NUMBER(what) \
	__attribute__((used, aligned(64), section("numbers"))) \
	static const struct { char name[56]; long long value; } n_##what = { #what, what }

#define STRUCT(tag, type, ...) \
	__attribute__((used, aligned(64), section("structures"))) \
	static const struct { \
		char name[60]; \
		unsigned size; \
		union { type value; char room[448]; } u; \
	} s_##tag = { #tag, sizeof(type), { .value = __VA_ARGS__ } }

#define F(n) ((n) * 0x0101010101010101ULL)
#define NSEC(n) ((n) * 1111111)

#ifdef LIBC

#include <sys/mount.h>
NUMBER(MNT_FORCE); NUMBER(MNT_DETACH); NUMBER(MNT_EXPIRE); NUMBER(UMOUNT_NOFOLLOW);

#else

#ifdef GENERIC
#define _ASM_X86_POSIX_TYPES_64_H
#include <asm-generic/posix_types.h>
#include <asm-generic/stat.h>
#define __ARCH_WANT_NEW_STAT
#include <asm-generic/unistd.h>
#else
#include <asm/stat.h>
#include <asm/unistd.h>
#endif

#include <linux/blkpg.h>
#include <linux/loop.h>

STRUCT(blkpg_ioctl_arg, struct blkpg_ioctl_arg, {
	.op = F(1), .flags = F(2), .datalen = F(3), .data = (void *)F(4) });
STRUCT(loop_info, struct loop_info, {
	.lo_number = F(1), .lo_device = F(2), .lo_inode = F(3), .lo_rdevice = F(4),
	.lo_offset = F(5), .lo_encrypt_type = F(6), .lo_encrypt_key_size = F(7),
	.lo_flags = F(8), .lo_name = { [0 ... 63] = 9 }, .lo_encrypt_key = { [0 ... 31] = 10 },
	.lo_init = { F(11), F(12) } });

#define STAT(ino_fields) { \
	.st_dev = F(1), ino_fields, .st_nlink = F(3), .st_mode = F(4), \
	.st_uid = F(5), .st_gid = F(6), .st_rdev = F(7), .st_size = F(8), \
	.st_blksize = 4096, .st_blocks = F(9), \
	.st_atime = F(10), .st_atime_nsec = NSEC(10), \
	.st_mtime = F(11), .st_mtime_nsec = NSEC(11), \
	.st_ctime = F(12), .st_ctime_nsec = NSEC(12) }
#define WIDE_INO .st_ino = F(2)
#define BOTH_INO .__st_ino = F(2), .st_ino = F(2)

#ifdef __LP64__
STRUCT(stat, struct stat, STAT(WIDE_INO));
#else
STRUCT(stat, struct stat64, STAT(BOTH_INO));
#endif

/* Numbers of the ABI; golden.py takes off the "__NR_". arm's are not here to be had. */
#if !defined(__i386__) || !defined(ALIGNED)
NUMBER(__NR_mount); NUMBER(__NR_umount2); NUMBER(__NR_openat); NUMBER(__NR_openat2);
NUMBER(__NR_statx); NUMBER(__NR_open_tree); NUMBER(__NR_move_mount);
NUMBER(__NR_pidfd_getfd); NUMBER(__NR_mount_setattr); NUMBER(__NR_landlock_create_ruleset);
NUMBER(__NR_landlock_restrict_self); NUMBER(__NR_fsopen);
NUMBER(__NR_fsconfig); NUMBER(__NR_fsmount); NUMBER(__NR_fspick);
NUMBER(__NR_fsync); NUMBER(__NR_fdatasync); NUMBER(__NR_sync); NUMBER(__NR_syncfs);
NUMBER(__NR_io_submit); NUMBER(__NR_io_uring_setup);
NUMBER(__NR_ioctl); NUMBER(__NR_mknodat); NUMBER(__NR_socket);
#ifdef __LP64__
NUMBER(__NR_setresuid); NUMBER(__NR_setresgid); NUMBER(__NR_unshare); NUMBER(__NR_setns); NUMBER(__NR_seccomp); NUMBER(__NR_fstat);
NUMBER(__NR_read); NUMBER(__NR_readv); NUMBER(__NR_futex);
#ifdef GENERIC
#define __NR_newfstatat __NR3264_fstatat
#define __NR_statfs __NR3264_statfs
#define __NR_fstatfs __NR3264_fstatfs
#endif
NUMBER(__NR_newfstatat); NUMBER(__NR_statfs); NUMBER(__NR_fstatfs);
#else
#ifdef __NR_umount
NUMBER(__NR_umount);
#endif
NUMBER(__NR_fstat64); NUMBER(__NR_fstatat64);
#endif
#ifdef __NR_open
NUMBER(__NR_open); NUMBER(__NR_creat); NUMBER(__NR_mknod);
#endif
#endif

#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(GENERIC)

#include <asm/statfs.h>
#include <stddef.h>
#include <linux/aio_abi.h>
#include <linux/audit.h>
#include <linux/blkzoned.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/fuse.h>
#include <linux/hdreg.h>
#include <linux/magic.h>
#include <linux/major.h>
#include <linux/mount.h>
#include <linux/nsfs.h>
#include <linux/openat2.h>
#include <linux/pr.h>
#include <linux/prctl.h>
#include <linux/netlink.h>
#include <linux/securebits.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/stat.h>

/* linux/loop.h */
#define INFO64 { \
	.lo_device = F(1), .lo_inode = F(2), .lo_rdevice = F(3), .lo_offset = F(4), \
	.lo_sizelimit = F(5), .lo_number = F(6), .lo_encrypt_type = F(7), \
	.lo_encrypt_key_size = F(8), .lo_flags = F(9), .lo_file_name = { [0 ... 63] = 10 }, \
	.lo_crypt_name = { [0 ... 63] = 11 }, .lo_encrypt_key = { [0 ... 31] = 12 }, \
	.lo_init = { F(13), F(14) } }
STRUCT(loop_info64, struct loop_info64, INFO64);
STRUCT(loop_config, struct loop_config, { .fd = F(20), .block_size = F(21), .info = INFO64 });

NUMBER(LOOP_MAJOR); NUMBER(MISC_MAJOR); NUMBER(LO_NAME_SIZE); NUMBER(LO_KEY_SIZE);
NUMBER(LO_FLAGS_READ_ONLY); NUMBER(LO_FLAGS_AUTOCLEAR); NUMBER(LO_FLAGS_PARTSCAN);
NUMBER(LO_FLAGS_DIRECT_IO); NUMBER(LOOP_SET_STATUS_SETTABLE_FLAGS);
NUMBER(LOOP_SET_STATUS_CLEARABLE_FLAGS); NUMBER(LOOP_CONFIGURE_SETTABLE_FLAGS);
NUMBER(LO_CRYPT_NONE); NUMBER(LOOP_SET_FD); NUMBER(LOOP_CLR_FD); NUMBER(LOOP_SET_STATUS);
NUMBER(LOOP_GET_STATUS); NUMBER(LOOP_SET_STATUS64); NUMBER(LOOP_GET_STATUS64);
NUMBER(LOOP_CHANGE_FD); NUMBER(LOOP_SET_CAPACITY); NUMBER(LOOP_SET_DIRECT_IO);
NUMBER(LOOP_SET_BLOCK_SIZE); NUMBER(LOOP_CONFIGURE); NUMBER(LOOP_CTL_ADD);
NUMBER(LOOP_CTL_REMOVE); NUMBER(LOOP_CTL_GET_FREE);

/* linux/fs.h, linux/hdreg.h, linux/pr.h, linux/falloc.h */
NUMBER(BLKROSET); NUMBER(BLKROGET); NUMBER(BLKRRPART); NUMBER(BLKGETSIZE); NUMBER(BLKFLSBUF);
NUMBER(BLKRASET); NUMBER(BLKRAGET); NUMBER(BLKFRASET); NUMBER(BLKFRAGET); NUMBER(BLKSECTGET);
NUMBER(BLKSSZGET); NUMBER(BLKPG); NUMBER(BLKDISCARD); NUMBER(BLKIOMIN); NUMBER(BLKIOOPT);
NUMBER(BLKALIGNOFF); NUMBER(BLKPBSZGET); NUMBER(BLKDISCARDZEROES); NUMBER(BLKSECDISCARD);
NUMBER(BLKROTATIONAL); NUMBER(BLKZEROOUT); NUMBER(BLKBSZGET); NUMBER(BLKBSZSET);
NUMBER(BLKGETSIZE64); NUMBER(BLKGETDISKSEQ); NUMBER(HDIO_GETGEO);
NUMBER(BLKPG_ADD_PARTITION); NUMBER(BLKPG_DEL_PARTITION); NUMBER(BLKPG_RESIZE_PARTITION);
NUMBER(BLKREPORTZONE); NUMBER(BLKRESETZONE); NUMBER(BLKGETZONESZ); NUMBER(BLKGETNRZONES);
NUMBER(BLKOPENZONE); NUMBER(BLKCLOSEZONE); NUMBER(BLKFINISHZONE);
NUMBER(BLKTRACESTART); NUMBER(BLKTRACESTOP); NUMBER(BLKTRACETEARDOWN);
NUMBER(IOC_PR_REGISTER); NUMBER(IOC_PR_RESERVE); NUMBER(IOC_PR_RELEASE);
NUMBER(IOC_PR_PREEMPT); NUMBER(IOC_PR_PREEMPT_ABORT); NUMBER(IOC_PR_CLEAR);
STRUCT(iocb, struct iocb, {
	.aio_data = F(1), .aio_key = F(2), .aio_rw_flags = F(3), .aio_lio_opcode = F(4),
	.aio_reqprio = F(5), .aio_fildes = F(6), .aio_buf = F(7), .aio_nbytes = F(8),
	.aio_offset = F(9), .aio_reserved2 = F(10), .aio_flags = F(11), .aio_resfd = F(12) });
STRUCT(blkpg_partition, struct blkpg_partition, { .start = F(1), .length = F(2), .pno = F(3) });
NUMBER(IOCB_CMD_FSYNC); NUMBER(IOCB_CMD_FDSYNC);
NUMBER(FALLOC_FL_KEEP_SIZE); NUMBER(FALLOC_FL_PUNCH_HOLE); NUMBER(FALLOC_FL_ZERO_RANGE);

NUMBER(FS_IOC_GETFSLABEL); NUMBER(FS_IOC_SETFSLABEL); NUMBER(FS_IOC_SETFLAGS); NUMBER(FS_IOC32_SETFLAGS);
NUMBER(FIEMAP_FLAG_SYNC); NUMBER(FIFREEZE); NUMBER(FITHAW);

/* linux/fcntl.h */
STRUCT(flock, struct flock, {
	.l_type = F(1), .l_whence = F(2), .l_start = F(3), .l_len = F(4), .l_pid = F(5) });

/* linux/fuse.h */
#define ATTR(n) { \
	.ino = F(n), .size = F(n + 1), .blocks = F(n + 2), .atime = F(n + 3), \
	.mtime = F(n + 4), .ctime = F(n + 5), .atimensec = F(n + 6), .mtimensec = F(n + 7), \
	.ctimensec = F(n + 8), .mode = F(n + 9), .nlink = F(n + 10), .uid = F(n + 11), \
	.gid = F(n + 12), .rdev = F(n + 13), .blksize = F(n + 14), .flags = F(n + 15) }
#if FUSE_KERNEL_MINOR_VERSION >= 38 /* Linux 6.2 */
STRUCT(fuse_in_header, struct fuse_in_header, {
	.len = F(1), .opcode = F(2), .unique = F(3), .nodeid = F(4), .uid = F(5), .gid = F(6),
	.pid = F(7), .total_extlen = F(8), .padding = F(9) });
#endif
STRUCT(fuse_out_header, struct fuse_out_header, { .len = F(1), .error = F(2), .unique = F(3) });
STRUCT(fuse_init_in, struct fuse_init_in, {
	.major = F(1), .minor = F(2), .max_readahead = F(3), .flags = F(4) });
STRUCT(fuse_init_out, struct fuse_init_out, {
	.major = F(1), .minor = F(2), .max_readahead = F(3), .flags = F(4),
	.max_background = F(5), .congestion_threshold = F(6), .max_write = F(7),
	.time_gran = F(8), .max_pages = F(9), .map_alignment = F(10), .flags2 = F(11) });
STRUCT(fuse_attr, struct fuse_attr, ATTR(1));
STRUCT(fuse_attr_out, struct fuse_attr_out, {
	.attr_valid = F(1), .attr_valid_nsec = F(2), .dummy = F(3), .attr = ATTR(4) });
STRUCT(fuse_entry_out, struct fuse_entry_out, {
	.nodeid = F(1), .generation = F(2), .entry_valid = F(3), .attr_valid = F(4),
	.entry_valid_nsec = F(5), .attr_valid_nsec = F(6), .attr = ATTR(7) });
STRUCT(fuse_getattr_in, struct fuse_getattr_in, {
	.getattr_flags = F(1), .dummy = F(2), .fh = F(3) });
STRUCT(fuse_setattr_in, struct fuse_setattr_in, {
	.valid = F(1), .padding = F(2), .fh = F(3), .size = F(4), .lock_owner = F(5),
	.atime = F(6), .mtime = F(7), .ctime = F(8), .atimensec = F(9), .mtimensec = F(10),
	.ctimensec = F(11), .mode = F(12), .unused4 = F(13), .uid = F(14), .gid = F(15),
	.unused5 = F(16) });
STRUCT(fuse_open_in, struct fuse_open_in, { .flags = F(1), .open_flags = F(2) });
STRUCT(fuse_open_out, struct fuse_open_out, { F(1), F(2), F(3) }); /* the third was renamed */
STRUCT(fuse_read_in, struct fuse_read_in, {
	.fh = F(1), .offset = F(2), .size = F(3), .read_flags = F(4), .lock_owner = F(5),
	.flags = F(6), .padding = F(7) });
STRUCT(fuse_write_in, struct fuse_write_in, {
	.fh = F(1), .offset = F(2), .size = F(3), .write_flags = F(4), .lock_owner = F(5),
	.flags = F(6), .padding = F(7) });
STRUCT(fuse_write_out, struct fuse_write_out, { .size = F(1), .padding = F(2) });
STRUCT(fuse_release_in, struct fuse_release_in, {
	.fh = F(1), .flags = F(2), .release_flags = F(3), .lock_owner = F(4) });
STRUCT(fuse_fsync_in, struct fuse_fsync_in, { .fh = F(1), .fsync_flags = F(2), .padding = F(3) });
STRUCT(fuse_ioctl_in, struct fuse_ioctl_in, {
	.fh = F(1), .flags = F(2), .cmd = F(3), .arg = F(4), .in_size = F(5), .out_size = F(6) });
STRUCT(fuse_ioctl_out, struct fuse_ioctl_out, {
	.result = F(1), .flags = F(2), .in_iovs = F(3), .out_iovs = F(4) });
STRUCT(fuse_fallocate_in, struct fuse_fallocate_in, {
	.fh = F(1), .offset = F(2), .length = F(3), .mode = F(4), .padding = F(5) });
STRUCT(fuse_lseek_in, struct fuse_lseek_in, {
	.fh = F(1), .offset = F(2), .whence = F(3), .padding = F(4) });
STRUCT(fuse_lseek_out, struct fuse_lseek_out, { .offset = F(1) });
STRUCT(fuse_statfs_out, struct fuse_statfs_out, { .st = {
	.blocks = F(1), .bfree = F(2), .bavail = F(3), .files = F(4), .ffree = F(5),
	.bsize = F(6), .namelen = F(7), .frsize = F(8), .padding = F(9) } });
STRUCT(fuse_dirent, struct fuse_dirent, {
	.ino = F(1), .off = F(2), .namelen = F(3), .type = F(4) });
STRUCT(fuse_interrupt_in, struct fuse_interrupt_in, { .unique = F(1) });
STRUCT(fuse_forget_in, struct fuse_forget_in, { .nlookup = F(1) });
STRUCT(fuse_forget_one, struct fuse_forget_one, { .nodeid = F(1), .nlookup = F(2) });
STRUCT(fuse_batch_forget_in, struct fuse_batch_forget_in, { .count = F(1) });
STRUCT(fuse_create_in, struct fuse_create_in, {
	.flags = F(1), .mode = F(2), .umask = F(3), .open_flags = F(4) });
STRUCT(fuse_mkdir_in, struct fuse_mkdir_in, { .mode = F(1), .umask = F(2) });
STRUCT(fuse_link_in, struct fuse_link_in, { .oldnodeid = F(1) });
STRUCT(fuse_setxattr_in, struct fuse_setxattr_in, { .size = F(1), .flags = F(2) });
STRUCT(fuse_mknod_in, struct fuse_mknod_in, { F(1), F(2), F(3) });
STRUCT(fuse_getxattr_in, struct fuse_getxattr_in, { .size = F(1) });
STRUCT(fuse_getxattr_out, struct fuse_getxattr_out, { .size = F(1) });
STRUCT(fuse_rename_in, struct fuse_rename_in, { .newdir = F(1) });
STRUCT(fuse_rename2_in, struct fuse_rename2_in, { .newdir = F(1), .flags = F(2) });
STRUCT(fuse_notify_inval_inode_out, struct fuse_notify_inval_inode_out, {
	.ino = F(1), .off = F(2), .len = F(3) });
#if FUSE_KERNEL_MINOR_VERSION >= 38 /* Linux 6.2 */
STRUCT(fuse_notify_inval_entry_out, struct fuse_notify_inval_entry_out, {
	.parent = F(1), .namelen = F(2), .flags = F(3) });
#endif
STRUCT(fuse_notify_store_out, struct fuse_notify_store_out, {
	.nodeid = F(1), .offset = F(2), .size = F(3) });

NUMBER(FUSE_KERNEL_VERSION); NUMBER(FUSE_ROOT_ID); NUMBER(FUSE_MIN_READ_BUFFER);
NUMBER(FUSE_LOOKUP); NUMBER(FUSE_FORGET); NUMBER(FUSE_GETATTR); NUMBER(FUSE_SETATTR);
NUMBER(FUSE_READLINK); NUMBER(FUSE_SYMLINK); NUMBER(FUSE_MKNOD); NUMBER(FUSE_MKDIR);
NUMBER(FUSE_UNLINK); NUMBER(FUSE_RMDIR); NUMBER(FUSE_RENAME); NUMBER(FUSE_LINK);
NUMBER(FUSE_OPEN); NUMBER(FUSE_READ); NUMBER(FUSE_WRITE); NUMBER(FUSE_STATFS);
NUMBER(FUSE_RELEASE); NUMBER(FUSE_FSYNC); NUMBER(FUSE_SETXATTR); NUMBER(FUSE_GETXATTR);
NUMBER(FUSE_LISTXATTR); NUMBER(FUSE_REMOVEXATTR); NUMBER(FUSE_FLUSH); NUMBER(FUSE_INIT);
NUMBER(FUSE_OPENDIR); NUMBER(FUSE_READDIR); NUMBER(FUSE_RELEASEDIR); NUMBER(FUSE_FSYNCDIR);
NUMBER(FUSE_ACCESS); NUMBER(FUSE_CREATE); NUMBER(FUSE_INTERRUPT); NUMBER(FUSE_DESTROY);
NUMBER(FUSE_IOCTL); NUMBER(FUSE_POLL); NUMBER(FUSE_BATCH_FORGET); NUMBER(FUSE_FALLOCATE);
NUMBER(FUSE_READDIRPLUS); NUMBER(FUSE_RENAME2); NUMBER(FUSE_LSEEK); NUMBER(FUSE_COPY_FILE_RANGE); NUMBER(FUSE_TMPFILE);
NUMBER(FUSE_NOTIFY_INVAL_INODE); NUMBER(FUSE_NOTIFY_INVAL_ENTRY); NUMBER(FUSE_NOTIFY_STORE);
NUMBER(FUSE_ATOMIC_O_TRUNC); NUMBER(FUSE_HAS_IOCTL_DIR); NUMBER(FUSE_DO_READDIRPLUS);
NUMBER(FUSE_READDIRPLUS_AUTO); NUMBER(FUSE_GETATTR_FH); NUMBER(FUSE_FSYNC_FDATASYNC);
NUMBER(FUSE_ASYNC_READ); NUMBER(FUSE_BIG_WRITES); NUMBER(FUSE_ASYNC_DIO);
NUMBER(FUSE_WRITEBACK_CACHE); NUMBER(FUSE_PARALLEL_DIROPS); NUMBER(FUSE_MAX_PAGES); NUMBER(FUSE_CACHE_SYMLINKS);
NUMBER(FOPEN_DIRECT_IO); NUMBER(FOPEN_KEEP_CACHE); NUMBER(FOPEN_CACHE_DIR); NUMBER(FOPEN_STREAM);
NUMBER(FOPEN_NOFLUSH); NUMBER(FUSE_DONT_MASK); NUMBER(FUSE_POSIX_ACL); NUMBER(FUSE_HANDLE_KILLPRIV_V2);
NUMBER(FUSE_OPEN_KILL_SUIDGID); NUMBER(FATTR_KILL_SUIDGID); NUMBER(FUSE_WRITE_KILL_SUIDGID);
NUMBER(FATTR_MODE); NUMBER(FATTR_UID); NUMBER(FATTR_GID); NUMBER(FATTR_SIZE);
NUMBER(FATTR_ATIME); NUMBER(FATTR_MTIME); NUMBER(FATTR_FH); NUMBER(FATTR_ATIME_NOW);
NUMBER(FATTR_MTIME_NOW); NUMBER(FATTR_CTIME);
NUMBER(FUSE_IOCTL_COMPAT); NUMBER(FUSE_IOCTL_DIR);

/* linux/mount.h, linux/fcntl.h, linux/magic.h, linux/nsfs.h */
STRUCT(mount_attr, struct mount_attr, {
	.attr_set = F(1), .attr_clr = F(2), .propagation = F(3), .userns_fd = F(4) });
STRUCT(statfs, struct statfs, {
	.f_type = F(1), .f_bsize = F(2), .f_blocks = F(3), .f_bfree = F(4), .f_bavail = F(5),
	.f_files = F(6), .f_ffree = F(7), .f_fsid = { { F(8), F(9) } }, .f_namelen = F(10),
	.f_frsize = F(11), .f_flags = F(12) });
STRUCT(open_how, struct open_how, { .flags = F(1), .mode = F(2), .resolve = F(3) });

NUMBER(MS_RDONLY); NUMBER(MS_NOSUID); NUMBER(MS_NODEV); NUMBER(MS_NOEXEC);
NUMBER(MS_SYNCHRONOUS); NUMBER(MS_REMOUNT); NUMBER(MS_MANDLOCK); NUMBER(MS_DIRSYNC);
NUMBER(MS_NOSYMFOLLOW); NUMBER(MS_NOATIME); NUMBER(MS_NODIRATIME); NUMBER(MS_BIND);
NUMBER(MS_MOVE); NUMBER(MS_REC); NUMBER(MS_SILENT); NUMBER(MS_UNBINDABLE); NUMBER(MS_PRIVATE);
NUMBER(MS_SLAVE); NUMBER(MS_SHARED); NUMBER(MS_RELATIME); NUMBER(MS_STRICTATIME);
NUMBER(MS_LAZYTIME); NUMBER(MS_MGC_VAL); NUMBER(MS_MGC_MSK);
NUMBER(OPEN_TREE_CLONE); NUMBER(OPEN_TREE_CLOEXEC); NUMBER(MOVE_MOUNT_F_EMPTY_PATH);
NUMBER(MOVE_MOUNT_T_SYMLINKS);
NUMBER(MOVE_MOUNT_T_EMPTY_PATH); NUMBER(AT_EMPTY_PATH); NUMBER(AT_RECURSIVE);
NUMBER(AT_SYMLINK_NOFOLLOW); NUMBER(AT_STATX_DONT_SYNC); NUMBER(AT_FDCWD);
NUMBER(MOUNT_ATTR_RDONLY); NUMBER(MOUNT_ATTR_NOSUID); NUMBER(MOUNT_ATTR_NODEV);
NUMBER(MOUNT_ATTR_NOEXEC); NUMBER(MOUNT_ATTR__ATIME); NUMBER(MOUNT_ATTR_NOATIME);
NUMBER(MOUNT_ATTR_STRICTATIME); NUMBER(MOUNT_ATTR_NODIRATIME); NUMBER(MOUNT_ATTR_NOSYMFOLLOW);
NUMBER(MOUNT_ATTR_RELATIME); NUMBER(FSOPEN_CLOEXEC); NUMBER(FSMOUNT_CLOEXEC);
NUMBER(FSPICK_CLOEXEC); NUMBER(FSPICK_SYMLINK_NOFOLLOW); NUMBER(FSPICK_NO_AUTOMOUNT);
NUMBER(FSPICK_EMPTY_PATH); NUMBER(FSCONFIG_SET_FLAG); NUMBER(FSCONFIG_SET_STRING);
NUMBER(FSCONFIG_SET_BINARY); NUMBER(FSCONFIG_SET_PATH); NUMBER(FSCONFIG_SET_PATH_EMPTY);
NUMBER(FSCONFIG_SET_FD); NUMBER(FSCONFIG_CMD_CREATE); NUMBER(FSCONFIG_CMD_RECONFIGURE);
NUMBER(RESOLVE_NO_MAGICLINKS); NUMBER(RESOLVE_BENEATH); NUMBER(RESOLVE_IN_ROOT);
NUMBER(FUSE_WRITE_CACHE);
NUMBER(PROC_SUPER_MAGIC); NUMBER(SYSFS_MAGIC); NUMBER(TMPFS_MAGIC); NUMBER(EXT4_SUPER_MAGIC);
NUMBER(BTRFS_SUPER_MAGIC); NUMBER(XFS_SUPER_MAGIC); NUMBER(F2FS_SUPER_MAGIC);
NUMBER(NILFS_SUPER_MAGIC); NUMBER(REISERFS_SUPER_MAGIC); NUMBER(RAMFS_MAGIC);
NUMBER(HUGETLBFS_MAGIC); NUMBER(SQUASHFS_MAGIC); NUMBER(EROFS_SUPER_MAGIC_V1);
NUMBER(ISOFS_SUPER_MAGIC); NUMBER(UDF_SUPER_MAGIC); NUMBER(MSDOS_SUPER_MAGIC);
NUMBER(EXFAT_SUPER_MAGIC); NUMBER(OVERLAYFS_SUPER_MAGIC); NUMBER(FS_IOC_FIEMAP);
NUMBER(FUSE_SUPER_MAGIC); NUMBER(NS_GET_USERNS); NUMBER(NS_GET_PARENT);
NUMBER(NS_GET_OWNER_UID);

/* linux/sched.h, linux/prctl.h, linux/securebits.h, linux/capability.h */
NUMBER(CLONE_FS); NUMBER(CLONE_THREAD); NUMBER(CLONE_NEWUTS); NUMBER(CLONE_NEWIPC); NUMBER(PR_SET_NO_NEW_PRIVS);
NUMBER(CLONE_NEWNS); NUMBER(CLONE_NEWUSER); NUMBER(CLONE_NEWPID); NUMBER(CLONE_NEWNET); NUMBER(PR_SET_PDEATHSIG);
NUMBER(PR_SET_DUMPABLE); NUMBER(PR_SET_NAME); NUMBER(PR_SET_SECUREBITS); NUMBER(SECBIT_NO_SETUID_FIXUP);
#define LINUX_CAPABILITY_VERSION_3 _LINUX_CAPABILITY_VERSION_3
NUMBER(LINUX_CAPABILITY_VERSION_3);
NUMBER(PR_SET_CHILD_SUBREAPER); NUMBER(CAP_SYS_ADMIN); NUMBER(CAP_MKNOD); NUMBER(CAP_SETFCAP); NUMBER(CAP_SYS_RESOURCE);

/* linux/seccomp.h, linux/audit.h, linux/filter.h */
STRUCT(seccomp_notif, struct seccomp_notif, {
	.id = F(1), .pid = F(2), .flags = F(3), .data = {
		.nr = F(4), .arch = F(5), .instruction_pointer = F(6),
		.args = { F(7), F(8), F(9), F(10), F(11), F(12) } } });
STRUCT(seccomp_notif_resp, struct seccomp_notif_resp, {
	.id = F(1), .val = F(2), .error = F(3), .flags = F(4) });
STRUCT(seccomp_notif_addfd, struct seccomp_notif_addfd, {
	.id = F(1), .flags = F(2), .srcfd = F(3), .newfd = F(4), .newfd_flags = F(5) });
STRUCT(nlmsghdr, struct nlmsghdr, {
	.nlmsg_len = F(1), .nlmsg_type = F(2), .nlmsg_flags = F(3), .nlmsg_seq = F(4),
	.nlmsg_pid = F(5) });
NUMBER(NETLINK_KOBJECT_UEVENT); NUMBER(NLMSG_MIN_TYPE); NUMBER(NLM_F_REQUEST);
STRUCT(sock_filter, struct sock_filter, { .code = F(1), .jt = F(2), .jf = F(3), .k = F(4) });

NUMBER(SECCOMP_ADDFD_FLAG_SETFD); NUMBER(SECCOMP_ADDFD_FLAG_SEND);
 NUMBER(SECCOMP_SET_MODE_FILTER); NUMBER(SECCOMP_GET_ACTION_AVAIL);
NUMBER(SECCOMP_GET_NOTIF_SIZES); NUMBER(SECCOMP_FILTER_FLAG_NEW_LISTENER);
NUMBER(SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV); NUMBER(SECCOMP_RET_USER_NOTIF); NUMBER(SECCOMP_RET_ERRNO);
NUMBER(SECCOMP_RET_ALLOW); NUMBER(SECCOMP_USER_NOTIF_FLAG_CONTINUE);
NUMBER(SECCOMP_IOCTL_NOTIF_RECV); NUMBER(SECCOMP_IOCTL_NOTIF_SEND);
NUMBER(SECCOMP_IOCTL_NOTIF_ID_VALID); NUMBER(SECCOMP_IOCTL_NOTIF_ADDFD);
#ifdef SECCOMP_IOCTL_NOTIF_SET_FLAGS /* Linux 6.6 */
NUMBER(SECCOMP_IOCTL_NOTIF_SET_FLAGS); NUMBER(SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
#endif
NUMBER(AUDIT_ARCH_X86_64); NUMBER(AUDIT_ARCH_I386); NUMBER(AUDIT_ARCH_AARCH64);
NUMBER(AUDIT_ARCH_ARM);
#define DATA_NR __builtin_offsetof(struct seccomp_data, nr)
#define DATA_ARCH __builtin_offsetof(struct seccomp_data, arch)
#define DATA_ARG_0 __builtin_offsetof(struct seccomp_data, args[0])
#define DATA_ARG_5 __builtin_offsetof(struct seccomp_data, args[5])
NUMBER(DATA_NR); NUMBER(DATA_ARCH); NUMBER(DATA_ARG_0); NUMBER(DATA_ARG_5);
#define BPF_LD_W_ABS (BPF_LD | BPF_W | BPF_ABS)
#define BPF_JMP_JEQ_K (BPF_JMP | BPF_JEQ | BPF_K)
#define BPF_JMP_JSET_K (BPF_JMP | BPF_JSET | BPF_K)
#define BPF_JMP_JA (BPF_JMP | BPF_JA)
#define BPF_RET_K (BPF_RET | BPF_K)
NUMBER(BPF_LD_W_ABS); NUMBER(BPF_JMP_JEQ_K); NUMBER(BPF_JMP_JSET_K); NUMBER(BPF_JMP_JA);
NUMBER(BPF_RET_K);

/* linux/stat.h */
STRUCT(statx, struct statx, {
	.stx_mask = STATX_BASIC_STATS | STATX_MNT_ID, .stx_blksize = 4096, .stx_nlink = F(3),
	.stx_uid = F(5), .stx_gid = F(6), .stx_mode = F(4), .stx_ino = F(2), .stx_size = F(8),
	.stx_blocks = F(9), .stx_atime = { F(10), NSEC(10) }, .stx_mtime = { F(11), NSEC(11) },
	.stx_ctime = { F(12), NSEC(12) }, .stx_dev_major = 0x101, .stx_dev_minor = 0x10101,
	.stx_rdev_major = 0x707, .stx_rdev_minor = 0x70707, .stx_mnt_id = F(13) });
#define STATX_MNT_ID_OFFSET __builtin_offsetof(struct statx, stx_mnt_id)
#define STATX_DEV_OFFSET __builtin_offsetof(struct statx, stx_dev_major)
#define STATX_DIO_OFFSET_ALIGN_OFFSET __builtin_offsetof(struct statx, stx_dio_offset_align)
NUMBER(STATX_BASIC_STATS); NUMBER(STATX_BTIME); NUMBER(STATX_MNT_ID); NUMBER(STATX_MNT_ID_OFFSET);
NUMBER(STATX_DEV_OFFSET);
NUMBER(STATX_DIOALIGN); NUMBER(STATX__RESERVED); NUMBER(STATX_DIO_OFFSET_ALIGN_OFFSET);

#endif
#endif
