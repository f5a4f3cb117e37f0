"""How an instance, or the filesystem on a device, is mounted.

:mod:`~loopfs.engines.helper` is the process that acts inside the caller's namespaces,
:mod:`~loopfs.engines.jobs` and :mod:`~loopfs.engines.instance_jobs` are the jobs that it carries
out there, :mod:`~loopfs.engines.fuse2fs` is the program for ext2, ext3 and ext4, and
:mod:`~loopfs.engines.mounts` records the mounts.
"""
