"""Hostile programs that run in a sandbox; each prints its results as JSON."""
