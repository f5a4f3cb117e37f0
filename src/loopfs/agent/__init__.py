"""``loopfs agent``: loop devices for containers that know nothing of loopfs.

A container runtime sends the agent the listener of each container whose seccomp profile names its
socket (``listenerPath``). Of each container one supervisor serves the instance, the mounts and the
calls, as that of ``loopfs run`` does for its sandbox.
"""
