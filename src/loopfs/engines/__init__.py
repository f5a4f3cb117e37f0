"""How a filesystem found on a device, or an instance, is mounted.

:mod:`~loopfs.engines.helper` is the process that acts inside the caller's namespaces,
:mod:`~loopfs.engines.jobs` and :mod:`~loopfs.engines.instance_jobs` what it does there,
:mod:`~loopfs.engines.fuse2fs` the program behind ext2, ext3 and ext4, and
:mod:`~loopfs.engines.mounts` what is mounted.
"""
