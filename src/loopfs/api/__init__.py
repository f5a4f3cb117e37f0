"""Sandboxes for Python programs: what ``loopfs.Sandbox`` is made of.

The supervisor of such a sandbox is a process of its own, started by exec, and so is the agent
inside that starts processes on request. Nothing here is imported by ``loopfs run``.
"""
