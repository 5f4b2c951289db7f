"""Gaps are refused, or filled as asked and said so."""

import numpy as np
import pytest

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.reading import GAP_POLICIES, fill_gaps

TEXT = "t,v,w\n0,1,\n1,,2\n4,7,3\n5,,6\n"


@pytest.fixture
def recording(read):
    return read(TEXT, time_column="t")


def test_gaps_are_refused_where_they_are(recording):
    with pytest.raises(UsageError) as error:
        fill_gaps(recording, "refuse")
    said = str(error.value)
    assert said.startswith("3 gaps, the first at ")
    assert "line 2, column w; --missing says what to do: interpolate, " in said
    assert fill_gaps(recording, "keep") is recording


@pytest.mark.parametrize(
    ("policy", "v", "w"),
    [
        # A quarter of the way from t = 0 to t = 4; beyond the ends the nearest.
        ("interpolate", [1, 2.5, 7, 7], [2, 2, 3, 6]),
        ("zero", [1, 0, 7, 0], [0, 2, 3, 6]),
        ("mean", [1, 4, 7, 4], [11 / 3, 2, 3, 6]),
    ],
)
def test_what_fills_them(recording, policy, v, w):
    filled = fill_gaps(recording, policy)
    np.testing.assert_allclose(filled.values, np.column_stack([v, w]))
    assert "3 gaps" in filled.line()
    assert "gaps " in filled.line().split(", ")[-1]
    np.testing.assert_array_equal(filled.gaps, np.isnan(recording.values))


def test_the_sample_before(recording, read):
    filled = fill_gaps(read("v\n1\n\n\n4\n\n"[:-1]), "previous")
    np.testing.assert_array_equal(filled.values[:, 0], [1, 1, 1, 4])
    with pytest.raises(UsageError, match="has no sample before it"):
        fill_gaps(recording, "previous")


@pytest.mark.parametrize("policy", GAP_POLICIES[1:])
def test_an_empty_column(read, policy):
    recording = read("v,w\n1,\n2,\n4,\n", columns=("v", "w"))
    if policy == "zero":
        assert not fill_gaps(recording, policy).values[:, 1].any()
        return
    with pytest.raises(UsageError, match="column w has no number at all"):
        fill_gaps(recording, policy)


def test_nothing_is_done_without_gaps(read):
    recording = read("v\n1\n2\n")
    assert fill_gaps(recording, "interpolate") is recording


def test_the_line_and_the_arrays(read, recording):
    wide = np.random.default_rng(0).normal(size=(1200, 9))
    assert read(wide, "a.npy").line() == (
        "1,200 samples x 9 columns (0, 1, 2, ..., 8), no gaps"
    )
    kept = recording.arrays()
    assert kept["read"] == recording.line()
    assert kept["read"].startswith("4 samples x 2 columns (v, w, header), 3 gaps, time")
    assert list(kept["columns"]) == ["v", "w"]
    np.testing.assert_array_equal(kept["time"], [0, 1, 4, 5])
    assert kept["gaps"].sum() == 3
