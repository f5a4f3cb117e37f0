"""What is served through FUSE: the instances.

:mod:`~loopfs.filesystems.loopfs` is the filesystem, :mod:`~loopfs.filesystems.instances` all
of them, :mod:`~loopfs.filesystems.faces` decides which of a node's two faces a caller sees,
:mod:`~loopfs.filesystems.backing` is the file under a device, :mod:`~loopfs.filesystems.ioctls`
an ioctl of one, and :mod:`~loopfs.filesystems.threads` makes the calls that may wait.
"""
