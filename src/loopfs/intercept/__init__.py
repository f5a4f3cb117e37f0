"""System calls of the workload that the supervisor answers (seccomp user notification).

:mod:`~loopfs.intercept.filter` makes the filter, :mod:`~loopfs.intercept.notify` knows what
it traps and receives that, and each family of calls has a module: :mod:`~loopfs.intercept.fstat`,
:mod:`~loopfs.intercept.mount`, :mod:`~loopfs.intercept.umount`, :mod:`~loopfs.intercept.fs_context`
(fsopen, fsconfig, fspick), :mod:`~loopfs.intercept.statfs`. What became of each call is
recorded by :mod:`~loopfs.intercept.log`, with --log or -v.
"""
