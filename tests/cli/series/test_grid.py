"""Which times are steps of a grid, and which come next."""

import numpy as np
import pandas as pd
import pytest

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.series.grid import grid_of


def dates(**options):
    return pd.date_range(**options).to_numpy("M8[ns]")


@pytest.mark.parametrize(
    "options",
    [
        {"start": "2020-01-31", "freq": "ME"},
        {"start": "2019-11-15", "freq": pd.DateOffset(months=1)},
        {"start": "1999-10-01", "freq": "QS"},
        {"start": "1999-12-31", "freq": "YE"},
        {"start": "2021-03-04", "freq": "B"},
        {"start": "2021-03-04", "freq": "D"},
        {"start": "2021-03-04 06:30", "freq": "15min"},
        {"start": "2021-03-06", "freq": "W-SAT"},
    ],
)
def test_grids_of_pandas_go_on_and_have_gaps(options):
    whole = dates(periods=40, **options)
    kept = np.delete(np.arange(30), [4, 11, 12])
    grid = grid_of(whole[kept], kept.size, "date", "grid")
    np.testing.assert_array_equal(grid.times, whole[:30])
    np.testing.assert_array_equal(grid.places, kept)
    np.testing.assert_array_equal(grid.after(10), whole[30:])
    spread = grid.spread(np.ones((kept.size, 1)))
    assert np.isnan(spread).sum() == 3


def test_numbers_are_on_a_grid_up_to_their_roundings():
    times = np.round(np.delete(1959 + np.arange(60) / 12, 7), 3)
    grid = grid_of(times, 59, "year", "grid")
    assert len(grid.times) == 60
    np.testing.assert_allclose(grid.after(2), [1964, 1964 + 1 / 12], atol=2e-3)


def test_uneven_times_are_asked_about():
    times = np.cumsum([1.0, 1.0, 1.4, 1.0, 2.7, 1.0])
    with pytest.raises(UsageError, match="uneven steps: say --spacing rows"):
        grid_of(times, 6, "t", "grid")
    rows = grid_of(times, 6, "t", "rows")
    assert rows.elapsed is None
    np.testing.assert_allclose(rows.after(2), times[-1] + np.array([1.0, 2.0]))
    flowing = grid_of(times * 3, 6, "t", "continuous")
    np.testing.assert_allclose(flowing.elapsed, times - times[0])
    with pytest.raises(UsageError, match="needs times"):
        grid_of(None, 5, "", "continuous")


def test_without_times_steps_are_counted():
    grid = grid_of(None, 3, "", "grid")
    assert grid.times.tolist() == [0, 1, 2]
    assert grid.after(2).tolist() == [3, 4]
