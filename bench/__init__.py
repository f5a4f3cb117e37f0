"""Benchmark of loopfs against the running kernel's loop driver and other sandboxes.

Run as root from the checkout: ``python3 -m bench``. See README.md beside this file.
"""
