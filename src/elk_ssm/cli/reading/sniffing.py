"""The dialect of a text file: delimiter, decimal point, and whether it has a header.

Decided from its first lines, and refused where two readings make sense:

    1,5         two whole numbers, or one with a decimal comma
    0,1,2       names, or a sample, before numbers that are not whole
    NA          a name, or a gap

Fields are numbers, missing (empty, NA, NaN, ...) or words.
"""

import csv
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.reading.options import Reading
from elk_ssm.cli.reading.table import MISSING

SEEN = 1000  # Lines that are looked at.
MOST_COLUMNS = 16_384  # As many as a state may have; each costs pandas kilobytes.
ONE_COLUMN = "\x1f"  # No text has a unit separator.
WHOLE = re.compile(r"[-+]?\d+")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|infinity)", re.I)
COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")
THOUSAND = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
NATURAL = re.compile(r"\d+([eE][-+]?\d+)?")
SETTLE = "Say --header or --no-header."


@dataclass(frozen=True)
class Dialect:
    """How a text file is written.

    Attributes:
        delimiter: between fields; `" "` for any white space, `ONE_COLUMN` for none.
        decimal: the decimal point.
        names: from the header, empty strings where a cell is; empty without header.
        skip: how many lines come before the data.
        width: fields in a line.
    """

    delimiter: str
    decimal: str
    names: tuple[str, ...]
    skip: int
    width: int

    def notes(self) -> tuple[str, ...]:
        """What a reader would not expect of a .csv file."""
        words = {"\t": "tab", " ": "white space"}
        between = words.get(self.delimiter, self.delimiter)
        expected = self.delimiter in (",", ONE_COLUMN)
        notes = () if expected else (f"delimiter {between}",)
        return (*notes, "decimal comma") if self.decimal == "," else notes


def sniff(path: Path, text: str, reading: Reading, delimiter: str | None) -> Dialect:
    """Decide how a text is written.

    Args:
        path: the file.
        text: what is in it, lines ending in a newline.
        reading: what was said about it.
        delimiter: what its name says about it.

    Raises:
        UsageError: where two dialects make sense, and neither was asked for.
    """
    skip, comment, lines = _lines(text)
    if not lines:
        raise UsageError(f"{path}: there are no rows of numbers.")
    _check_width(path, lines)
    between = reading.delimiter or delimiter or _delimiter(path, lines, reading)
    rows = [split(line, between) for line in lines]
    decimal = reading.decimal or _decimal(path, rows, between)
    first, body = rows[0], rows[1:]
    if reading.header is not False and _is_header(comment, rows, between, decimal):
        names = tuple(split(comment, between))
        return Dialect(between, decimal, names, skip, len(names))
    header = reading.header
    if header is None:
        header = Header(path, decimal).decide(first, body)
    if not header:
        leading = skip - _blank_before(text, skip) if len(first) == 1 else skip
        return Dialect(between, decimal, (), leading, len(first))
    names = tuple(first)
    return Dialect(between, decimal, names, skip + 1, len(names))


def _check_width(path: Path, lines: list[str]) -> None:
    """Refuse lines of absurdly many fields, before they are split."""
    for line in lines:
        spaced = len(line.split(None, MOST_COLUMNS))
        fields = max(spaced, *(line.count(mark) + 1 for mark in ",;|\t"))
        if fields > MOST_COLUMNS:
            raise UsageError(
                f"{path}: too many columns: over {MOST_COLUMNS:,} fields in a line."
            )


def split(line: str, delimiter: str) -> list[str]:
    """Split a line into its fields."""
    if delimiter == " ":
        return line.split()
    for row in csv.reader([line], delimiter=delimiter, skipinitialspace=True):
        return [field.strip() for field in row] or [""]
    return [""]


def is_number(text: str, decimal: str) -> bool:
    """Whether a field is a number."""
    plain = text.replace(",", ".") if decimal == "," else text
    return bool(NUMBER.fullmatch(plain))


def is_missing(text: str) -> bool:
    """Whether a field stands for a missing number."""
    return text in MISSING


def _lines(text: str) -> tuple[int, str, list[str]]:
    """Return how many lines to skip, the last comment among them, and those after."""
    lines: list[str] = []
    skip, comment = 0, ""
    for line in text.split("\n", SEEN)[:SEEN]:
        if not lines and (not line.strip(" ") or line.startswith("#")):
            comment = line.lstrip("# ") if line.startswith("#") else comment
            skip += 1
        elif line.strip(" "):
            lines.append(line)
    return skip, comment, lines


def _blank_before(text: str, skip: int) -> int:
    """How many of the skipped lines are blank ones directly before the data."""
    blank = 0
    for line in reversed(text.split("\n", skip)[:skip]):
        if line.strip(" "):
            break
        blank += 1
    return blank


def _delimiter(path: Path, lines: list[str], reading: Reading) -> str:
    """Find what separates the fields."""
    for candidate in ("\t", ";", "|"):
        having = sum(len(split(line, candidate)) > 1 for line in lines)
        if 2 * having > len(lines):
            return candidate
    body = lines[1:] or lines
    if _is_spaced(body):
        return " "
    if not any(len(split(line, ",")) > 1 for line in lines):
        return ONE_COLUMN
    pairs = [_is_decimal_pair(line) for line in body]
    if reading.decimal == "." or not all(pairs) or "pair" not in pairs:
        return ","
    if reading.decimal == ",":
        return ONE_COLUMN
    first = split(lines[0], ",")
    if reading.header is not False and not _is_decimal_pair(lines[0]):
        return "," if len(first) > 1 else ONE_COLUMN
    if reading.header and len(first) == 2:
        return ","
    raise UsageError(
        f"{path}: lines such as {body[0].strip()!r} could be two whole numbers or one "
        "with a decimal comma: say --delimiter , or --decimal ,"
    )


