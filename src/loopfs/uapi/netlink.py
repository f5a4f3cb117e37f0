"""linux/netlink.h: constants for receiving and sending uevents."""

import struct

NETLINK_KOBJECT_UEVENT = 15
NLMSG_MIN_TYPE = 0x10
NLM_F_REQUEST = 1

NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
