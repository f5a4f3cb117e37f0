"""UDF 1.02 to 2.60, read as the kernel's udf does.

``options``, ``tag`` (descriptor tags), ``cs0`` (names), ``times`` and ``descriptors`` take and
return values; ``recognition`` finds the descriptors of a volume, ``partition`` maps blocks,
``icb`` is a file by its entry, ``volume`` finds inodes and directories, ``filesystem`` is what a
FUSE server asks.

Sources: ECMA-167 (3rd edition), OSTA Universal Disk Format 1.02 to 2.60,
Documentation/filesystems/udf.rst. Numbers of sections below are of ECMA-167, as "4/14.9".
"""
