"""Dates and times on disk (fs/fat/misc.c: fat_time_fat2unix() and fat_time_unix2fat()).

A date is years since 1980, month and day; a time is hours, minutes and seconds / 2. Both are in
local time. ``offset`` is the number of seconds to add for universal time.
"""

from __future__ import annotations

import time

_BEFORE_MONTH = (0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 0, 0, 0)
_FROM_1970_TO_1980 = 3652  # days
_FIRST = 315532800  # 1980-01-01, seconds since the epoch
_BEYOND = 4354819200  # 2108-01-01
_LAST_MOMENT = 127 << 9 | 12 << 5 | 31, 23 << 11 | 59 << 5 | 29, 199
_MOST_KNOWN = 4096


def days(date: int) -> int:
    """Return the days from 1970 to a date on disk, whatever its month and day are."""
    year, month, day = date >> 9, max(1, date >> 5 & 15), max(1, date & 31) - 1
    leap = (year + 3) // 4 - (year > 120)  # 2100 is not a leap year
    leap += year % 4 == 0 and year != 120 and month > 2
    return year * 365 + leap + _BEFORE_MONTH[month] + day + _FROM_1970_TO_1980


class Clock:
    """A converter between times on disk and nanoseconds since the epoch.

    Args:
        offset: seconds, positive west of Greenwich, as in sys_tz.
    """

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._days: dict[int, int] = {}
        self._packed: dict[int, tuple[int, int]] = {}

    def nanoseconds(self, date: int, clock: int, hundredths: int = 0) -> int:
        """Decode a date and a time; ``hundredths`` (0 to 199) are added to the time."""
        if (day := self._days.get(date)) is None:
            day = self._days[date] = days(date)  # at most 65,536 dates
        seconds = day * 86400 + (clock >> 11) * 3600 + (clock >> 5 & 63) * 60 + (clock & 31) * 2
        return (seconds + self._offset) * 1_000_000_000 + hundredths * 10_000_000

    def pack(self, moment: int) -> tuple[int, int, int]:
        """Return the date, time and hundredths of two seconds nearest to ``moment``.

        Args:
            moment: nanoseconds since the epoch.
        """
        seconds = moment // 1_000_000_000 - self._offset
        if seconds < _FIRST:
            return 1 << 5 | 1, 0, 0
        if seconds >= _BEYOND:
            return _LAST_MOMENT
        if (both := self._packed.get(seconds >> 1)) is None:
            if len(self._packed) > _MOST_KNOWN:
                self._packed.clear()
            t = time.gmtime(seconds)
            both = self._packed[seconds >> 1] = (
                t.tm_year - 1980 << 9 | t.tm_mon << 5 | t.tm_mday,
                t.tm_hour << 11 | t.tm_min << 5 | t.tm_sec >> 1,
            )
        return *both, (seconds & 1) * 100 + moment % 1_000_000_000 // 10_000_000
