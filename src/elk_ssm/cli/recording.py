"""Recordings in and out: read a .npy or .csv file, check it, write an .npz file whole.

A recording is an array `(T, C)`: row t is the input at time t. Everything wrong with a
file raises `UsageError`, whose message is one line for the person who named the file.
Messages count rows and lines from 1, columns from 0.
"""

import contextlib
import csv
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float

RECORDING_SUFFIXES = (".csv", ".npy")

Table = Float[np.ndarray, "T C"]


class UsageError(Exception):
    """A mistake in what was asked for; the message is one line for the person."""


def read_recording(path: Path, columns: Sequence[str] = ()) -> Table:
    """Read the chosen columns of a file, all of them by default.

    Args:
        path: a `.npy` file of an array `(T,)` or `(T, C)`, or a comma-separated `.csv`
            file with or without a header.
        columns: names from the header, or numbers from 0.

    Returns:
        The values, float64 of shape `(T, C)`, all finite.

    Raises:
        UsageError: if the file cannot be read as such a table of finite numbers.
    """
    readers = {".csv": _read_csv, ".npy": _read_npy}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"{path}: expected a file ending in {' or '.join(RECORDING_SUFFIXES)}."
        )
    with _file_errors(path, "cannot read"):
        return reader(path, columns)


def membrane_recording(length: int | None = None) -> Float[np.ndarray, "T 1"]:
    """Return the intracellular recording that matplotlib ships, standardised.

    Args:
        length: how many of the 12,000 samples to keep, from the start; all by default.

    Raises:
        UsageError: if matplotlib or its file is missing, or the recording is shorter.
    """
    try:
        from matplotlib.cbook import get_sample_data
    except ImportError:
        raise UsageError(
            "the demo needs matplotlib: install the extra elk-ssm[plots]."
        ) from None
    path = Path("membrane.dat")
    with _file_errors(path, "matplotlib's sample data: cannot read"):
        path = Path(get_sample_data("membrane.dat", asfileobj=False))
        samples = np.fromfile(path, np.float32).astype(float)
    if length is not None and length > samples.size:
        raise UsageError(f"the recording has {samples.size} samples; got {length}.")
    return standardize(samples[:length, None])


def standardize(values: Table) -> Table:
    """Return each column less its mean, over its standard deviation.

    A constant column becomes zero.
    """
    centred = values - values.mean(axis=0)
    scale = centred.std(axis=0)
    # The mean of equal numbers rounds, so a constant column has a scale of about eps.
    constant = scale <= 1e-12 * np.abs(values).max(axis=0)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, scale))


def check_output(path: Path, suffix: str) -> None:
    """Raise `UsageError` now if `path` could not be written later."""
    if path.suffix != suffix:
        raise UsageError(f"{path}: expected an output file ending in {suffix}.")
    if path.is_dir():
        raise UsageError(f"{path}: is a directory.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the directory {path.parent} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: the directory {path.parent} is not writable.")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` only once it is whole.

    The bytes go to a temporary file in the same directory. An error leaves `path` as
    it was and removes the temporary file.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with _file_errors(path, "cannot write"):
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write named arrays to an `.npz` file, whole or not at all."""
    with replacing(path) as file:
        np.savez(file, **arrays)


@contextlib.contextmanager
def _file_errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror or error}.") from error


def _read_npy(path: Path, columns: Sequence[str]) -> Table:
    if path.stat().st_size == 0:
        raise UsageError(f"{path}: the file is empty.")
    try:
        loaded = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy documents no closed list for damaged files.
        raise UsageError(f"{path}: not a readable .npy array of numbers.") from error
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise UsageError(f"{path}: expected one array, found an .npz archive.")
    return _select_columns(path, _as_table(path, loaded), columns)


def _as_table(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise UsageError(f"{path}: expected real numbers, found dtype {array.dtype}.")
    if array.ndim not in (1, 2):
        raise UsageError(
            f"{path}: expected an array (T,) or (T, C), found shape {array.shape}."
        )
    if array.size == 0:
        raise UsageError(f"{path}: no values, the array has shape {array.shape}.")
    return array if array.ndim == 2 else array[:, None]


def _select_columns(path: Path, table: np.ndarray, columns: Sequence[str]) -> Table:
    header = [""] * table.shape[1]
    chosen = _column_indices(path, header, columns)
    values = table[:, chosen].astype(float)
    for row, column in np.argwhere(~np.isfinite(values))[:1]:
        raise UsageError(
            f"{path}: row {row + 1}, column {chosen[column]}: "
            f"{values[row, column]} is not a finite number."
        )
    return values


def _read_csv(path: Path, columns: Sequence[str]) -> Table:
    header, rows = _split_header(path, _csv_rows(path))
    chosen = _column_indices(path, header, columns)
    values = [_numbers(path, line, row, header, chosen) for line, row in rows]
    return np.array(values, dtype=float)


def _csv_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows that are not blank, each with its line number in the file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [x.strip() for x in row]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not readable as text in UTF-8 ({error}).") from error
    rows = [(line, row) for line, row in rows if row not in ([], [""])]
    if not rows:
        raise UsageError(f"{path}: the file is empty.")
    return rows


def _split_header(
    path: Path, rows: list[tuple[int, list[str]]]
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Take a first row without any number as the header."""
    first, second = rows[0][1], rows[min(1, len(rows) - 1)][1]
    if all(_number(text) is None for text in first):
        if len(rows) == 1:
            raise UsageError(f"{path}: there are no rows of numbers.")
        return first, rows[1:]
    for text, below in zip(first, second):
        if _number(text) is None and _number(below) is not None:
            raise UsageError(
                f"{path}: the first row mixes numbers with {text!r}: "
                "it is neither a header nor a row of numbers."
            )
    return [""] * len(first), rows


def _column_indices(path: Path, header: list[str], columns: Sequence[str]) -> list[int]:
    if not columns:
        return list(range(len(header)))
    return [_column_index(path, header, column) for column in columns]


def _column_index(path: Path, header: list[str], column: str) -> int:
    """Return the place of a column; a name in the header wins over a number."""
    if column and header.count(column) == 1:
        return header.index(column)
    if column and header.count(column) > 1:
        raise UsageError(
            f"{path}: several columns are named {column!r}; give a number."
        )
    if column.isdecimal() and int(column) < len(header):
        return int(column)
    names = [name for name in header if name]
    known = f" and the names {', '.join(names)}" if names else ""
    raise UsageError(
        f"{path}: no column {column!r}; there are the numbers "
        f"0 to {len(header) - 1}{known}."
    )


def _numbers(
    path: Path, line: int, row: list[str], header: list[str], chosen: list[int]
) -> list[float]:
    if len(row) != len(header):
        raise UsageError(
            f"{path}: line {line} has {len(row)} fields, the first has {len(header)}."
        )
    values = [_number(row[index]) for index in chosen]
    for index, value in zip(chosen, values):
        if value is None or not np.isfinite(value):
            where = f"line {line}, column {header[index] or index}"
            raise UsageError(f"{path}: {where}: {row[index]!r} is not a finite number.")
    return [value for value in values if value is not None]


def _number(text: str) -> float | None:
    """Read a number; None for text (Python would also accept `1_000`)."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None