def _is_spaced(lines: list[str]) -> bool:
    """Whether white space separates numbers, on all lines as many."""
    rows = [line.split() for line in lines]
    width = len(rows[0])
    return width > 1 and all(
        len(row) == width
        and all(is_number(x, ".") or COMMA.fullmatch(x) or is_missing(x) for x in row)
        for row in rows
    )


def _is_decimal_pair(line: str) -> str:
    """`"pair"` for what may be a decimal comma, `"one"` for one number or none."""
    row = split(line, ",")
    if len(row) == 2 and WHOLE.fullmatch(row[0]) and NATURAL.fullmatch(row[1]):
        return "pair"
    single = len(row) == 1 and (is_number(row[0], ".") or is_missing(row[0]))
    return "one" if single else ""


def _decimal(path: Path, rows: list[list[str]], delimiter: str) -> str:
    """Find the decimal point in fields that were split already."""
    fields = [field for row in rows[1:] or rows for field in row]
    commas = [field for field in fields if COMMA.fullmatch(field)]
    if not commas or any("." in x and is_number(x, ".") for x in fields):
        return "."
    if all(THOUSAND.fullmatch(field) for field in commas):
        raise UsageError(
            f"{path}: {commas[0]!r} could have a decimal comma or a separator of "
            "thousands: say --decimal , or take the separators out."
        )
    return ","


def _is_header(
    comment: str, rows: list[list[str]], delimiter: str, decimal: str
) -> bool:
    """Whether the comment before the data names the columns, as NumPy writes it."""
    names = split(comment, delimiter) if comment else []
    if len(names) != len(rows[0]):
        return False
    words = not any(is_number(x, decimal) or is_missing(x) for x in names)
    return words and all(is_number(x, decimal) or is_missing(x) for x in rows[0])


@dataclass(frozen=True)
class Header:
    """Decides whether the first row has names."""

    path: Path
    decimal: str

    def decide(self, first: list[str], body: list[list[str]]) -> bool:
        """Return whether `first` is a header, or refuse to guess."""
        numbers = [is_number(x, self.decimal) for x in first]
        words = [x for x, n in zip(first, numbers) if not n and not is_missing(x)]
        if words and not any(numbers) and all(x in words or not x for x in first):
            if not body:
                raise UsageError(f"{self.path}: there are no rows of numbers.")
            return not self._are_dates(first, body)
        if not any(numbers) and not words:
            self._refuse(f"the first row is {first[0]!r}: a name, or a gap?")
        for place, field in enumerate(first):
            if not numbers[place] and self._above_numbers(field, place, body):
                if not field:
                    self._refuse(
                        "the first row begins with an empty cell, as pandas writes an "
                        "index without a name: names, or a sample?"
                    )
                self._refuse(
                    f"the first row mixes numbers with {field!r}: it is neither a "
                    "header nor a row of numbers."
                )
        whole = [int(x) for x, n in zip(first, numbers) if n and WHOLE.fullmatch(x)]
        if body and len(whole) == sum(numbers) and self._suspicious(whole, first, body):
            shown = ", ".join(map(str, whole[:4])) + (", ..." if len(whole) > 4 else "")
            self._refuse(f"the first row is {shown}: names, or a sample?")
        return False

    def _refuse(self, why: str) -> None:
        raise UsageError(f"{self.path}: {why} {SETTLE}")

    def _are_dates(self, first: list[str], body: list[list[str]]) -> bool:
        """Whether a row without numbers is data, as dates beside gaps are."""
        below = [row[0] for row in body if row]
        return bool(re.match(r"\d\d", first[0])) and any(
            re.match(r"\d\d", field) for field in below
        )

    def _above_numbers(self, field: str, place: int, body: list[list[str]]) -> bool:
        """Whether a field that is no number stands where a name would."""
        below = [row[place] for row in body if place < len(row)]
        if not field:  # A gap, or pandas' name of an index, which has no gaps.
            return place == 0 and all(WHOLE.fullmatch(x) for x in below) and bool(below)
        if is_missing(field):
            return False
        date = re.match(r"\d\d", field)
        return not date or any(is_number(x, self.decimal) for x in below)

    def _suspicious(
        self, whole: list[int], first: list[str], body: list[list[str]]
    ) -> bool:
        """Whether whole numbers look like names above what is below."""
        below = [x for row in body for x in row if is_number(x, self.decimal)]
        if below and not any(WHOLE.fullmatch(x) for x in below):
            return True
        rows = [[int(x) for x in row if WHOLE.fullmatch(x)] for row in body]
        if len(whole) == 1:
            years = any(1500 <= x <= 2500 for row in rows for x in row)
            return len(first) == 1 and 1900 <= whole[0] <= 2100 and not years
        alike = any(_is_range(row) for row in rows if len(row) == len(whole))
        return _is_range(whole) and not alike


def _is_range(numbers: list[int]) -> bool:
    """Whether numbers count from 0 or 1, or are years."""
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    years = all(1000 <= x <= 2999 for x in numbers)
    counts = steps == {1} and numbers[0] in (0, 1)
    return counts or (years and len(steps) == 1 and min(steps) > 0)
