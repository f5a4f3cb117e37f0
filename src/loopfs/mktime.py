"""Moments of calendars, as filesystems store them."""

from __future__ import annotations


def mktime64(year: int, month: int, day: int, hour: int, minute: int, second: int) -> int:
    """Seconds since the epoch by the Gregorian calendar (kernel/time/time.c).

    March is the first month of a year, so that a month or day that is none is a moment, too.
    """
    month -= 2
    if month <= 0:
        month, year = month + 12, year - 1
    days = year // 4 - year // 100 + year // 400 + 367 * month // 12 + day + year * 365 - 719499
    return ((days * 24 + hour) * 60 + minute) * 60 + second
