"""Reading, checking and writing the files of the command line."""

import os
import pickle
import stat

import numpy as np
import pytest

from elk_ssm.cli.recording import (
    UsageError,
    check_output,
    membrane_recording,
    read_recording,
    replacing,
    standardize,
    write_npz,
)


@pytest.fixture
def save(tmp_path):
    """Write text, bytes or an array to a file and return its path."""

    def save(content, name="data.csv"):
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return save


def message(function, *args):
    with pytest.raises(UsageError) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestCsv:
    @pytest.mark.parametrize(
        "text",
        [
            "a,b\n1,2\n3,4\n",
            "1,2\n3,4",
            "\ufeffa,b\r\n1,2\r\n3,4\r\n",
            ' "a" , b\n 1 ,"2"\n\n3,4e0\n\n',
        ],
        ids=["header", "no header", "byte order mark", "spaces, quotes, blank lines"],
    )
    def test_values(self, save, text):
        np.testing.assert_array_equal(read_recording(save(text)), [[1, 2], [3, 4]])

    def test_columns_by_name_and_number_in_the_order_asked(self, save):
        path = save("t,v,w\n0,1,2\n3,4,5\n")
        got = read_recording(path, ["w", "0"])
        np.testing.assert_array_equal(got, [[2, 0], [5, 3]])

    def test_text_in_a_column_not_asked_for_does_no_harm(self, save):
        path = save("2020-01-01,1\n2020-01-02,2\n")
        np.testing.assert_array_equal(read_recording(path, ["1"]), [[1], [2]])

    def test_one_row(self, save):
        np.testing.assert_array_equal(read_recording(save("7,8\n")), [[7, 8]])

    @pytest.mark.parametrize(
        ("text", "columns", "expected"),
        [
            ("", [], "the file is empty"),
            ("\n\n", [], "the file is empty"),
            ("a,b\n", [], "no rows of numbers"),
            ("a,b\n1,x\n", [], "line 2, column b: 'x' is not a finite number"),
            ("1,2\n3,nan\n", [], "line 2, column 1: 'nan'"),
            ("a\n1\n-inf\n", [], "line 3, column a: '-inf'"),
            ("a,b\n1,2\n3,\n", [], "line 3, column b: ''"),
            ("a\n1_000\n", [], "'1_000'"),
            ("a,b\n1,2\n3\n", [], "line 3 has 1 fields, the first has 2"),
            ("a,b\n1,2\n3,4,5\n", [], "line 3 has 3 fields"),
            (
                "a,b\n1,2\n",
                ["c"],
                "no column 'c'; there are the numbers 0 to 1 and the",
            ),
            ("1,2\n", ["2"], "no column '2'; there are the numbers 0 to 1."),
            ("1,2\n", ["-1"], "no column '-1'"),
            ("1,2\n", [""], "no column ''"),
            ("a,a\n1,2\n", ["a"], "several columns are named 'a'"),
            (",0,1\n0,5,6\n", [], "neither a header nor a row of numbers"),
            (b"\xff\xfe\x00", [], "not readable as text"),
        ],
    )
    def test_what_is_wrong_is_said(self, save, text, columns, expected):
        assert expected in message(read_recording, save(text), columns)


class TestNpy:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.bool_])
    def test_vectors_and_matrices(self, save, dtype):
        values = np.array([0, 1, 1], dtype)
        got = read_recording(save(values, "a.npy"))
        np.testing.assert_array_equal(got, values[:, None])
        table = save(np.arange(6.0).reshape(3, 2), "b.NPY.npy")
        np.testing.assert_array_equal(read_recording(table, ["1"]), [[1], [3], [5]])

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "the file is empty"),
            (b"text", "not a readable .npy array"),
            (b"PK\x03\x04", "not a readable .npy array"),
            (b"\x93NUMPY\x01\x00", "not a readable .npy array"),
            (pickle.dumps([1.0]), "not a readable .npy array"),
            (np.array(1.0), "found shape ()"),
            (np.ones((2, 2, 2)), "found shape (2, 2, 2)"),
            (np.ones(0), "no values"),
            (np.ones((3, 0)), "no values"),
            (np.array([1j]), "found dtype complex128"),
            (np.array(["a"]), "found dtype <U1"),
            (np.zeros(2, "M8[s]"), "found dtype datetime64"),
            (np.zeros(2, [("a", float)]), "found dtype"),
            (np.array([0, np.nan]), "row 2, column 0: nan is not a finite number"),
            (np.array([[0, 1], [2, -np.inf]]), "row 2, column 1: -inf"),
        ],
    )
    def test_what_is_wrong_is_said(self, save, content, expected):
        assert expected in message(read_recording, save(content, "a.npy"))

    def test_object_arrays_are_not_unpickled(self, save):
        path = save(np.array([{}, None], dtype=object), "a.npy")
        assert "not a readable .npy array" in message(read_recording, path)

    def test_a_cut_off_file(self, save):
        path = save(np.arange(100.0), "a.npy")
        path.write_bytes(path.read_bytes()[:-8])
        assert "not a readable .npy array" in message(read_recording, path)

    def test_an_archive_under_another_name(self, tmp_path):
        np.savez(tmp_path / "a.npz", a=np.ones(3))
        (tmp_path / "a.npz").rename(tmp_path / "a.npy")
        assert "npz archive" in message(read_recording, tmp_path / "a.npy")

    def test_the_message_names_the_column_of_the_file(self, save):
        path = save(np.array([[0, 1], [2, np.nan]]), "a.npy")
        assert "column 1" in message(read_recording, path, ["1"])


