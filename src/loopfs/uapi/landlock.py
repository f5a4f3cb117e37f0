"""include/uapi/linux/landlock.h: flags and structures of Landlock."""

import struct

LANDLOCK_SCOPE_SIGNAL = 1 << 1  # 6.12

# struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped.
RULESET_ATTR = struct.Struct("=QQQ")
