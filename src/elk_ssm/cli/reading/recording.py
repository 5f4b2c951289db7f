"""What was read: samples, the names of their columns, their times, their gaps."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

SHOWN = 5  # Names in the line; a file may have thousands of columns.


@dataclass(frozen=True)
class Recording:
    """A table of samples.

    Attributes:
        values: float64 of shape `(T, E)`; finite, and NaN where a sample is missing and
            nothing was put there.
        gaps: which samples the file has no number for.
        names: of the E columns; their numbers in the file where it has no names.
        named: where the names come from, such as `"header"` or `"no header"`; empty
            for a file that has no place for them.
        time: when the samples were taken, `(T,)`, datetime64 or float64, increasing;
            None where the file does not say.
        time_name: name of the column with the times.
        where: says in words where entry `[row, column]` of `values` is in the file.
        notes: what else was decided while reading, a few words each.
    """

    values: Float[np.ndarray, "T E"]
    gaps: Bool[np.ndarray, "T E"]
    names: tuple[str, ...]
    named: str = ""
    time: np.ndarray | None = None
    time_name: str = ""
    where: Any = field(default=lambda row, column: f"row {row + 1}, column {column}")
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """Say in one line what was read."""
        length, width = self.values.shape
        names = self.names
        if width > SHOWN:
            names = (*names[: SHOWN - 2], "...", names[-1])
        inside = ", ".join((*names, self.named) if self.named else names)
        count = int(self.gaps.sum())
        parts = [
            f"{_counted(length, 'sample')} x {_counted(width, 'column')} ({inside})",
            _counted(count, "gap") if count else "no gaps",
            *([self._span()] if self.time is not None else []),
            *self.notes,
        ]
        return ", ".join(parts)

    def arrays(self) -> dict[str, Any]:
        """What a result file keeps of it: `read`, `columns`, `gaps`, and `time`."""
        kept = {"read": self.line(), "columns": np.array(self.names), "gaps": self.gaps}
        return kept if self.time is None else {**kept, "time": self.time}

    def _span(self) -> str:
        assert self.time is not None
        first, last = (instant(self.time[i]) for i in (0, -1))
        uneven = "" if _is_even(self.time) else " in uneven steps"
        what = "time" if self.time_name == "time" else f"time {self.time_name}"
        return f"{what} from {first} to {last}{uneven}"


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def instant(value: Any) -> str:
    """Return a time in words, a date alone at midnight."""
    if isinstance(value, np.datetime64):
        return str(value.astype("M8[s]")).removesuffix("T00:00:00")
    return f"{value:.10g}"


def _is_even(time: np.ndarray) -> bool:
    steps = np.diff(time).astype(float)
    return not steps.size or bool(np.ptp(steps) <= 1e-3 * np.median(steps))