def test_files_that_are_not_there_or_not_files(tmp_path):
    assert "No such file" in message(read_recording, tmp_path / "a.csv")
    for suffix in (".csv", ".npy"):
        (tmp_path / f"d{suffix}").mkdir()
        assert "directory" in message(read_recording, tmp_path / f"d{suffix}")
    assert "ending in .csv or .npy" in message(read_recording, tmp_path / "a.txt")


class TestMembrane:
    def test_standardised(self):
        values = membrane_recording()
        assert values.shape == (12_000, 1)
        np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-12)

    def test_length(self):
        assert membrane_recording(5).shape == (5, 1)
        assert "has 12000 samples" in message(membrane_recording, 12_001)


def test_standardize_makes_constant_columns_zero():
    values = np.stack([np.full(7, 0.1), np.arange(7.0)], axis=1)
    got = standardize(values)
    np.testing.assert_array_equal(got[:, 0], 0)
    np.testing.assert_allclose(got[:, 1].std(), 1)
    np.testing.assert_array_equal(standardize(np.array([[3.0]])), [[0]])


class TestOutput:
    def test_whole_file_replaces_the_old_one(self, tmp_path):
        path = tmp_path / "a.npz"
        path.write_bytes(b"old")
        write_npz(path, {"x": np.arange(3)})
        np.testing.assert_array_equal(np.load(path)["x"], [0, 1, 2])
        assert os.listdir(tmp_path) == ["a.npz"]

    def test_permissions_follow_the_umask(self, tmp_path):
        write_npz(tmp_path / "a.npz", {"x": 1})
        (tmp_path / "plain").touch()
        modes = [
            stat.S_IMODE((tmp_path / x).stat().st_mode) for x in ("a.npz", "plain")
        ]
        assert modes[0] == modes[1]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_interruption_leaves_the_old_file(self, tmp_path, error):
        path = tmp_path / "a.npz"
        path.write_bytes(b"old")

        def stop_halfway():
            with replacing(path) as file:
                file.write(b"half")
                raise error

        with pytest.raises(error):
            stop_halfway()
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["a.npz"]

    def test_a_full_disk_is_a_usage_error(self, tmp_path):
        def fail():
            with replacing(tmp_path / "a.npz"):
                raise OSError(28, "No space left on device")

        assert "No space left" in message(fail)
        assert os.listdir(tmp_path) == []

    def test_a_link_keeps_pointing(self, tmp_path):
        (tmp_path / "there").mkdir()
        link = tmp_path / "a.npz"
        link.symlink_to(tmp_path / "there" / "b.npz")
        write_npz(link, {"x": 1})
        assert link.is_symlink()
        assert np.load(tmp_path / "there" / "b.npz")["x"] == 1

    def test_problems_are_found_before_the_work(self, tmp_path):
        check_output(tmp_path / "a.npz", ".npz")
        (tmp_path / "d.npz").mkdir()
        (tmp_path / "file").touch()
        assert "ending in .npz" in message(check_output, tmp_path / "a.npy", ".npz")
        assert "is a directory" in message(check_output, tmp_path / "d.npz", ".npz")
        missing = tmp_path / "missing" / "a.npz"
        assert "does not exist" in message(check_output, missing, ".npz")
        below_file = tmp_path / "file" / "a.npz"
        assert "does not exist" in message(check_output, below_file, ".npz")
