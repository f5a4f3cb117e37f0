"""The loop driver's semantics, pure: no I/O, no threads, no clocks.

A device is a value that can be constructed and called in a test. What it needs of
the world (the backing file, the caller of an ioctl) comes in through the small
protocols of :mod:`loopfs.driver.world`; what the world must do about a change
(create a node, drop a page cache) goes out as values of :mod:`loopfs.driver.event`.
"""
