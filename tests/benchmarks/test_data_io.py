"""Recordings from `.ts` files and seglearn; padding and splitting."""

import numpy as np
import pytest

from benchmarks import data_io

TEXT = """# A comment
%and another
@problemName Tiny
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true worm fly
@data
1.0,2.0,3.0:10,20,30:fly
4,?:-1e-3,40:worm

5.5:50:fly
"""


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "Tiny_TRAIN.ts"
        path.write_text(text)
        return path

    return make


def test_a_ts_file_is_read(write):
    found = data_io.read_ts(write(TEXT))
    assert found.classes == ("worm", "fly")
    assert found.labels.tolist() == [1, 0, 1]
    assert [x.shape for x in found.series] == [(3, 2), (2, 2), (1, 2)]
    np.testing.assert_array_equal(found.series[0], [[1, 10], [2, 20], [3, 30]])
    np.testing.assert_array_equal(found.series[1], [[4, -1e-3], [np.nan, 40]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("@timeStamps false", "@timeStamps true"), "time stamps"),
        (("@classLabel true worm fly", "@classLabel false"), "classLabel must be true"),
        (("10,20,30", "10,20"), "line 11: channels of lengths"),
        (("10,20,30", "10,x,30"), "line 11: could not convert"),
        ((":fly\n4", ":wasp\n4"), r"labels \['wasp'\]"),
        (("5.5:50:fly", "5.5:fly"), r"\[1, 2\] channels"),
        (("5.5:50:fly", "fly"), "line 14: expected channel"),
        (("@data\n", ""), "line 10: data before @data"),
        ((TEXT.partition("@data\n")[2], ""), "no recordings"),
    ],
)
def test_files_that_do_not_fit_are_explained(write, change, message):
    with pytest.raises(ValueError, match=message):
        data_io.read_ts(write(TEXT.replace(*change)))


def recordings():
    series = [np.full((n, 2), float(n)) for n in (3, 5, 4)]
    groups = np.array([1, 2, 2])
    return data_io.Recordings(series, np.array([0, 1, 0]), ("a", "b"), groups)


def test_padding_stands_at_the_end():
    batch = data_io.pad(recordings(), dtype=np.float64)
    assert batch.inputs.shape == (3, 5, 2)
    assert batch.inputs.dtype == np.float64
    assert batch.lengths.tolist() == [3, 5, 4]
    assert (batch.inputs[0, :3] == 3).all()
    assert (batch.inputs[0, 3:] == 0).all()
    assert data_io.pad(recordings(), 4).lengths.tolist() == [3, 4, 4]
    assert data_io.pad(recordings(), 9).inputs.shape == (3, 9, 2)


def test_groups_are_on_one_side_only():
    train, test = data_io.split_by_group(recordings(), [2])
    assert train.groups.tolist() == [1]
    assert [len(x) for x in test.series] == [5, 4]
    assert test.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="empties one side"):
        data_io.split_by_group(recordings(), [3])
    with pytest.raises(ValueError, match="no groups"):
        data_io.split_by_group(recordings()._replace(groups=None), [1])


def test_scaling_is_that_of_the_training_recordings():
    train, test = data_io.split_by_group(recordings(), [2])
    train = train._replace(series=[np.array([[0.0, 5], [2, 5]])])
    scaled, other = data_io.standardize(train, test)
    np.testing.assert_array_equal(scaled.series[0], [[-1, 0], [1, 0]])
    np.testing.assert_array_equal(other.series[0][0], [4, 0])


def test_the_watch_data():
    pytest.importorskip("seglearn")
    found = data_io.load_watch()
    lengths = [len(x) for x in found.series]
    assert (len(lengths), min(lengths), max(lengths)) == (140, 947, 2618)
    assert {x.shape[1] for x in found.series} == {6}
    assert len(found.classes) == 7
    assert sorted(set(found.groups)) == list(range(1, 11))


def test_a_set_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="NoSuchSet"):
        data_io.find_aeon("NoSuchSet")
