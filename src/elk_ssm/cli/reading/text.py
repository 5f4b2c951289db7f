"""Text: CSV and its kin, gzipped or not, parsed by pandas.

The text is decompressed under a bound and held; its dialect is decided in `sniffing`.
In a file of one column a blank line is a sample that is missing; in one of several it
separates parts, and is skipped and counted. Lines count from 1.
"""

import csv
import gzip
import io
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elk_ssm.cli.errors import UsageError, needed
from elk_ssm.cli.reading.options import Reading
from elk_ssm.cli.reading.sizes import COPIES_OF_TEXT, check_bytes
from elk_ssm.cli.reading.sniffing import Dialect, sniff
from elk_ssm.cli.reading.table import MISSING, FrameTable, Table

CHUNK = 1 << 24


def read_text(path: Path, reading: Reading) -> Table:
    """Read a table of numbers, names, dates and gaps."""
    pandas = needed("pandas", f"reading {path.suffix} files", "elk-ssm[data]")
    try:
        return _read(pandas, path, reading)
    except csv.Error as error:  # A field of more than 128 KiB, say.
        raise UsageError(f"{path}: not readable as a table ({error}).") from error


def _read(pandas: Any, path: Path, reading: Reading) -> Table:
    text = _text(path)
    tab = path.name.lower().removesuffix(".gz").endswith(".tsv")
    dialect = sniff(path, text, reading, "\t" if tab else None)
    frame = _parse(pandas, path, text, dialect)
    names = dialect.names or ("",) * frame.shape[1]
    if not names[-1] and frame.shape[1] > 1 and frame.iloc[:, -1].isna().all():
        # A delimiter at the end of every line.
        frame, names = frame.iloc[:, :-1], names[:-1]
    notes = dialect.notes()
    blank = _blank_lines(text, dialect)
    if blank:
        notes = (*notes, f"{blank:,} blank line{'s' if blank > 1 else ''} skipped")

    def line(row: int) -> int:
        return next(x for i, (x, _) in enumerate(_rows(text, dialect)) if i == row)

    table = FrameTable(path, frame, tuple(names), notes, dialect.decimal, line)
    table.named = "header" if dialect.names else "no header"
    return table


def _text(path: Path) -> str:
    data = _bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not readable as text in UTF-8 ({error}).") from error
    if "\0" in text:
        raise UsageError(f"{path}: not readable as text in UTF-8 (it has null bytes).")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.rstrip("\n")
    if not text.strip():
        raise UsageError(f"{path}: the file is empty.")
    return text + "\n"


def _bytes(path: Path) -> bytes:
    """Read, and decompress, as far as there is room, whatever the file says it has."""
    parts, size = [], 0
    check_bytes(path, COPIES_OF_TEXT * path.stat().st_size)
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rb") as file:
            while part := file.read(CHUNK):
                size += len(part)
                check_bytes(path, COPIES_OF_TEXT * size)
                parts.append(part)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: not a readable gzip file ({error}).") from error
    return b"".join(parts)


def _parse(pandas: Any, path: Path, text: str, dialect: Dialect) -> Any:
    """Return a data frame with as many columns as the dialect has."""
    width = dialect.width
    start = 0
    for _ in range(dialect.skip):
        start = text.index("\n", start) + 1
    if not text[start:].strip(" \n"):
        raise UsageError(f"{path}: there are no rows of numbers.")
    options: dict[str, Any] = {
        "sep": r"\s+" if dialect.delimiter == " " else dialect.delimiter,
        "decimal": dialect.decimal,
        "header": None,
        "names": range(width + 1),  # One more shows lines that are too long.
        "index_col": False,
        "skipinitialspace": True,
        "skip_blank_lines": width > 1,
        "keep_default_na": False,
        "na_values": list(MISSING),
        "low_memory": False,
    }
    if int(pandas.__version__.split(".")[0]) < 3:  # the only way from then on
        options["float_precision"] = "round_trip"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pandas.errors.ParserWarning)
            frame = pandas.read_csv(io.StringIO(text[start:]), **options)
    except (pandas.errors.ParserError, ValueError, OverflowError) as error:
        _refuse_ragged(path, text, dialect)
        raise UsageError(f"{path}: not readable as a table ({error}).") from error
    # pandas fills up lines that are too short.
    short = width > 1 and frame[width - 1].isna().any()
    if short or frame[width].notna().any():
        _refuse_ragged(path, text, dialect)
    return frame.iloc[:, :width]


def _refuse_ragged(path: Path, text: str, dialect: Dialect) -> None:
    """Raise `UsageError` at the first line with more or fewer fields than the first."""
    for line, row in _rows(text, dialect):
        extra = len(row) - dialect.width
        # A delimiter at the end of a line adds nothing.
        if extra < 0 or any(row[dialect.width :]):
            raise UsageError(
                f"{path}: line {line} has {len(row)} fields, the first has "
                f"{dialect.width}."
            )


def _rows(text: str, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """The rows of data, each with its line in the file."""
    lines = io.StringIO(text)
    for _ in range(dialect.skip):
        lines.readline()
    if dialect.delimiter == " ":
        for number, line in enumerate(lines, dialect.skip + 1):
            if line.strip():
                yield number, line.split()
        return
    reader = csv.reader(lines, delimiter=dialect.delimiter, skipinitialspace=True)
    for row in reader:
        if dialect.width == 1 or row not in ([], [""]):
            yield dialect.skip + reader.line_num, [x.strip() for x in row] or [""]


def _blank_lines(text: str, dialect: Dialect) -> int:
    """How many blank lines were skipped, the quoted ones apart."""
    if dialect.width == 1 or "\n\n" not in text:
        return 0
    total = text.count("\n") - dialect.skip
    return total - sum(1 for _ in _rows(text, dialect))
