"""The benchmarks stay alive: each runs at a small size, without a clock's verdict."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib

import jax
import pytest

import elk_ssm as elk
from benchmarks import __main__ as runner
from benchmarks import (
    chains,
    convergence,
    differential_equations,
    gpu,
    gradients,
    harness,
    sharding,
    speed,
    speed_page,
)
from elk_ssm import cli
from elk_ssm.cli.bench import NAMES


def test_gradients_run_and_are_exact_but_for_the_published_backward():
    rows = gradients.measure((4,), (60,))
    errors = {row["candidate"]: row["error"] for row in rows}
    assert errors.pop("quasi-DEER, published backward") > 0.05
    assert max(errors.values()) < 1e-4
    assert all(row["run_ms"] > 0 and row["compile_s"] > 0 for row in rows)
    assert "| auto |" in harness.table(rows, ["candidate", "run_ms"])


def test_convergence_counts_passes_and_depth(x64):
    rows = convergence.measure(("gru_D4",), 60)
    assert [row["method"] for row in rows] == list(convergence.METHODS)
    assert all(row["status"] == "converged" for row in rows)
    assert max(row["error"] for row in rows) < 1e-11
    passes = {row["method"]: row["iterations"] for row in rows}
    assert passes["deer"] < passes["quasi_deer"]
    assert all(row["depth over T"] > 0 for row in rows)


def test_chains_are_those_of_the_loop(x64, monkeypatch):
    pytest.importorskip("blackjax")
    case = "mixture", "MALA"
    only = {case: chains.samplers()[case]}
    monkeypatch.setattr(chains, "samplers", lambda: only)
    rows = chains.measure((12,), {"jacobi": elk.jacobi()})
    assert [row["converged"] for row in rows] == [chains.CHAINS] * len(rows)
    assert max(row["error"] for row in rows) < 1e-9
    assert sum(row["other decisions"] for row in rows) == 0


def test_differential_equations_count_passes_and_windows(x64, monkeypatch):
    chosen = ("picard", "picard, anderson 4")
    methods = {name: differential_equations.METHODS[name] for name in chosen}
    monkeypatch.setattr(differential_equations, "METHODS", methods)
    problem = "Van der Pol to 2"
    (row,) = differential_equations.count(50, (problem,))
    assert row["picard, anderson 4"] < row["picard"] < 50
    assert row["largest error"] < 1e-6
    made = differential_equations.PROBLEMS[problem](50)
    passes, work = differential_equations.slide(made, 10)
    assert passes > row["picard"]
    assert work < 50 * row["picard"]


def test_sharding_reads_programs_and_efficiency_falls_with_devices():
    (rows,) = sharding.in_processes("--devices", (2,), ["quasi_deer"])
    in_pass, backward = rows
    assert (in_pass["all-gather"], backward["all-gather"]) == (2, 1)
    costs = {"quasi_deer": {"ns": 50.0}}
    for row in sharding.predictions([in_pass | {"devices": 8}], costs):
        shares = [row[f"strong, {devices:,}"] for devices in sharding.MANY]
        assert 1 > shares[0] > shares[1] > shares[2] > 0


@pytest.mark.parametrize(
    "name",
    ["argru_draws", "forced", "kalman", "lyapunov", "predictions", "structured"],
)
def test_small_runs_of_the_others(name, capsys):
    """As `elk-ssm bench NAME --small`; `make small-benchmarks` runs every one so."""
    before = jax.config.jax_enable_x64
    try:
        assert runner.run(name, ["--small"]) == 0
    finally:
        # Some set the precision of their process.
        jax.config.update("jax_enable_x64", before)
    out, err = capsys.readouterr()
    assert out
    assert "error" not in err


@pytest.mark.parametrize(
    ("name", "package"),
    [("differential_equations", "diffrax"), ("structured", "flax"), ("chains", "jax")],
)
def test_a_benchmark_names_the_package_that_it_needs(
    monkeypatch, capsys, name, package
):
    for known in list(sys.modules):
        if known == f"benchmarks.{name}" or known.split(".")[0] == "flax":
            monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, package, None)
    assert runner.run(name, ["--small"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"the benchmark {name} needs {package}: install it, or all" in err


# Takes part where it is installed, in one benchmark.
WHERE_INSTALLED = {"cuthbert"}


def test_all_that_benchmarks_import_is_listed():
    root = harness.ROOT
    project = tomllib.loads((root / "pyproject.toml").read_text())
    listed = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[^\w-]", line)[0].lower() for line in listed}
    imported = set()
    for name in NAMES:
        tree = ast.parse((root / "benchmarks" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    imported -= {*sys.stdlib_module_names, "benchmarks", "tests", "elk_ssm"}
    found = importlib.metadata.packages_distributions()
    for package in imported - WHERE_INSTALLED:
        assert names & {name.lower() for name in found[package]}, package


def test_the_command_line_refuses_unknown_benchmarks(capsys):
    assert cli.main(["bench", "nothing"]) == 2
    assert "invalid choice" in capsys.readouterr().err


def test_without_a_checkout_the_command_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("elk_ssm.cli.bench.__file__", str(tmp_path / "a/b/c/bench.py"))
    assert cli.main(["bench", "gradients"]) == 2
    assert "checkout" in capsys.readouterr().err


def test_a_nan_is_an_infinite_error():
    assert harness.largest_error([float("nan")], [1.0]) == pytest.approx(float("inf"))


def test_speed_runs_and_fills_its_page(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "DOCS", tmp_path)
    monkeypatch.setattr(speed, "OURS", {"quasi_deer": speed.OURS["quasi_deer"]})
    rows = {
        "default": speed.measure_default((4,), (120,)),
        "break_even": speed.measure_break_even((4,), (120,)),
        "methods": speed.measure_methods(2, 60),
        "iterations": speed.measure_iterations((2,), 60),
        "batches": speed.measure_batches((2,), (2,), 60),
        "compile": [{"program": "one", "T": 60, "seconds": 1.0}],
        "long": [{"keep": "last", "T": 60}],
    }
    exact = [
        row["error"] for row in rows["default"] + rows["methods"] if "error" in row
    ]
    assert max(exact) < 1e-4
    speed_page.draw(rows)
    assert (tmp_path / speed_page.FIGURE).stat().st_size > 10_000
    places = speed_page.places({"rows": rows})
    assert "| auto, fused gates |" in places["default"]
    assert "quasi_deer" in places["methods"]


def test_the_accelerator_benchmark_is_right_on_any_device():
    assert all(row["error"] < 1e-4 for row in gpu.check((4,), 60))
    names = [row["candidate"] for row in gpu.measure_affine((2,), 64)]
    assert names == ["copy", "ours", "lax.associative_scan"]


def test_the_accelerator_benchmark_needs_jax_and_numpy_only():
    others = ("dynamax", "tensorflow_probability", "matplotlib", "flax", "optax")
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in others)
    program = f"import sys; {blocked}; import benchmarks.gpu"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=harness.ROOT)
