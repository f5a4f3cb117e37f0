"""The semantics of the loop driver, without I/O, threads or clocks.

A device is a value that a test can construct and call. What the driver needs from outside
(the backing file, the caller of an ioctl) is passed in through the small protocols of
:mod:`loopfs.driver.world`. What its user must do after a change (create a node, drop a page
cache) is returned as values of :mod:`loopfs.driver.event`.
"""
