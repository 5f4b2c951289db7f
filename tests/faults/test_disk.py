"""The disk full, or the directory gone, at any byte of any file that is written.

A file too large (`RLIMIT_FSIZE`, which any user may set) fails in the same calls as a
full disk does, in the middle of a write; a call that the system refuses is patched in
where only its number matters.
"""

import errno
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from elk_ssm import cli
from elk_ssm.cli import demo_figure, writing
from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.series.results import Columns

resource = pytest.importorskip("resource")
OLD = b"what was there before"
rng = np.random.default_rng(20)


@pytest.fixture
def at_most():
    """Let no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(number):
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def table(names, length=400):
    columns = {name: rng.normal(size=length) for name in names}
    return Columns("time", np.arange(length), columns)


def picture():
    file = io.BytesIO()
    figure = Figure()
    figure.subplots().plot(rng.normal(size=50))
    figure.savefig(file, format="png")
    return file.getvalue()


ARRAYS = {"states": rng.normal(size=(300, 3)), "status": "converged", "gaps": [True]}
PNG = picture()
CSV = table(["a", "b"]).as_bytes(".csv")
JSON = json.dumps({"parameters": list(range(999))}).encode()


def draw(path, monkeypatch):
    monkeypatch.setattr(demo_figure, "posterior_bands", lambda *_: None)
    monkeypatch.setattr(demo_figure, "draw_figure", lambda *_: Drawn())
    solved = type("Solved", (), {"num_iters": 1})
    demo_figure.write_figure(path, None, None, {demo_figure.BAND_METHOD: solved})


class Drawn:
    def savefig(self, file, **_):
        figure = Figure()
        figure.subplots().plot(np.arange(50))
        figure.savefig(file, format="png")


WRITERS = {
    "npz": lambda path, _: writing.write_npz(path, ARRAYS),
    "csv": lambda path, _: writing.write_files({path: CSV}),
    "json": lambda path, _: writing.write_files({path: JSON}),
    "png": draw,
}


def refused(write, *args):
    """What a writer says: one line, of this file."""
    with pytest.raises(UsageError) as error:
        write(*args)
    said = str(error.value)
    assert "\n" not in said
    return said


@pytest.mark.skipif(sys.platform != "linux", reason="SIGXFSZ, /proc")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_that_is_full_after_any_number_of_bytes(
    kind, tmp_path, at_most, monkeypatch
):
    path = tmp_path / f"result.{kind}"
    WRITERS[kind](path, monkeypatch)
    whole = path.read_bytes()
    path.write_bytes(OLD)
    last = len(whole) - 1
    for room in (0, 1, last - 1, last, *rng.integers(2, last, 12)):
        at_most(int(room))
        said = refused(WRITERS[kind], path, monkeypatch)
        assert said == f"cannot write {path}: {os.strerror(errno.EFBIG)}."
        assert os.listdir(tmp_path) == [path.name]
        assert path.read_bytes() == OLD
    at_most(len(whole) + 1)
    WRITERS[kind](path, monkeypatch)
    assert len(path.read_bytes()) == len(whole)


CALLS = ("fsync", "replace")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", WRITERS)
def test_what_the_system_finds_at_the_end(kind, call, tmp_path, monkeypatch):
    """A disk over the network says only then that it is full."""

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / f"result.{kind}"
    path.write_bytes(OLD)
    monkeypatch.setattr(os, call, refuse)
    said = refused(WRITERS[kind], path, monkeypatch)
    assert said == f"cannot write {path}: No space left on device."
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == OLD


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("instead", [None, "file"])
def test_a_directory_that_goes_while_its_file_is_written(
    kind, instead, tmp_path, monkeypatch
):
    folder = tmp_path / "results"
    folder.mkdir()
    path = folder / f"result.{kind}"

    def go(number, real=os.fsync):
        real(number)
        shutil.rmtree(folder)
        if instead is not None:
            folder.write_bytes(OLD)

    monkeypatch.setattr(os, "fsync", go)
    said = refused(WRITERS[kind], path, monkeypatch)
    assert said.startswith(f"cannot write {path}: ")
    assert os.listdir(tmp_path) == (["results"] if instead else [])


@pytest.mark.parametrize("failing", range(4))
def test_several_files_are_all_new_or_all_old(failing, tmp_path, monkeypatch):
    """The write, or the flush, of one of three fails: no name was taken before."""
    paths = [tmp_path / name for name in ("a.csv", "b.png", "c.json")]
    for path in paths:
        path.write_bytes(OLD)
    calls = [0]

    def refuse(number, real=os.fsync):
        calls[0] += 1
        if calls[0] == failing + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    monkeypatch.setattr(os, "fsync", refuse)
    files = dict(zip(paths, (CSV, PNG, JSON)))
    if failing < len(paths):
        assert str(paths[failing]) in refused(writing.write_files, files)
        assert [path.read_bytes() for path in paths] == [OLD] * 3
    else:
        writing.write_files(files)
        assert [path.read_bytes() for path in paths] == [CSV, PNG, JSON]
    assert sorted(os.listdir(tmp_path)) == [path.name for path in paths]


@pytest.fixture
def series(tmp_path):
    path = tmp_path / "series.csv"
    np.savetxt(path, rng.normal(size=60).cumsum(), header="v", comments="")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="SIGXFSZ, /proc")
@pytest.mark.parametrize("room", [100, 2000])
def test_commands_end_with_a_line_and_code_2(series, tmp_path, at_most, capsys, room):
    """And with what was there before; the computation itself was done."""
    out = tmp_path / "out"
    out.mkdir()
    evaluate = ["evaluate", f"--input={series}", "--cell=rnn", "--state-size=2"]
    fit = ["fit", str(series), "--model", "level", "--forecast=30", "--max-iters=2"]
    parameters = out / "p.json"
    for argv, flags in (
        (evaluate, {"--output": out / "o.npz"}),
        (fit, {"--output": out / "o.csv", "--figure": out / "o.png"}),
    ):
        parameters.write_bytes(OLD)
        for path in flags.values():
            path.write_bytes(OLD)
        places = [f"{flag}={path}" for flag, path in flags.items()]
        if argv is fit:
            places.append(f"--save-params={parameters}")
        at_most(room)
        code = cli.main([*argv, *places])
        at_most(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        told = capsys.readouterr()
        assert code == 2, told
        assert told.err.startswith(f"elk-ssm: error: cannot write {out}")
        assert told.err.count("\n") == 1
        assert told.out.count("\n") == 1  # What was read.
        assert {path.read_bytes() for path in out.iterdir()} == {OLD}
