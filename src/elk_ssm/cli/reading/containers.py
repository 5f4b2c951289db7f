"""MAT and HDF5: files of several arrays, each a variable or a data set.

MATLAB writes HDF5 from version 7.3 on, with its axes in the opposite order.
"""

from pathlib import Path
from typing import Any

import numpy as np

from elk_ssm.cli.errors import UsageError, needed
from elk_ssm.cli.reading.arrays import KINDS, as_table, choose_key
from elk_ssm.cli.reading.options import Reading
from elk_ssm.cli.reading.sizes import BYTES_OF_NUMBER, check_shape
from elk_ssm.cli.reading.table import Table

MAT_CLASSES = {"double", "single", "logical"}
MAT_CLASSES |= {f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)}
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def read_mat(path: Path, reading: Reading) -> Table:
    """Read a matrix of a MATLAB file."""
    with open(path, "rb") as file:
        # Version 7.3 has 512 bytes of MATLAB's own before HDF5 begins.
        start = file.read(520)
    if HDF5_MAGIC in start:
        return read_hdf5(path, reading, swapped=True)
    io = needed("scipy.io", "reading .mat files", "scipy")
    try:
        found = {name: (shape, kind) for name, shape, kind in io.whosmat(path)}
        usable = [name for name, (_, kind) in found.items() if kind in MAT_CLASSES]
        key = choose_key(path, usable, reading.key)
        check_shape(path, found[key][0], BYTES_OF_NUMBER)
        array = io.loadmat(path, variable_names=[key])[key]
    except (UsageError, OSError):
        raise
    except Exception as error:  # SciPy documents no closed list for damaged files.
        raise UsageError(f"{path}: not a readable .mat file ({error}).") from error
    # A vector is a matrix of one row or one column to MATLAB.
    vector = array.ndim == 2 and 1 in array.shape
    return _as_table(path, key, array.ravel() if vector else array)


def read_hdf5(path: Path, reading: Reading, swapped: bool = False) -> Table:
    """Read a data set, in any group; `swapped` for the order of MATLAB's axes."""
    h5py = needed("h5py", "reading HDF5 files", "elk-ssm[data]")
    try:
        with h5py.File(path, "r") as file:
            found: dict[str, Any] = {}
            file.visititems(lambda name, item: _note(h5py, found, name, item))
            key = choose_key(path, list(found), reading.key)
            _check_dataset(path, key, found[key])
            array = found[key][...]
    except OSError as error:
        if path.is_dir() or error.errno is not None:
            raise
        raise UsageError(f"{path}: not a readable HDF5 file.") from error
    if swapped:
        array = array.T
        array = array.ravel() if 1 in array.shape else array
    return _as_table(path, key, array)


def _check_dataset(path: Path, key: str, data: Any) -> None:
    """Refuse what is too large, whole or in one chunk, and what lies elsewhere."""
    if data.external or data.is_virtual:
        raise UsageError(
            f"{path}: {key}: its numbers are in other files; expected them in this one."
        )
    # A chunk is decompressed as a whole, however little of it the array has.
    for shape in (data.shape, data.chunks or ()):
        check_shape(path, shape, data.dtype.itemsize)


def _note(h5py: Any, found: dict[str, Any], name: str, item: Any) -> None:
    """Keep a data set that could be a recording."""
    usable = isinstance(item, h5py.Dataset) and item.ndim in (1, 2) and item.size
    if usable and item.dtype.kind in KINDS:
        found[name] = item


def _as_table(path: Path, key: str, array: np.ndarray) -> Table:
    if array.ndim not in (1, 2) or not array.size or array.dtype.kind not in KINDS:
        raise UsageError(
            f"{path}: {key}: expected real numbers (T,) or (T, C), found "
            f"{array.dtype} of shape {array.shape}."
        )
    return as_table(path, array, (f"array {key}",))
