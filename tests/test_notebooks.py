"""The notebooks run at a small size, and the executed ones are those of the scripts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot
from notebooks import small

FOLDER = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(
    p for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "execute", "small")
)
# Run elsewhere: the first below, the others with more to check in `test_real_data`.
ELSEWHERE = "beyond_one_device", "stochastic_volatility", "spike_rate"
IN_PROCESS = [path for path in SCRIPTS if path.stem not in ELSEWHERE]
SEVERAL = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
EXECUTED = [path for path in SCRIPTS if path.with_suffix(".ipynb").exists()]
LONGEST = 130


def code_of(path):
    """Lines of code of a script, comments and markdown left out."""
    lines = path.read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(autouse=True)
def restored_settings():
    before = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_enable_x64", before[0])
    jax.config.update("jax_default_matmul_precision", before[1])
    pyplot.close("all")


def test_several_devices_at_a_small_size():
    # In a process of its own, whose devices XLA makes up.
    settings = {"MPLBACKEND": "agg", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": SEVERAL}
    command = [sys.executable, "-m", "notebooks.small", "beyond_one_device"]
    done = subprocess.run(
        command,
        env={**os.environ, **settings},
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "cpu:2 holds steps" in done.stdout


@pytest.mark.parametrize("path", IN_PROCESS, ids=lambda p: p.stem)
def test_runs_at_a_small_size(path, monkeypatch, capsys):
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    small.run(path.stem)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_form(path):
    text = path.read_text()
    assert len(code_of(path)) <= LONGEST
    cells = re.split(r"^# %%", text, flags=re.M)
    assert re.match(r" \[markdown\]\n# # ", cells[1]), "the first cell is a title"
    assert "pip install" in cells[1], "it says what to install"
    assert "SMALL" not in text, "sizes are numbers; notebooks/small.py has small ones"
    assert small.source(path.stem) != text
    assert "**Takeaways.**" in cells[-1]
    assert not re.search(r"elk\._|from elk_ssm\._", text), "public names only"


@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: p.stem)
def test_the_executed_notebook_is_that_of_the_script(path):
    jupytext = pytest.importorskip("jupytext")
    script, executed = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(file).cells]
        for file in (path, path.with_suffix(".ipynb"))
    )
    assert script == executed, f"run: make notebooks NOTEBOOKS={path.stem}"


@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: p.stem)
def test_the_executed_notebook_has_outputs_and_no_errors(path):
    jupytext = pytest.importorskip("jupytext")
    cells = jupytext.read(path.with_suffix(".ipynb")).cells
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    assert outputs
    assert "error" not in {o["output_type"] for o in outputs}
    assert path.with_suffix(".ipynb").stat().st_size < 1_000_000
