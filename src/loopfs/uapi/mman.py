"""include/uapi/asm-generic/mman-common.h."""

MS_SYNC = 4
