"""Standard output that takes nothing more: one line, the right exit code."""

import errno
import io
import os
import subprocess
import sys

import pytest

from elk_ssm import cli
from elk_ssm.cli import output

COMMAND = [sys.executable, "-m", "elk_ssm"]


class Refusing(io.StringIO):
    """A stream that takes so many writes, and then fails."""

    def __init__(self, code, writes=0):
        super().__init__()
        self.error, self.left = OSError(code, os.strerror(code)), writes

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(errno.ENOSPC, 2, "No space left on device"), (errno.EPIPE, 141, "Broken pipe")],
)
@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["evaluate", "--help"]])
def test_help_without_a_reader(monkeypatch, capsys, argv, number, code, word):
    monkeypatch.setattr(sys, "stdout", Refusing(number))
    assert cli.main(argv) == code
    expected = f"elk-ssm: error: cannot write to standard output: {word}.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("writes", [0, 2])
def test_a_result_is_whole_or_not_there(monkeypatch, capsys, tmp_path, writes):
    """The line about the data is first: nothing was computed for nobody."""
    (tmp_path / "v.csv").write_text("v\n1.5\n2.5\n0.5\n")
    monkeypatch.setattr(sys, "stdout", Refusing(errno.EPIPE, writes))
    argv = ["evaluate", f"--input={tmp_path / 'v.csv'}", "--cell=rnn", "--state-size=2"]
    argv += [f"--output={tmp_path / 'o.npz'}", "--method=deer"]
    assert cli.main(argv) == 141
    assert capsys.readouterr().err.count("\n") == 1
    expected = ["o.npz", "v.csv"] if writes else ["v.csv"]
    assert sorted(os.listdir(tmp_path)) == expected


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="not on this system")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_processes(unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        options = {"stderr": subprocess.PIPE, "text": True, "env": environment}
        done = subprocess.run([*COMMAND, "--version"], stdout=full, **options)
    assert done.returncode == 2
    said = "elk-ssm: error: cannot write to standard output: No space left on device.\n"
    assert done.stderr == said
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "--version"], stdout=writer, **options)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr.count("\n") == 1


def test_no_standard_streams_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    output.say("nobody hears")
    output.complain("nor this")
    assert cli.main(["bake"]) == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("width", [20, 40, 60, 120])
def test_a_terminal_wraps_between_words(monkeypatch, width):
    text = "40,000 samples x 1 column (voltage, header), 3 gaps, delimiter tab"
    monkeypatch.setenv("COLUMNS", str(width))
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        output.say(text)
        lines = stream.getvalue().splitlines()
        assert " ".join(lines) == text
        wrapped = stream.isatty()
        assert len(lines) == 1 or wrapped
        assert not wrapped or max(map(len, lines)) <= width
