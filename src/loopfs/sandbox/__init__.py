"""The sandbox: namespaces, id maps, /dev, start and end of the command.

The processes::

    supervisor   this process, in the caller's namespaces; serves FUSE and notifications
    └ child      makes the namespaces, then only waits          (sandbox.child)
      └ init     process 1 of the sandbox; reaps, kills the rest  (sandbox.init)
        └ the command

Each has a parent-death signal, and the end of process 1 ends its pid namespace, so no process
outlives the supervisor, however the supervisor ends.
"""
