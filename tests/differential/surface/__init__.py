"""Every ioctl of a loop device, on every kind of node with every kind of argument.

``python3 -S -m tests.differential.surface DIRECTORY`` asks the driver of where it runs, in place
of a 64-bit program and of a 32-bit one, and prints the answers as JSON. Nothing of loopfs is used.
``ask.c`` makes the calls; :mod:`.commands` lists them; :mod:`.nodes` makes what is asked.
"""
