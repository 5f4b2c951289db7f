"""Parquet and Feather: pandas reads them where pyarrow is installed.

An index that pandas has stored with the file is a column again, the first ones; one
that only counts the rows is not stored.
"""

from pathlib import Path
from typing import Any

from elk_ssm.cli.errors import UsageError, needed
from elk_ssm.cli.reading.options import Reading
from elk_ssm.cli.reading.sizes import BYTES_OF_NUMBER, check_shape
from elk_ssm.cli.reading.table import FrameTable, Table


def read_parquet(path: Path, reading: Reading) -> Table:
    """Read a Parquet file."""
    pandas, _ = _readers(".parquet")
    parquet = needed("pyarrow.parquet", "reading .parquet files", "elk-ssm[data]")
    with open(path, "rb"):
        pass  # Errors of the system as the system tells them.
    try:
        about = parquet.ParquetFile(path).metadata
        check_shape(path, (about.num_rows, about.num_columns), BYTES_OF_NUMBER)
        return _as_table(path, pandas.read_parquet(path))
    except UsageError:
        raise
    except Exception as error:  # Arrow's errors are many.
        raise UsageError(f"{path}: not a readable .parquet file ({error}).") from error


def read_feather(path: Path, reading: Reading) -> Table:
    """Read a Feather file."""
    pandas, arrow = _readers(".feather")
    with open(path, "rb"):
        pass
    try:
        with arrow.memory_map(str(path)) as source:
            reader = arrow.ipc.open_file(source)
            rows = sum(
                reader.get_batch(i).num_rows for i in range(reader.num_record_batches)
            )
            check_shape(path, (rows, len(reader.schema)), BYTES_OF_NUMBER)
        return _as_table(path, pandas.read_feather(path))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{path}: not a readable .feather file ({error}).") from error


def _readers(suffix: str) -> tuple[Any, Any]:
    task = f"reading {suffix} files"
    return needed("pandas", task, "elk-ssm[data]"), needed(
        "pyarrow", task, "elk-ssm[data]"
    )


def _as_table(path: Path, frame: Any) -> Table:
    import pandas as pd

    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    if not frame.size:
        raise UsageError(f"{path}: no values, the table has shape {frame.shape}.")
    table = FrameTable(path, frame, tuple(str(name) for name in frame.columns))
    table.named = "from the file"
    return table
