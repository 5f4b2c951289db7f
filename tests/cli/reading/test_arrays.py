"""Arrays: NPY, NPZ, MAT, HDF5, Parquet, Feather; nothing unpickled, nothing absurd."""

import gzip
import io
import pickle
import sys
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io

from elk_ssm.cli.reading import SUFFIXES, sizes

VALUES = np.random.default_rng(0).normal(size=(30, 2))


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(shape, dtype="<f8"):
    """The beginning of an .npy file that claims a shape."""
    file = io.BytesIO()
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


class TestNpy:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.bool_])
    def test_vectors_and_matrices(self, read, dtype):
        values = np.array([0, 1, 1], dtype)
        recording = read(values, "a.npy")
        np.testing.assert_array_equal(recording.values, values[:, None])
        assert recording.line() == "3 samples x 1 column (0), no gaps"
        table = read(VALUES, "b.NPY.npy", columns=("1",))
        np.testing.assert_array_equal(table.values, VALUES[:, 1:])

    def test_gaps_and_times(self, read, refusal):
        timed = np.column_stack([np.arange(30) / 2, VALUES])
        timed[3, 1] = np.nan
        assert "column 0 rises all the way" in refusal(timed, "a.npy")
        recording = read(timed, "a.npy", time_column="0")
        np.testing.assert_array_equal(recording.values, timed[:, 1:])
        np.testing.assert_array_equal(recording.time, timed[:, 0])
        assert recording.line() == (
            "30 samples x 2 columns (1, 2), 1 gap, time 0 from 0 to 14.5"
        )

    def test_channels_first_is_asked_about(self, read, refusal):
        said = refusal(VALUES.T, "a.npy")
        assert "2 samples of 30 columns are fewer samples than columns" in said
        assert "--transpose if each row is a channel, --no-transpose if" in said
        assert "--transpose" in refusal(VALUES.T, "a.npy", columns=("3",))
        turned = read(VALUES.T, "a.npy", transpose=True)
        np.testing.assert_array_equal(turned.values, VALUES)
        assert turned.line().endswith("transposed")
        same = read(VALUES.T, "a.npy", transpose=False)
        np.testing.assert_array_equal(same.values, VALUES.T)

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "the file is empty"),
            (b"text", "not a readable .npy array"),
            (b"\x93NUMPY\x01\x00", "not a readable .npy array"),
            (pickle.dumps([1.0]), "not a readable .npy array"),
            (npy(np.array(1.0)), "found shape ()"),
            (npy(np.ones((2, 2, 2))), "found shape (2, 2, 2)"),
            (npy(np.ones(0)), "no values"),
            (npy(np.ones((3, 0))), "no values"),
            (npy(np.array([1j])), "found dtype complex128"),
            (npy(np.array(["a"])), "found dtype <U1"),
            (npy(np.zeros(2, "M8[s]")), "found dtype datetime64"),
            (npy(np.zeros(2, [("a", float)])), "found dtype"),
            (npy(np.array([{}, None], dtype=object)), "found objects"),
            (npy(np.array([[0, 1], [2, -np.inf]])), "row 2, column 1: -inf"),
            (npy(np.arange(100.0))[:-8], "it is cut off"),
            (header((10**9, 10**9)), "too large"),
            (header((2**62, 4)), "too large"),
        ],
    )
    def test_what_is_wrong_is_said(self, refusal, content, expected):
        assert expected in refusal(content, "a.npy")

    def test_an_archive_under_another_name(self, refusal):
        file = io.BytesIO()
        np.savez(file, a=np.ones(3))
        assert "npz archive" in refusal(file.getvalue(), "a.npy")

    @pytest.mark.parametrize("flag", ["delimiter", "decimal", "header"])
    def test_flags_of_text_are_refused(self, refusal, flag):
        assert f"--{flag} is for text files" in refusal(VALUES, "a.npy", **{flag: ","})
        assert "--key is for .npz" in refusal(VALUES, "a.npy", key="x")


