"""System calls of the workload that the supervisor answers (seccomp user notification).

:mod:`~loopfs.intercept.filter` builds the filter, :mod:`~loopfs.intercept.notify` receives the
trapped calls, and each family of calls has a module: :mod:`~loopfs.intercept.fstat`,
:mod:`~loopfs.intercept.mount`, :mod:`~loopfs.intercept.umount`, :mod:`~loopfs.intercept.fs_context`
(fsopen, fsconfig, fspick), :mod:`~loopfs.intercept.statfs`. With --log or -v,
:mod:`~loopfs.intercept.log` records the result of each call.
"""
