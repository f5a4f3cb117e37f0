"""A random sequence of steps on the kernel's devices and those of loopfs, in parallel.

:mod:`.executor` runs on either side, natively as root and in a sandbox as an ordinary user,
and makes the calls that it is told to; ``test_machine.py`` draws them and compares the answers.
"""
