"""The FUSE wire protocol over /dev/fuse (include/uapi/linux/fuse.h).

:mod:`~loopfs.fuse.session` speaks it, :mod:`~loopfs.fuse.operations` is what a filesystem
implements. Nothing here knows of loop devices.
"""
