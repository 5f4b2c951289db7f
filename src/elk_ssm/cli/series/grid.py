"""The steps of a series: which times are neighbours, and which come next.

A model in discrete time moves once a step. Times are on a grid if they are multiples of
one step: months (so quarters and years, on one day of the month or its last), working
days, or a constant span. Places of a grid without a row are gaps. Times on no grid are
refused, unless steps are rows or the model is in continuous time, whose unit is then
the median step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from elk_ssm.cli.errors import UsageError

SPACINGS = ("grid", "rows", "continuous")
_OFF = 0.1  # Of a step: how far from its place a time may be.
_SPARSE = 20  # So many places for a row are no grid any more.
_DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Grid:
    """Steps with their times.

    Attributes:
        times: of every step, `(T,)`; numbers from 0 where the file has no times.
        places: the step of every row of the file.
        name: of the times.
        after: the times of so many steps after the last.
        elapsed: time of every step in median steps, for models in continuous time.
    """

    times: np.ndarray
    places: np.ndarray
    name: str
    after: Callable[[int], np.ndarray]
    elapsed: np.ndarray | None = None

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Put rows `(rows, C)` in their places, NaN in the others."""
        found = np.full((len(self.times), values.shape[1]), np.nan)
        found[self.places] = values
        return found


class _Calendar(NamedTuple):
    """Times as whole numbers, and back."""

    ordinals: np.ndarray
    times: Callable[[np.ndarray], np.ndarray]


def grid_of(times: np.ndarray | None, count: int, name: str, spacing: str) -> Grid:
    """Return the grid of the times of rows, increasing.

    Args:
        times: `(count,)`, datetime64 or float64; `None` where there are none.
        count: how many rows.
        name: of the column of times.
        spacing: one of `SPACINGS`.

    Raises:
        UsageError: the times are on no grid, or there are none for `continuous`.
    """
    rows = np.arange(count)
    if times is None:
        if spacing == "continuous":
            raise UsageError("--spacing continuous needs times: say --time-column.")
        return Grid(rows, rows, "step", lambda n: count + np.arange(n))
    if count == 1:
        return Grid(times, rows, name, lambda n: times[-1] + np.arange(1, n + 1))
    step = np.median(np.diff(times).astype(float))
    if spacing == "grid":
        return _gridded(times, name, step)
    after = _evenly(times[-1], step)
    elapsed = None
    if spacing == "continuous":
        elapsed = (times - times[0]).astype(float) / step
    return Grid(times, rows, name, after, elapsed)


def _gridded(times: np.ndarray, name: str, step: float) -> Grid:
    calendar = _calendar(times) if times.dtype.kind == "M" else None
    calendar = calendar or _even(times, step)
    if calendar is None:
        raise UsageError(
            f"the times of column {name} are in uneven steps: say --spacing rows if "
            "each row is a step, or --spacing continuous for a model in continuous "
            "time."
        )
    unit = int(np.gcd.reduce(np.diff(calendar.ordinals)))
    places = (calendar.ordinals - calendar.ordinals[0]) // unit
    first, total = calendar.ordinals[0], int(places[-1]) + 1

    def steps(begin: int, end: int) -> np.ndarray:
        return calendar.times(first + unit * np.arange(begin, end))

    # Times of rows stay what they are in the file, however even the others.
    all_times = steps(0, total)
    all_times[places] = times
    return Grid(all_times, places, name, lambda n: steps(total, total + n))


def _calendar(times: np.ndarray) -> _Calendar | None:
    """Months, or working days; `None` for anything else."""
    days = times.astype("M8[D]")
    clock = times - days
    if (clock != clock[0]).any():
        return None
    return _of_months(days, clock[0], times.dtype) or _of_working_days(
        days, clock[0], times.dtype
    )


def _of_months(days: np.ndarray, clock: Any, dtype: np.dtype) -> _Calendar | None:
    months = days.astype("M8[M]")
    day = (days - months.astype("M8[D]")).astype(int)
    at_end = bool((days == _last_day(months)).all())
    same_day = at_end or bool((day == day[0]).all())
    if len(days) < 3 or not same_day or (np.diff(months).astype(int) < 1).any():
        return None

    def times(ordinals: np.ndarray) -> np.ndarray:
        months = ordinals.astype("M8[M]")
        last = _last_day(months)
        own = np.minimum(months.astype("M8[D]") + day[0] * _DAY, last)
        return ((last if at_end else own) + clock).astype(dtype)

    return _Calendar(months.astype(int), times)


def _of_working_days(days: np.ndarray, clock: Any, dtype: np.dtype) -> _Calendar | None:
    # Five days in a row may be five of seven.
    daily = len(days) > 5 and np.median(np.diff(days).astype(int)) == 1
    if not daily or not np.is_busday(days).all():
        return None

    def times(ordinals: np.ndarray) -> np.ndarray:
        return (np.busday_offset(days[0], ordinals) + clock).astype(dtype)

    return _Calendar(np.busday_count(days[0], days), times)


def _last_day(months: np.ndarray) -> np.ndarray:
    return (months + 1).astype("M8[D]") - _DAY


def _even(times: np.ndarray, step: float) -> _Calendar | None:
    """Multiples of a constant span."""
    elapsed = (times - times[0]).astype(float)
    jumps = np.rint(np.diff(elapsed) / step).astype(int)
    if (jumps < 1).any() or jumps.sum() > _SPARSE * len(times):
        return None
    places = np.concatenate([[0], np.cumsum(jumps)])
    span = elapsed[-1] / places[-1]
    if np.abs(elapsed - span * places).max() > _OFF * span:
        return None
    return _Calendar(places, lambda ordinals: times[0] + _span(times, span * ordinals))


def _evenly(last: np.generic, step: float) -> Callable[[int], np.ndarray]:
    return lambda n: last + _span(np.asarray(last), step * np.arange(1, n + 1))


def _span(like: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Return floats as what is added to times such as `like`."""
    if like.dtype.kind != "M":
        return spans
    return (
        np.rint(spans).astype(np.int64).astype(f"m8[{np.datetime_data(like.dtype)[0]}]")
    )
