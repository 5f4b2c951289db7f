"""A file as columns, before any of them is chosen.

`Table` is for arrays; `FrameTable` for data frames, whose columns may hold text. Rows
and columns count from 0 inside, and rows from 1 in words.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from elk_ssm.cli.errors import UsageError

# What pandas takes for missing, and the one way of writing NaN that it does not.
MISSING = (
    "",
    *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
    *("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    "NAN",
)


class Table:
    """An array `(T, C)` and what it is called.

    Attributes:
        path: the file.
        names: of the C columns, empty strings where there are none.
        named: where the names come from; see `Recording`.
        notes: what was decided while reading.
    """

    def __init__(
        self,
        path: Path,
        array: np.ndarray,
        names: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        self.path, self.notes, self.named = path, notes, ""
        self._array = array
        self.names = names or ("",) * array.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """T and C."""
        return self._array.shape[0], self._array.shape[1]

    def transposed(self) -> "Table":
        """The table whose rows are the columns of this one."""
        return Table(self.path, self._array.T, notes=(*self.notes, "transposed"))

    def name(self, column: int) -> str:
        """What to call a column."""
        return self.names[column] or str(column)

    def where(self, row: int, column: int) -> str:
        """Where an entry is, in words."""
        return f"row {row + 1}, column {self.name(column)}"

    def numbers(self, columns: list[int]) -> Float[np.ndarray, "T E"]:
        """Return columns as float64, NaN where there is no number."""
        return self._array[:, columns].astype(float)

    def times(self, column: int) -> np.ndarray:
        """Return a column as float64 or datetime64, NaN or NaT where missing."""
        return self.numbers([column])[:, 0]

    def is_dates(self, column: int) -> bool:
        """Whether a column holds dates."""
        return False

    def finite(self, columns: list[int]) -> Float[np.ndarray, "T E"]:
        """Return columns that have no infinite number."""
        values = self.numbers(columns)
        for row, column in np.argwhere(np.isinf(values))[:1]:
            where = self.where(int(row), columns[column])
            raise UsageError(
                f"{self.path}: {where}: {values[row, column]} is not a finite number."
            )
        return values


class FrameTable(Table):
    """A data frame of pandas.

    Args:
        path: the file.
        frame: of numbers, dates and text; gaps are NaN.
        names: of the columns.
        notes: what was decided while reading.
        decimal: the decimal point in columns of text.
        line: maps a row to the line of a text file that it is in; None for other files.
    """

    def __init__(
        self,
        path: Path,
        frame: Any,
        names: tuple[str, ...],
        notes: tuple[str, ...] = (),
        decimal: str = ".",
        line: Callable[[int], int] | None = None,
    ) -> None:
        super().__init__(path, frame, names, notes)
        self._frame, self._decimal, self._line = frame, decimal, line

    def transposed(self) -> Table:
        """The table whose rows are the columns of this one."""
        if any(self.names):
            raise UsageError(
                f"{self.path}: --transpose is for files without names of columns; here "
                f"they are {', '.join(self.names[:5])}."
            )
        values = self.numbers(list(range(self.shape[1])))
        return Table(self.path, values.T, notes=(*self.notes, "transposed"))

    def where(self, row: int, column: int) -> str:
        """Where an entry is, in words."""
        place = f"row {row + 1}" if self._line is None else f"line {self._line(row)}"
        return f"{place}, column {self.name(column)}"

    def numbers(self, columns: list[int]) -> Float[np.ndarray, "T E"]:
        """Return columns as float64, NaN where there is no number."""
        return np.column_stack([self._numbers(column) for column in columns])

    def times(self, column: int) -> np.ndarray:
        """Return a column as float64 or datetime64, NaN or NaT where missing."""
        series = self._frame.iloc[:, column]
        if series.dtype.kind == "M":
            plain = series.dt.tz_convert(None) if series.dt.tz is not None else series
            return plain.to_numpy("M8[ns]")
        if not self._is_text(series):
            return self._numbers(column)
        parsed, bad = self._parse(series)
        if not bad.any():
            return parsed
        dates = _dates(series)
        for row in np.flatnonzero(np.isnat(dates) & ~series.isna().to_numpy())[:1]:
            raise UsageError(
                f"{self.path}: {self.where(int(row), column)}: {series.iloc[row]!r} is "
                "neither a number nor a date such as 2020-12-31 or 2020-12-31 23:59."
            )
        return dates

    def is_dates(self, column: int) -> bool:
        """Whether a column holds dates."""
        series = self._frame.iloc[:, column]
        if series.dtype.kind == "M":
            return True
        return self._is_text(series) and not np.isnat(_dates(series.iloc[:100])).all()

    def _numbers(self, column: int) -> np.ndarray:
        series = self._frame.iloc[:, column]
        if not self._is_text(series) and series.dtype.kind != "M":
            return series.to_numpy(float, na_value=np.nan)
        name = self.name(column)
        if self.is_dates(column):
            raise UsageError(
                f"{self.path}: column {name} holds dates: say --time-column {name}, or "
                "choose others with --column."
            )
        parsed, bad = self._parse(series)
        for row in np.flatnonzero(bad)[:1]:
            text = str(series.iloc[row])
            raise UsageError(
                f"{self.path}: {self.where(int(row), column)}: {text!r} is not a "
                f"finite number{self._advice(text)}."
            )
        return parsed

    def _is_text(self, series: Any) -> bool:
        """Whether entries have to be read one by one; in a text file True is a word."""
        kinds = "buif" if self._line is None else "uif"
        return series.dtype.kind not in kinds + "M"

    def _parse(self, series: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers, NaN where there are none, and where there should be one."""
        import pandas as pd

        text = series.astype(object).where(series.notna(), "").astype(str).str.strip()
        missing = text.isin(MISSING).to_numpy()
        if self._decimal == ",":
            text = text.str.replace(",", ".", regex=False)
        plain = text.where(text.str.fullmatch(r"[-+.\deE]+|[-+]?[iI]nf(inity)?"), "")
        found = pd.to_numeric(plain, errors="coerce")
        parsed = found.to_numpy(float, na_value=np.nan)
        return parsed, np.isnan(parsed) & ~missing

    def _advice(self, text: str) -> str:
        if "," in text and self._decimal == ".":
            return "; is it a decimal comma? Then say --decimal ,"
        if "." in text and self._decimal == ",":
            return "; --decimal . or , is the decimal point"
        return ""


def _dates(series: Any) -> np.ndarray:
    """Read ISO dates, in UTC where they have a time zone; NaT for anything else."""
    import pandas as pd

    text = series.astype(object).where(series.notna(), "").astype(str)
    # Bare numbers would be read as years.
    text = text.where(text.str.contains(r"\d\d\d\d-?\d\d"), "")
    found = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    return found.dt.tz_convert(None).to_numpy("M8[ns]")
