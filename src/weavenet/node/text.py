"""Times as texts, without a clock: a wall-clock second to a date, by the calendar's arithmetic.

The standard library's datetime is kept out of the cores, as it also tells the time. Source for the arithmetic: days
since 1970-01-01 to a civil date in the proleptic Gregorian calendar, in eras of 400 years that begin on 1 March.
"""

_DAY_S = 86_400
_DAYS_TO_ERA = 719_468  # from 0000-03-01 to 1970-01-01
_DAYS_PER_ERA = 146_097


def wall_clock(wall_s: float) -> str:
    """Return `2026-11-23 20:53:10 UTC` for seconds since the epoch."""
    days, second = divmod(int(wall_s), _DAY_S)
    era, day_of_era = divmod(days + _DAYS_TO_ERA, _DAYS_PER_ERA)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month_from_march + 2) // 5 + 1
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    year = year_of_era + era * 400 + (month <= 2)
    return f"{year:04}-{month:02}-{day:02} {second // 3600:02}:{second // 60 % 60:02}:{second % 60:02} UTC"
