"""The glossary says each word once, and where it lives."""

import re
from functools import reduce
from pathlib import Path

import elk_ssm

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "glossary.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith(("| word |", "|---"))
]


def test_every_word_is_there_once():
    words = [word.strip() for row in ROWS for word in re.split("[,;]", row[0])]
    assert len(words) > 80
    assert len(set(words)) == len(words)
    assert all(len(row) == 3 and all(row) for row in ROWS)


def test_where_a_word_lives_exists():
    for word, _, where in ROWS:
        names = re.findall("`([^`]+)`", where)
        assert names or "](" in where, word
        for name in names:
            if name.endswith(".py"):
                assert (ROOT / "src" / "elk_ssm" / name).exists(), f"{word}: {name}"


def test_public_names_are_public():
    for name in re.findall(r"`elk\.([\w.]+)`", PAGE):
        assert reduce(getattr, name.split("."), elk_ssm) is not None
        assert name.split(".")[0] in elk_ssm.__all__


def test_fields_that_it_names_exist():
    for name in re.findall(r"`([A-Z]\w+)\.(\w+)`", PAGE):
        assert name[1] in getattr(elk_ssm, name[0])._fields
