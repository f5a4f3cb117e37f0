"""``loopfs agent``: loop devices for containers whose image has no loopfs.

A container runtime sends the agent the listener of each container whose seccomp profile names the
agent's socket (``listenerPath``). Each container has a supervisor, which serves its instance, its
mounts and its trapped calls, as the supervisor of ``loopfs run`` does for its sandbox.
"""
