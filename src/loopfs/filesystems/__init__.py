"""What is served through FUSE: the instances.

:mod:`~loopfs.filesystems.loopfs` is the filesystem, :mod:`~loopfs.filesystems.instances` the set
of all instances. :mod:`~loopfs.filesystems.faces` decides which of a node's two faces a caller
sees, :mod:`~loopfs.filesystems.backing` is the backing file of a device,
:mod:`~loopfs.filesystems.ioctls` carries out the ioctls of a device, and
:mod:`~loopfs.filesystems.threads` makes calls that can block.
"""
