"""UDF 1.02 to 2.60, read as by the kernel's udf.

``options``, ``tag`` (descriptor tags), ``cs0`` (names) and ``times`` decode; ``recognition`` finds
the descriptors of a volume, ``partition`` and ``maps`` map blocks, ``icb`` is a file as its entry
describes it, ``volume`` finds inodes and directories, ``filesystem`` implements the operations for
a FUSE server.

Sources: ECMA-167 (3rd edition), OSTA Universal Disk Format 1.02 to 2.60,
Documentation/filesystems/udf.rst. Section numbers such as "4/14.9" are those of ECMA-167.
"""
