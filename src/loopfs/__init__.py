"""loopfs: private loop devices for ordinary users, on a stock kernel."""

__version__ = "0.1.0"
