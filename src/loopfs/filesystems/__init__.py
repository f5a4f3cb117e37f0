"""What is served through FUSE: the instances.

:mod:`~loopfs.filesystems.loopfs` is the filesystem, :mod:`~loopfs.filesystems.instances` all
of them, :mod:`~loopfs.filesystems.faces` decides which of a node's two faces a caller sees,
:mod:`~loopfs.filesystems.backing` is the file under a device and
:mod:`~loopfs.filesystems.worker` the thread in which the driver may wait.
"""
