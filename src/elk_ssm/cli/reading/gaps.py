"""Gaps: samples that a file has a place for and no number.

`refuse` raises, `keep` leaves NaN, and the others put a number there: `interpolate` the
straight line between the neighbours over time (the nearest sample at either end),
`previous` the last one before, `zero` zero and `mean` the mean of the column.
"""

from dataclasses import replace

import numpy as np

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.reading.recording import Recording

GAP_POLICIES = ("refuse", "interpolate", "previous", "zero", "mean")
WORDS = {
    "interpolate": "interpolated",
    "previous": "filled with the sample before",
    "zero": "filled with zero",
    "mean": "filled with the mean of the column",
}


def fill_gaps(recording: Recording, policy: str) -> Recording:
    """Do with the gaps of a recording what `policy` says.

    Args:
        recording: with NaN where samples are missing.
        policy: one of `GAP_POLICIES`, or `"keep"`.

    Returns:
        The recording with numbers in the gaps, and with a note of it.

    Raises:
        UsageError: for gaps that are refused, or that the policy cannot fill.
    """
    gaps = recording.gaps
    if policy == "keep" or not gaps.any():
        return recording
    row, column = (int(i) for i in np.argwhere(gaps)[0])
    first = recording.where(row, column)
    if policy == "refuse":
        count = int(gaps.sum())
        found = "a gap" if count == 1 else f"{count:,} gaps, the first"
        others = ", ".join(GAP_POLICIES[1:])
        raise UsageError(f"{found} at {first}; --missing says what to do: {others}.")
    empty = np.flatnonzero(gaps.all(axis=0))
    if empty.size and policy != "zero":
        name = recording.names[int(empty[0])]
        raise UsageError(f"column {name} has no number at all; leave it out.")
    if policy == "previous" and gaps[0].any():
        raise UsageError(
            f"a gap at {first} has no sample before it; take --missing interpolate."
        )
    filled = np.column_stack(
        [_filled(x, recording, policy) for x in recording.values.T]
    )
    notes = (*recording.notes, f"gaps {WORDS[policy]}")
    return replace(recording, values=filled, notes=notes)


def _filled(values: np.ndarray, recording: Recording, policy: str) -> np.ndarray:
    gap = np.isnan(values)
    if policy == "zero":
        return np.where(gap, 0.0, values)
    if policy == "mean":
        return np.where(gap, values[~gap].mean(), values) if gap.any() else values
    if policy == "previous":
        last = np.maximum.accumulate(np.where(gap, 0, np.arange(len(values))))
        return values[last]
    time = recording.time
    place = np.arange(len(values)) if time is None else time - time[0]
    place = place.astype(float)
    return np.where(gap, np.interp(place, place[~gap], values[~gap]), values)
