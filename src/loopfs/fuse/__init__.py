"""The FUSE wire protocol over /dev/fuse (include/uapi/linux/fuse.h).

:mod:`~loopfs.fuse.session` implements it; :mod:`~loopfs.fuse.operations` is the interface that a
filesystem implements. This package does not depend on loop devices.
"""
