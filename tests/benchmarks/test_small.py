"""The benchmarks stay alive: each runs at a small size, without a clock's verdict."""

import pytest

from benchmarks import gradients, harness
from elk_ssm import cli


def test_gradients_run_and_are_exact_but_for_the_published_backward():
    rows = gradients.measure((4,), (60,))
    errors = {row["candidate"]: row["error"] for row in rows}
    assert errors.pop("quasi-DEER, published backward") > 0.05
    assert max(errors.values()) < 1e-4
    assert all(row["run_ms"] > 0 and row["compile_s"] > 0 for row in rows)
    assert "| auto |" in harness.table(rows, ["candidate", "run_ms"])


def test_the_command_line_refuses_unknown_benchmarks(capsys):
    assert cli.main(["bench", "nothing"]) == 2
    assert "invalid choice" in capsys.readouterr().err


def test_without_a_checkout_the_command_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("elk_ssm.cli.bench.__file__", str(tmp_path / "a/b/c/bench.py"))
    assert cli.main(["bench", "gradients"]) == 2
    assert "checkout" in capsys.readouterr().err


def test_a_nan_is_an_infinite_error():
    assert harness.largest_error([float("nan")], [1.0]) == pytest.approx(float("inf"))
