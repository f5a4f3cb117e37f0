"""Sandboxes for Python programs: the implementation of ``loopfs.Sandbox``.

The supervisor of such a sandbox is a process of its own, started by exec, and so is the agent in
the sandbox, which starts processes on request. ``loopfs run`` imports nothing of this package.
"""
