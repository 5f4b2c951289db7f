"""NPY and NPZ: headers are read and judged before any data; nothing is unpickled."""

import io
import zipfile
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.reading.options import Reading
from elk_ssm.cli.reading.sizes import check_shape
from elk_ssm.cli.reading.table import Table

KINDS = "buif"  # Truth values, integers and floating point.
# NumPy writes 128 bytes, and reads as many as the header says it has before it judges.
LONGEST_HEADER = 1 << 16
Header = tuple[tuple[int, ...], np.dtype]


def read_npy(path: Path, reading: Reading) -> Table:
    """Read an array `(T,)` or `(T, C)`."""
    size = path.stat().st_size
    if size == 0:
        raise UsageError(f"{path}: the file is empty.")
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise UsageError(f"{path}: expected one array, found an .npz archive.")
        file.seek(0)
        header, start = _header(path, file)
        check_header(path, "", header, size - start)
        file.seek(0)
        return as_table(path, _load(path, file))


def read_npz(path: Path, reading: Reading) -> Table:
    """Read one array of an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            keys = [name.removesuffix(".npy") for name in sizes]
            key = choose_key(path, keys, reading.key)
            with archive.open(f"{key}.npy") as file:
                header, start = _header(path, file)
                check_header(path, key, header, sizes[f"{key}.npy"] - start)
            with archive.open(f"{key}.npy") as file:
                array = _load(path, file)
    except zipfile.BadZipFile as error:
        raise UsageError(f"{path}: not a readable .npz archive ({error}).") from error
    return as_table(path, array, (f"array {key}",))


def choose_key(path: Path, keys: list[str], key: str | None) -> str:
    """Return the key that was asked for, or the only one."""
    known = ", ".join(sorted(keys)[:20]) or "none"
    if key is None and len(keys) == 1:
        return keys[0]
    if key is None:
        raise UsageError(f"{path}: say which array with --key: {known}.")
    if key not in keys:
        raise UsageError(f"{path}: no array {key!r}; there are: {known}.")
    return key


def check_header(path: Path, key: str, header: Header, size: int) -> None:
    """Refuse an array by what its header says.

    Args:
        path: the file.
        key: name of the array inside it, or empty.
        header: shape and dtype.
        size: bytes that the file has for it.
    """
    shape, dtype = header
    name = f"{path}: {key}" if key else str(path)
    if dtype.kind not in KINDS:
        kind = "objects" if dtype.kind == "O" else f"dtype {dtype}"
        raise UsageError(f"{name}: expected real numbers, found {kind}.")
    if len(shape) not in (1, 2):
        raise UsageError(
            f"{name}: expected an array (T,) or (T, C), found shape {shape}."
        )
    if not prod(shape):
        raise UsageError(f"{name}: no values, the array has shape {shape}.")
    check_shape(path, shape, dtype.itemsize)
    if prod(shape) * dtype.itemsize > size:
        raise UsageError(f"{name}: not a readable .npy array: it is cut off.")


def as_table(path: Path, array: np.ndarray, notes: tuple[str, ...] = ()) -> Table:
    """Return an array `(T,)` or `(T, C)` as a table."""
    return Table(path, array if array.ndim == 2 else array[:, None], notes=notes)


def _header(path: Path, file: IO[bytes]) -> tuple[Header, int]:
    """Return what the header says, and where the data begin."""
    form = np.lib.format
    file = io.BytesIO(file.read(LONGEST_HEADER))
    try:
        major, _ = form.read_magic(file)
        read = form.read_array_header_1_0 if major == 1 else form.read_array_header_2_0
        shape, _, dtype = read(file)
        if min(shape, default=0) < 0:
            raise ValueError(shape)
    except Exception as error:  # NumPy documents no closed list for damaged files.
        raise UsageError(f"{path}: not a readable .npy array of numbers.") from error
    return (shape, dtype), file.tell()


def _load(path: Path, file: IO[bytes]) -> np.ndarray:
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except zipfile.BadZipFile:
        raise
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path}: not a readable .npy array of numbers.") from error
