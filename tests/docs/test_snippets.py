"""The code of README and quickstart runs as it stands, at a small size."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[2]
SMALLER = {"10_000": "600", "inputs[:1000], inputs[1000:2000]": "inputs, inputs"}


def blocks(path):
    """Blocks of Python on a page, parts of other files included."""

    def include(found):
        text = (ROOT / found[1]).read_text()
        section = text.split(f"[start:{found[2]}] -->")[1]
        return section.split(f"<!-- --8<-- [end:{found[2]}]")[0]

    text = re.sub(r'^--8<-- "(\S+):(\w+)"$', include, path.read_text(), flags=re.M)
    return re.findall(r"```python\n(.*?)```", text, re.S)


def run(code, names):
    for long, short in SMALLER.items():
        code = code.replace(long, short)
    exec(compile(code, "<page>", "exec"), names)


def test_the_quickstart_runs(capsys):
    start, batch, training, pytrees = blocks(ROOT / "docs" / "quickstart.md")
    names = {}
    for code in (start, batch, pytrees):
        run(code, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("(600, 8) converged sequential")
    assert printed[1:3] == ["(8, 8)", "(600, 8)"]
    assert printed[3] == "(2, 600, 8) [0 0]"
    assert printed[4] == "(500, 2) 500"
    assert jnp.isfinite(names["sol"].states["r"]).all()
    compile(training, "<page>", "exec")  # run by tests/test_training_pattern.py


def test_the_page_on_chains_runs(capsys):
    pytest.importorskip("blackjax")
    pytest.importorskip("arviz")
    names = {}
    for code in blocks(ROOT / "docs" / "chains.md"):
        run(code.replace("num_samples=200", "num_samples=20"), names)
    assert capsys.readouterr().out.startswith("(4, 20, 2) [")
    assert dict(names["data"].posterior.sizes)["draw"] == 20


def test_the_page_on_the_objects_of_dynamax_runs(capsys):
    accelerated, alone = blocks(ROOT / "docs" / "dynamax_objects.md")
    names = {}
    run(accelerated, names)
    assert jnp.isfinite(names["fitted"].dynamics.cov).all()
    assert (jnp.diff(names["values"]) > 0).all()
    run(alone, names := {})
    assert bool(names["found"].converged)
    assert capsys.readouterr().out.splitlines()[-2].startswith("True")


def test_the_page_on_nonlinear_models_fits_a_singular_one(capsys):
    (code,) = (c for c in blocks(ROOT / "docs" / "nonlinear_ssm.md") if "fit(" in c)
    names = {}
    run(code.replace("num_steps=20", "num_steps=2"), names)
    objective = names["fitted"].objective
    assert objective[1] > objective[0]
    assert capsys.readouterr().out.endswith("converged\n")


def test_the_page_on_models_runs(capsys):
    for code in blocks(ROOT / "docs" / "models.md"):
        run(code.replace("(20, 80)", "(2, 30)"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("True {'level.variance'")
    assert printed[-2:-1] == ["14"]
    assert printed[-1].startswith("(2,)")


def test_the_readme_shows_the_same_quickstart():
    readme, quickstart = (
        blocks(ROOT / name) for name in ("README.md", "docs/quickstart.md")
    )
    assert readme[0] == quickstart[0]


def test_the_differential_equations_run():
    for code in blocks(ROOT / "docs" / "differential_equations.md"):
        names = {}
        run(code.replace("0.01", "0.1"), names)
        assert names.keys() & {"sol", "again"}
