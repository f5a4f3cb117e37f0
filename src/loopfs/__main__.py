"""``python -m loopfs``: the same as the command ``loopfs``."""

import sys

from loopfs.cli import main

sys.exit(main())
