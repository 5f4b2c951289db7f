"""The command line: what it writes, what it says, and how it ends."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

import elk_ssm as elk
from elk_ssm import cli
from elk_ssm.cli import demo as demo_module
from elk_ssm.cli import demo_figure
from elk_ssm.cli.cells import CELL_NAMES, make_cell
from elk_ssm.cli.demo_table import conclusion, show_runs
from elk_ssm.cli.method_names import METHOD_NAMES, make_method
from elk_ssm.cli.recording import membrane_recording


@pytest.fixture
def recording(tmp_path):
    """Fifty rows of two named columns, and their values."""
    values = np.random.default_rng(0).normal(size=(50, 2))
    path = tmp_path / "data.csv"
    np.savetxt(path, values, delimiter=",", header="v,w", comments="")
    return path, values


@pytest.fixture
def evaluate(recording, tmp_path):
    """Run `elk-ssm evaluate` on the recording with some arguments changed."""

    def evaluate(*changes, **overrides):
        options = {"input": recording[0], "cell": "gru", "state-size": 3}
        options |= {"method": "deer", "output": tmp_path / "out.npz"}
        options |= {key.replace("_", "-"): value for key, value in overrides.items()}
        given = [f"--{k}={v}" for k, v in options.items() if v is not None]
        return cli.main(["evaluate", *given, *changes])

    return evaluate


def oracle(cell_name, size, inputs, seed=0):
    inputs = np.asarray(inputs, np.float32)
    cell = make_cell(cell_name, size, inputs.shape[1], seed)
    states = elk.sequential(cell.step, cell.initial_state, inputs).states
    return [np.asarray(x) for x in jax.tree.leaves(states)]


def leftovers(path):
    return [name for name in os.listdir(path) if name.endswith(".tmp")]


class TestEvaluate:
    @pytest.mark.parametrize("cell", CELL_NAMES)
    def test_states_are_the_sequential_ones(self, evaluate, recording, tmp_path, cell):
        assert evaluate(cell=cell, seed=5) == 0
        written = np.load(tmp_path / "out.npz")
        *memory, hidden = oracle(cell, 3, recording[1], seed=5)
        np.testing.assert_allclose(written["states"], hidden, atol=1e-5)
        assert ("memory" in written) == bool(memory)
        for expected in memory:
            np.testing.assert_allclose(written["memory"], expected, atol=1e-5)

    @pytest.mark.parametrize("method", METHOD_NAMES)
    def test_every_method(self, evaluate, recording, tmp_path, method):
        assert evaluate(method=method) == 0
        written = np.load(tmp_path / "out.npz")
        (expected,) = oracle("gru", 3, recording[1])
        np.testing.assert_allclose(written["states"], expected, atol=1e-4)

    def test_file_content(self, evaluate, recording, tmp_path, capsys):
        assert evaluate(method="quasi_elk", noise=10, tol=1e-4, max_iters=40) == 0
        written = np.load(tmp_path / "out.npz", allow_pickle=False)
        assert written["states"].shape == (50, 3)
        assert written["status"] == "converged"
        assert 1 < written["num_iters"] <= 40
        assert 0 <= written["residual_norm"] < 1e-3
        settings = json.loads(str(written["settings"]))
        assert settings.pop("version")
        assert settings == {
            "cell": "gru",
            "state_size": 3,
            "seed": 0,
            "method": "quasi_elk",
            "noise": 10.0,
            "tol": 1e-4,
            "max_iters": 40,
            "standardize": False,
            "input": str(recording[0]),
            "column": [],
            "by": None,
            "time_column": None,
            "missing": "refuse",
            "transpose": None,
            "key": None,
            "delimiter": None,
            "decimal": None,
            "header": None,
        }
        line = "50 samples x 2 columns (v, w, header), no gaps"
        assert written["read"] == line
        assert list(written["columns"]) == ["v", "w"]
        assert written["gaps"].shape == (50, 2)
        out, err = capsys.readouterr()
        assert out.splitlines()[0] == line
        assert "gru, quasi_elk: converged after" in out
        assert not err
        assert sorted(os.listdir(tmp_path)) == ["data.csv", "out.npz"]

    def test_noise_and_tolerance_change_the_iterations(self, evaluate, tmp_path):
        counts = []
        for noise, tol in ((1e2, 1e-5), (1, 1e-5), (1, 1e-2)):
            assert evaluate(method="elk", noise=noise, tol=tol) == 0
            counts.append(int(np.load(tmp_path / "out.npz")["num_iters"]))
        assert counts[0] < counts[1]
        assert counts[2] < counts[1]

    def test_columns_and_standardisation(self, evaluate, recording, tmp_path):
        assert evaluate("--standardize", "--column", "w", "0") == 0
        inputs = recording[1][:, [1, 0]]
        inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
        (expected,) = oracle("gru", 3, inputs)
        states = np.load(tmp_path / "out.npz")["states"]
        np.testing.assert_allclose(states, expected, atol=1e-5)

    def test_npy_input_of_one_sample(self, evaluate, tmp_path):
        np.save(tmp_path / "one.npy", np.array([0.5]))
        assert evaluate(input=tmp_path / "one.npy") == 0
        (expected,) = oracle("gru", 3, [[0.5]])
        states = np.load(tmp_path / "out.npz")["states"]
        np.testing.assert_allclose(states, expected, atol=1e-6)

    def test_infinite_noise_is_no_damping(self, evaluate, tmp_path):
        results = []
        for options in ({"method": "elk", "noise": "inf"}, {"method": "deer"}):
            assert evaluate(**options) == 0
            results.append(np.load(tmp_path / "out.npz")["states"])
        np.testing.assert_array_equal(*results)

    def test_no_convergence_is_said_and_written(self, evaluate, tmp_path, capsys):
        assert evaluate(max_iters=1) == 1
        assert np.load(tmp_path / "out.npz")["status"] == "max_iters_reached"
        err = capsys.readouterr().err
        assert err.startswith("elk-ssm: not converged: ")
        assert err.count("\n") == 1

    def test_an_interruption_is_quiet(self, evaluate, tmp_path, capsys, monkeypatch):
        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(np, "savez", interrupt)
        assert evaluate() == 130
        assert capsys.readouterr().err == "elk-ssm: interrupted\n"
        assert os.listdir(tmp_path) == ["data.csv"]

    def test_gaps_are_filled_as_asked_and_said(
        self, evaluate, recording, tmp_path, capsys
    ):
        text = "t,v\n0,1\n1,\n2,3\n3,4\n"
        recording[0].write_text(text)
        assert evaluate("--time-column", "t") == 2
        assert "a gap at" in capsys.readouterr().err
        assert evaluate("--time-column", "t", "--missing", "interpolate") == 0
        line = "4 samples x 1 column (v, header), 1 gap, time t from 0 to 3, gaps "
        assert capsys.readouterr().out.startswith(line + "interpolated\n")
        written = np.load(tmp_path / "out.npz")
        (expected,) = oracle("gru", 3, [[1], [2], [3], [4]])
        np.testing.assert_allclose(written["states"], expected, atol=1e-5)
        np.testing.assert_array_equal(written["gaps"][:, 0], [0, 1, 0, 0])
        np.testing.assert_array_equal(written["time"], [0, 1, 2, 3])

    def test_every_flag_of_reading_arrives(self, evaluate, recording, tmp_path, capsys):
        recording[0].write_text("1;2,5\n2;3,5\n3;1,0\n")
        flags = ["--delimiter", ";", "--decimal", ",", "--no-header"]
        flags += ["--time-column", "0", "--by", "number", "--no-transpose"]
        assert evaluate(*flags) == 0
        assert "3 samples x 1 column (1, no header), no gaps" in capsys.readouterr().out
        np.savez(tmp_path / "two.npz", a=np.ones((2, 9)), b=np.ones(3))
        keyed = {"input": tmp_path / "two.npz", "key": "a"}
        assert evaluate("--transpose", **keyed) == 0
        assert "9 samples x 2 columns (0, 1), no gaps" in capsys.readouterr().out

    def test_out_of_memory_is_one_line(self, evaluate, capsys, monkeypatch):
        def fail(*args, **kwargs):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory\nmore")

        monkeypatch.setattr(elk, "evaluate", fail)
        assert evaluate() == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "out of memory: RESOURCE_EXHAUSTED: no memory, and at most" in said
        assert "What takes less: " in said


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"input": "missing.csv"}, "No such file"),
            ({"input": "."}, "ending in one of .csv, .tsv"),
            ({"input": None}, "--input"),
            ({"output": None}, "--output"),
            ({"cell": None}, "--cell"),
            ({"cell": "cnn"}, "invalid choice: 'cnn'"),
            ({"method": "newton"}, "invalid choice: 'newton'"),
            ({"column": "x"}, "no column 'x'"),
            ({"state_size": "2.5"}, "expected an integer from 1 to 16384, got '2.5'"),
            ({"state_size": 0}, "got '0'"),
            ({"state_size": 10**9}, "got '1000000000'"),
            ({"seed": -1}, "got '-1'"),
            ({"max_iters": 0}, "got '0'"),
            ({"tol": "-1"}, "expected a number above 0 and below 1, got '-1'"),
            ({"tol": "0"}, "got '0'"),
            ({"tol": "inf"}, "got 'inf'"),
            ({"tol": "nan"}, "got 'nan'"),
            ({"tol": "1"}, "got '1'"),
            ({"missing": "guess"}, "invalid choice: 'guess'"),
            ({"delimiter": "ab"}, "expected one character that is no part of a number"),
            ({"delimiter": "1"}, "expected one character that is no part of a number"),
            ({"decimal": ";"}, "invalid choice: ';'"),
            ({"method": "elk", "noise": "-1"}, "expected a number above 0, got '-1'"),
            ({"method": "elk", "noise": "0"}, "got '0'"),
            ({"method": "elk", "noise": "nan"}, "got 'nan'"),
            ({"method": "elk", "noise": "much"}, "got 'much'"),
            ({"method": "deer", "noise": "1"}, "deer makes no use of it"),
            ({"output": "missing/out.npz"}, "does not exist"),
            ({"output": "out.npy"}, "ending in .npz"),
            ({"methods": "deer"}, "unrecognized arguments"),
        ],
    )
    def test_one_line_and_exit_code_2(
        self, evaluate, tmp_path, monkeypatch, capsys, options, expected
    ):
        monkeypatch.chdir(tmp_path)
        assert evaluate(**options) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("elk-ssm: error: ")
        assert err.count("\n") == 1
        assert expected in err
        assert os.listdir(tmp_path) == ["data.csv"]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "empty"),
            ("v\n1\nx\n", "line 3, column v: 'x'"),
            ("1,2.5\n3\n", "1 fields"),
            ("1e39\n2.5\n", "too large for float32"),
        ],
    )
    def test_bad_data(self, evaluate, recording, tmp_path, capsys, text, expected):
        recording[0].write_text(text)
        assert evaluate() == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith(f"elk-ssm: error: {recording[0]}: ")
        assert err.count("\n") == 1
        assert expected in err
        assert os.listdir(tmp_path) == ["data.csv"]

    @pytest.mark.parametrize("argv", [[], ["bake"], ["demo", "--length", "0"]])
    def test_bad_commands(self, argv, capsys):
        assert cli.main(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("elk-ssm: error: ")
        assert err.count("\n") == 1

    def test_demo_asked_for_too_much(self, tmp_path, capsys):
        assert cli.main(["demo", "--length", "12001"]) == 2
        assert "has 12000 samples" in capsys.readouterr().err
        (tmp_path / "file").touch()
        assert cli.main(["demo", "--output-dir", str(tmp_path / "file")]) == 2
        assert "cannot use the directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["--version"], "elk-ssm "), (["--help"], "demo"), (["demo", "--help"], "--seed")],
)
def test_information(argv, expected, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(argv)
    assert done.value.code == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("module", ["elk_ssm", "elk_ssm.cli"])
def test_the_process_ends_with_the_exit_code(tmp_path, module):
    command = [sys.executable, "-m", module, "evaluate", "--input", "missing.csv"]
    command += ["--cell", "gru", "--output", "out.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "elk-ssm: error: cannot read missing.csv: No such file or directory.\n"
    )


LENGTH = 60
DEMO_CELLS = ("gru", "lstm")
DEMO_METHODS = ("deer", "quasi_elk", "picard")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of a small demo: its exit code, the rows of its table, its directory."""
    directory = tmp_path_factory.mktemp("demo") / "new"
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        # Less to compile.
        patch.setattr(demo_module, "STATE_SIZE", 2)
        patch.setattr(demo_module, "CELLS", DEMO_CELLS)
        patch.setattr(demo_module, "METHOD_NAMES", DEMO_METHODS)
        patch.setattr(demo_module, "show_runs", lambda _, runs, __: rows.extend(runs))
        code = cli.main(["demo", f"--length={LENGTH}", f"--output-dir={directory}"])
    return code, rows, directory


