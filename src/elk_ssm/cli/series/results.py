"""What a command has found, as columns of a table, and as files.

    time, then one column for each number of a step

All files of a command are made in memory first, so that a failure leaves none of them:
`writing.write_files`.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.writing import check_output

TABLE_SUFFIXES = (".csv", ".npz")
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Columns:
    """Numbers of every step.

    Attributes:
        time_name: of the times.
        times: `(T,)`.
        columns: by name, each `(T,)`; NaN where there is none.
    """

    time_name: str
    times: np.ndarray
    columns: dict[str, np.ndarray]

    def as_bytes(self, suffix: str) -> bytes:
        """Return the file: CSV with a header, or arrays by name."""
        if suffix == ".npz":
            file = io.BytesIO()
            arrays: dict[str, Any] = {self._time: self.times, **self.columns}
            np.savez(file, **arrays)
            return file.getvalue()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([self._time, *self.columns])
        rows = zip(instants(self.times), *self.columns.values(), strict=True)
        for time, *values in rows:
            cells = ("" if np.isnan(x) else repr(float(x)) for x in values)
            writer.writerow([time, *cells])
        return text.getvalue().encode()

    @property
    def _time(self) -> str:
        return (
            f"{self.time_name}_" if self.time_name in self.columns else self.time_name
        )


def instants(times: np.ndarray) -> list[str]:
    """Return times as text: dates alone where there is no time of day."""
    if times.dtype.kind != "M":
        return [f"{time:.12g}" for time in times]
    days = (times == times.astype("M8[D]")).all()
    whole = (times == times.astype("M8[s]")).all()
    unit = "D" if days else "s" if whole else np.datetime_data(times)[0]
    return [str(time) for time in times.astype(f"M8[{unit}]")]


def check_table(path: Path | None) -> None:
    """Raise `UsageError` if a table could not be written."""
    _check(path, TABLE_SUFFIXES)


def check_figure(path: Path | None) -> None:
    """Raise `UsageError` if a figure could not be written."""
    _check(path, FIGURE_SUFFIXES)


def _check(path: Path | None, suffixes: tuple[str, ...]) -> None:
    if path is None:
        return
    if path.suffix not in suffixes:
        known = " or ".join((", ".join(suffixes[:-1]), suffixes[-1]))
        raise UsageError(f"{path}: expected an output file ending in {known}.")
    check_output(path, path.suffix)
