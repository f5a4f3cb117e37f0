/*
 * Mounts an image through an instance that has no name anywhere, as the program in the
 * thread of the posted series does (message of 2020-04-12).
 *
 *	detached old|new IMAGE DIRECTORY
 *
 * old: mount(2) the instance, keep descriptors of it, detach it, and mount its device by
 * /proc/self/fd. new: the same by fsopen(2) and fsmount(2), where it never had a name.
 * Prints what it has seen. Exits with the number of the line that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* <sys/mount.h> cannot be had together with <linux/mount.h>. */
int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);
#define MNT_DETACH 2

#define OK(call) ({ \
	long r_ = (call); \
	if (r_ < 0) { \
		fprintf(stderr, "%s: %s\n", #call, strerror(errno)); \
		exit(__LINE__ % 256); \
	} \
	(int)r_; \
})

static void set(int context, const char *key, const char *value)
{
	OK(syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, key, value, 0));
}

/* A mount that is nowhere. */
static int new_mount(const char *type, const char *key, const char *value, unsigned attributes)
{
	int context = OK(syscall(SYS_fsopen, type, FSOPEN_CLOEXEC));

	set(context, key, value);
	OK(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	int mounted = OK(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes));

	OK(close(context));
	return mounted;
}

static int old_instance(const char *directory)
{
	OK(mount("none", directory, "loop", 0, "max=1"));
	int instance = OK(open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC));

	OK(umount2(directory, MNT_DETACH));
	return instance;
}

/* A device of the instance with the image in it, which goes when it is closed. */
static int bound_device(int instance, const char *image)
{
	struct loop_info64 info = { .lo_flags = LO_FLAGS_AUTOCLEAR };
	char name[32];
	struct stat st;
	int control = OK(openat(instance, "loop-control", O_RDWR | O_CLOEXEC));
	int number = OK(ioctl(control, LOOP_CTL_GET_FREE));

	snprintf(name, sizeof(name), "loop%d", number);
	int device = OK(openat(instance, name, O_RDWR | O_CLOEXEC));
	int backing = OK(open(image, O_RDWR | O_CLOEXEC));

	OK(ioctl(device, LOOP_SET_FD, backing));
	snprintf((char *)info.lo_file_name, LO_NAME_SIZE, "%s", image);
	OK(ioctl(device, LOOP_SET_STATUS64, &info));
	OK(fstat(device, &st));
	printf("%s\n", S_ISBLK(st.st_mode) ? "block special" : "something else");
	printf("%s\n", ioctl(control, LOOP_CTL_ADD, -1) < 0 ? strerror(errno) : "beyond the limit");
	OK(close(backing));
	OK(close(control));
	return device;
}

int main(int argc, char *argv[])
{
	if (argc != 4)
		return 1;
	int old = strcmp(argv[1], "old") == 0;
	const char *image = argv[2], *directory = argv[3];
	int instance = old ? old_instance(directory) : new_mount("loop", "max", "1", MOUNT_ATTR_NOEXEC);
	int device = bound_device(instance, image);
	char source[64];

	snprintf(source, sizeof(source), "/proc/self/fd/%d", device);
	if (old) {
		OK(mount(source, directory, "ext4", 0, NULL));
	} else {
		int mounted = new_mount("ext4", "source", source, MOUNT_ATTR_NODEV);
		int file = OK(openat(mounted, "early", O_WRONLY | O_CREAT, 0644));

		OK(write(file, "no name\n", 8));
		OK(close(file));
		OK(syscall(SYS_move_mount, mounted, "", AT_FDCWD, directory, MOVE_MOUNT_F_EMPTY_PATH));
	}
	return 0;
}