class TestDemo:
    def test_rows(self, demo):
        code, rows, _ = demo
        assert code == 0
        names = [(row.cell, row.method) for row in rows]
        methods = ("sequential", *DEMO_METHODS)
        assert names == [(cell, method) for cell in DEMO_CELLS for method in methods]

    def test_what_reports_converged_is_right(self, demo):
        reported = [row for row in demo[1] if row.status == "converged"]
        assert {"deer", "quasi_elk"} <= {row.method for row in reported}
        for row in reported:
            assert row.max_error < 1e-4, row.method

    def test_states_are_of_the_recording(self, demo):
        gru = demo[1][0]
        (expected,) = oracle("gru", 2, membrane_recording(LENGTH))
        np.testing.assert_allclose(gru.solution.states, expected, atol=1e-6)
        assert gru.run_seconds > 0
        assert gru.compile_seconds > 0

    def test_figure(self, demo):
        directory = demo[2]
        assert os.listdir(directory) == [demo_module.FIGURE_NAME]
        assert (directory / demo_module.FIGURE_NAME).read_bytes().startswith(b"\x89PNG")

    def test_figure_of_one_sample(self, tmp_path):
        cell = make_cell("gru", 2, 1, seed=0)
        method, inputs = make_method("quasi_elk"), np.zeros((1, 1), np.float32)
        args = cell.step, cell.initial_state, inputs
        solution = elk.evaluate(*args, method=method, history=3)
        path = tmp_path / "one.png"
        demo_module.write_figure(path, cell, inputs, {"quasi_elk": solution})
        assert path.stat().st_size > 0

    def test_bands_close_on_the_trajectory(self):
        cell = make_cell("gru", 2, 1, seed=0)
        inputs = jax.numpy.asarray(membrane_recording(LENGTH), "float32")
        bands = demo_figure.posterior_bands(cell, inputs, 12)
        assert bands.iterations == (1, 2, 4, 12)
        assert bands.means.shape == bands.stds.shape == (4, LENGTH)
        assert (np.diff(bands.stds.max(axis=1)) < 0).all()
        error = np.abs(bands.means - bands.reference).max(axis=1)
        assert error[-1] < 1e-4 < error[0]

    @pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
    def test_the_table_is_whole_on_any_terminal(self, demo, capsys, width):
        rows = [*demo[1], demo[1][1]._replace(max_error=float("nan"))]
        show_runs(Console(width=width), rows, "title")
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        words = " ".join(lines).split()
        assert not any("…" in word for word in words)
        for row in rows:
            assert f"{1e3 * row.run_seconds:.1f}" in " ".join(words).replace(",", "")
        assert " ".join(words).count("converged (WRONG)") == 1
        assert words.count("sequential") + words.count("sequential:") == len(DEMO_CELLS)

    def test_the_conclusion_counts_and_compares(self, demo):
        rows = demo[1]
        said = conclusion(rows)
        good = sum(row.status == "converged" for row in rows)
        assert said.startswith(
            f"{good} of {len(DEMO_CELLS) * len(DEMO_METHODS)} solves"
        )
        assert said.endswith(".")
        assert "the fastest here" in said
        wrong = [r._replace(max_error=1.0) if r.method == "deer" else r for r in rows]
        assert "deer SAID CONVERGED AND WAS WRONG" in conclusion(wrong)
        failed = [
            r._replace(status="max_iters_reached") if r.method == "picard" else r
            for r in rows
        ]
        assert "picard needed more iterations than they had" in conclusion(failed)

    def test_the_legend_has_only_curves_that_are_there(self, demo):
        solutions = {r.method: r.solution for r in demo[1][1 : 1 + len(DEMO_METHODS)]}
        still = solutions["deer"].history._replace(
            residual_norm=np.full_like(solutions["deer"].history.residual_norm, np.nan)
        )
        solutions["deer"] = solutions["deer"]._replace(history=still)
        ax = Figure().subplots()
        demo_figure._draw_residuals(ax, solutions)
        shown = [text.get_text().split(":")[0] for text in ax.get_legend().get_texts()]
        assert shown == ["quasi_elk", "picard"]
