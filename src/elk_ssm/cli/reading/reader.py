"""From a file to a recording: open it by its suffix, then decide what is what."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from elk_ssm.cli.errors import UsageError, file_errors
from elk_ssm.cli.reading.arrays import read_npy, read_npz
from elk_ssm.cli.reading.columns import choose_columns, refuse_indices
from elk_ssm.cli.reading.containers import read_hdf5, read_mat
from elk_ssm.cli.reading.frames import read_feather, read_parquet
from elk_ssm.cli.reading.options import TEXT_FLAGS, Reading
from elk_ssm.cli.reading.recording import Recording
from elk_ssm.cli.reading.table import Table
from elk_ssm.cli.reading.text import read_text
from elk_ssm.cli.reading.time_axis import read_times

READERS: dict[str, Callable[[Path, Reading], Table]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".dat"), read_text),
    **{".npy": read_npy, ".npz": read_npz, ".mat": read_mat},
    **{".h5": read_hdf5, ".hdf5": read_hdf5},
    **{".parquet": read_parquet, ".feather": read_feather},
}
SUFFIXES = tuple(READERS)
KEYED = (".npz", ".mat", ".h5", ".hdf5")


def read_recording(path: Path, reading: Reading | None = None) -> Recording:
    """Read the chosen columns of a file, all of them by default.

    Args:
        path: a file whose name ends in one of `SUFFIXES`; text may be gzipped (`.gz`).
        reading: how to read it.

    Returns:
        The samples, float64 of shape `(T, E)`, NaN where one is missing.

    Raises:
        UsageError: if the file cannot be read as such a table, would not fit into
            memory, or could mean two things.
    """
    reading = Reading() if reading is None else reading
    suffix = _suffix(path)
    _check_flags(path, suffix, reading)
    with file_errors(path, "cannot read"):
        table = READERS[suffix](path, reading)
    if reading.transpose:
        table = table.transposed()
    chosen, time = choose_columns(table, reading)
    values = table.finite(chosen)
    _check_orientation(table, reading, len(chosen))
    times = None if time is None else read_times(table, time)
    if not reading.columns:
        refuse_indices(table, chosen, values)
    return Recording(
        values=values,
        gaps=np.isnan(values),
        names=tuple(table.name(i) for i in chosen),
        named=table.named,
        time=times,
        time_name=_time_name(table, time),
        where=lambda row, column: f"{path}: {table.where(row, chosen[column])}",
        notes=table.notes,
    )


def _time_name(table: Table, column: int | None) -> str:
    """What to call the times: a column without a name beside named ones is the time."""
    if column is None:
        return ""
    unnamed = any(table.names) and not table.names[column]
    return "time" if unnamed else table.name(column)


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
        text = [suffix for suffix, reader in READERS.items() if reader is read_text]
        if suffixes[-1:] and suffixes[-1] in text:
            return suffixes[-1]
    elif suffixes[-1:] and suffixes[-1] in READERS:
        return suffixes[-1]
    known = ", ".join((*SUFFIXES, ".csv.gz"))
    raise UsageError(f"{path}: expected a file ending in one of {known}.")


def _check_flags(path: Path, suffix: str, reading: Reading) -> None:
    """Refuse flags that this kind of file makes no use of."""
    if READERS[suffix] is not read_text:
        for name in TEXT_FLAGS:
            if getattr(reading, name) is not None:
                raise UsageError(f"{path}: --{name} is for text files.")
    if reading.key is not None and suffix not in KEYED:
        raise UsageError(f"{path}: --key is for {', '.join(KEYED)}.")


def _check_orientation(table: Table, reading: Reading, taken: int) -> None:
    """Ask about a table with fewer samples than channels."""
    length, width = table.shape
    # A column with a name was meant, however many others there are.
    channels = taken if any(table.names) else width
    if reading.transpose is None and length < channels:
        raise UsageError(
            f"{table.path}: {length:,} samples of {channels:,} columns are fewer "
            "samples than columns: say --transpose if each row is a channel, "
            "--no-transpose if each row is a sample."
        )
