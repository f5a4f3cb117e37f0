"""ext2, ext3 and ext4: a filesystem driver written in Python only.

The modules are named after the files of fs/ext4 that do the same (docs/ext4.md). Calls change
objects in memory; a commit encodes what has changed and writes it through the journal
(:mod:`~loopfs.ext4.commit`). Every number read from an image is checked before it is used.
"""