class TestNpz:
    def test_one_array_or_the_one_asked_for(self, read, refusal):
        def archive(**arrays):
            file = io.BytesIO()
            np.savez_compressed(file, **arrays)
            return file.getvalue()

        only = read(archive(v=VALUES), "a.npz")
        np.testing.assert_array_equal(only.values, VALUES)
        assert only.line().endswith("array v")
        two = archive(v=VALUES, w=VALUES[:, 0])
        assert "say which array with --key: v, w." in refusal(two, "a.npz")
        assert "no array 'x'; there are: v, w." in refusal(two, "a.npz", key="x")
        np.testing.assert_array_equal(read(two, "a.npz", key="w").values, VALUES[:, :1])
        objects = archive(v=np.array([{}], dtype=object))
        assert "found objects" in refusal(objects, "a.npz")

    def test_what_is_no_archive(self, refusal):
        assert "not a readable .npz archive" in refusal(b"text", "a.npz")

    def test_a_small_file_of_a_huge_array_is_refused(self, refusal, monkeypatch):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("v.npy", npy(np.zeros(200_000)))
            archive.writestr("w.npy", header((10**12,)))
        assert len(file.getvalue()) < 20_000
        assert "too large" in refusal(file.getvalue(), "a.npz", key="w")
        monkeypatch.setattr(sizes, "room", lambda: 1_000_000)
        assert "takes 3 MB in memory" in refusal(file.getvalue(), "a.npz", key="v")


def test_text_of_absurd_size_is_refused_while_it_is_decompressed(refusal, monkeypatch):
    monkeypatch.setattr(sizes, "room", lambda: 1_000_000)
    text = b"0.5\n" * 100_000
    assert "too large" in refusal(text, "a.csv")
    packed = gzip.compress(text)
    assert len(packed) < 2_000
    assert "too large" in refusal(packed, "a.csv.gz")


class TestContainers:
    def test_mat(self, read, refusal, tmp_path):
        path = tmp_path / "a.mat"
        scipy.io.savemat(path, {"v": VALUES, "w": VALUES[:, 0], "s": "text"})
        content = path.read_bytes()
        assert "--key: v, w." in refusal(content, "a.mat")
        np.testing.assert_array_equal(read(content, "a.mat", key="v").values, VALUES)
        # A vector is a row to MATLAB.
        vector = read(content, "a.mat", key="w").values
        np.testing.assert_array_equal(vector, VALUES[:, :1])
        assert "not a readable .mat file" in refusal(b"text" * 100, "a.mat")

    def test_mat_of_version_7_3_has_its_axes_turned(self, read, tmp_path):
        path = tmp_path / "a.mat"
        with h5py.File(path, "w", userblock_size=512) as file:
            file["v"] = VALUES.T
        np.testing.assert_array_equal(read(path.read_bytes(), "a.mat").values, VALUES)

    def test_hdf5(self, read, refusal, tmp_path):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["deep/v"] = VALUES
            file["text"] = "words"
            file["cube"] = np.ones((2, 2, 2))
            file.create_dataset("huge", shape=(10**12,), dtype="f8", chunks=(1000,))
        content = path.read_bytes()
        assert "--key: deep/v, huge." in refusal(content, "a.h5")
        assert "too large" in refusal(content, "a.h5", key="huge")
        got = read(content, "a.hdf5", key="deep/v").values
        np.testing.assert_array_equal(got, VALUES)
        assert "not a readable HDF5 file" in refusal(b"text", "a.h5")


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [
        ("a.csv", "pandas", "elk-ssm[data]"),
        ("a.tsv.gz", "pandas", "elk-ssm[data]"),
        ("a.mat", "scipy.io", "scipy"),
        ("a.h5", "h5py", "elk-ssm[data]"),
        ("a.parquet", "pyarrow", "elk-ssm[data]"),
        ("a.feather", "pyarrow", "elk-ssm[data]"),
        ("a.parquet", "pandas", "elk-ssm[data]"),
    ],
)
def test_a_reader_that_is_not_installed_is_named(
    refusal, monkeypatch, name, module, install
):
    monkeypatch.setitem(sys.modules, module, None)
    needs = module.split(".")[0]
    assert f'needs {needs}: pip install "{install}".' in refusal("1.5\n", name)


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_columns_of_arrow(read, tmp_path, suffix):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(VALUES, columns=["a", "b"])
    frame.loc[3, "a"] = np.nan
    path = tmp_path / f"a.{suffix}"
    getattr(frame, f"to_{suffix}")(path)
    recording = read(path.read_bytes(), f"a.{suffix}")
    np.testing.assert_array_equal(recording.values, frame)
    assert recording.line().endswith("(a, b, from the file), 1 gap")


def test_files_that_are_not_there_or_not_files(refusal, tmp_path):
    for suffix in SUFFIXES:
        (tmp_path / f"d{suffix}").mkdir()
    assert "expected a file ending in one of .csv, .tsv" in refusal("", "a.xlsx")
    assert "expected a file ending in" in refusal("", "a.npy.gz")
