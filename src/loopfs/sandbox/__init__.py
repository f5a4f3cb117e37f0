"""The sandbox: namespaces, id maps, /dev, and the life of the command in it.

Who is who::

    supervisor   this process, in the caller's namespaces; serves FUSE and notifications
    └ child      makes the namespaces, then only waits          (sandbox.child)
      └ init     pid 1 of the sandbox; reaps, ends the rest       (sandbox.init)
        └ the command

Each has a parent-death signal, and the end of pid 1 ends its namespace, so that nothing
outlives the supervisor however it ends.
"""
