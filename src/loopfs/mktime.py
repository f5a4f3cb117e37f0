"""Calendar times, as filesystems store them."""

from __future__ import annotations


def mktime64(year: int, month: int, day: int, hour: int, minute: int, second: int) -> int:
    """Return seconds since the epoch for a Gregorian date (kernel/time/time.c).

    An invalid month or day gives a time, too, because the computation starts the year in March.
    """
    month -= 2
    if month <= 0:
        month, year = month + 12, year - 1
    days = year // 4 - year // 100 + year // 400 + 367 * month // 12 + day + year * 365 - 719499
    return ((days * 24 + hour) * 60 + minute) * 60 + second
