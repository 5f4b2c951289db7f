"""Every block of Python of README and pages runs, pasted alone, at a small size.

The examples of docstrings are run alone by `tests/test_doctests.py`.
"""

import contextlib
import functools
import io
import re
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import elk_ssm as elk

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What keeps an example short here: other sizes, and nothing else.
SMALLER = {
    "10_000": "600",
    "num_samples=200": "num_samples=20",
    "num_steps=20": "num_steps=2",
    "0.0, 5.0, 0.01,": "0.0, 5.0, 0.1,",
    "(2, 1000, 8)": "(2, 600, 8)",
    "(20, 80)": "(2, 30)",
}
_BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```", re.M | re.S)


def blocks(path):
    """Blocks of Python on a page, parts of other files included."""

    def include(found):
        text = (ROOT / found[1]).read_text()
        section = text.split(f"[start:{found[2]}] -->")[1]
        return section.split(f"<!-- --8<-- [end:{found[2]}]")[0]

    text = re.sub(r'^--8<-- "(\S+):(\w+)"$', include, path.read_text(), flags=re.M)
    return [textwrap.dedent(code) for _, code in _BLOCK.findall(text)]


EXAMPLES = {
    (str(path.relative_to(ROOT)), number): code
    for path in PAGES
    for number, code in enumerate(blocks(path))
}
# A block that a page takes from another one is run once.
DISTINCT = {code: where for where, code in reversed(EXAMPLES.items())}


@functools.cache
def run(code):
    """Run a block as if pasted after `import elk_ssm as elk`: its names, its output."""
    for long, short in SMALLER.items():
        code = code.replace(long, short)
    names, printed = {"elk": elk}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<page>", "exec"), names)
    return names, printed.getvalue()


def result(page, number):
    """What a block of a page did."""
    return run(EXAMPLES[page, number])


@pytest.mark.parametrize("where", DISTINCT.values(), ids=lambda w: f"{w[0]}-{w[1]}")
def test_an_example_runs_alone(where):
    names, _ = result(*where)
    assert not jax.config.jax_enable_x64  # no example leaves a setting behind
    for name, value in names.items():
        if isinstance(value, (elk.Solution, elk.Smoothed)):
            assert bool(jnp.all(value.status == elk.Status.converged)), name


def test_examples_use_public_names_only():
    for code in DISTINCT:
        assert not re.search(r"elk\._|from elk_ssm\._|import _", code)
        assert set(re.findall(r"\belk\.(\w+)", code)) <= {*elk.__all__, "interop"}
        inside = re.findall(r"(?:from|import) elk_ssm\.(\w+)", code)
        assert set(inside) <= {"interop", "plotting"}


def test_there_are_examples_to_run():
    assert len(DISTINCT) > 15


def test_the_quickstart_prints_what_it_says():
    printed = "".join(result("docs/quickstart.md", number)[1] for number in (0, 1, 3))
    lines = printed.splitlines()
    assert lines[0].startswith("(600, 8) converged sequential")
    assert lines[1:3] == ["(8, 8)", "(600, 8)"]
    assert lines[3] == "(2, 600, 8) [0 0]"
    assert lines[4] == "(500, 2) 500"


def test_the_training_step_of_the_quickstart_moves():
    names, _ = result("docs/quickstart.md", 2)
    assert int(names["status"]) == elk.Status.converged
    assert bool(jnp.any(names["params"] != 0.3 * jnp.eye(4)))


def test_the_page_on_chains_says_the_shapes():
    assert result("docs/chains.md", 0)[1].startswith("(4, 20, 2) [")
    assert dict(result("docs/chains.md", 1)[0]["data"].posterior.sizes)["draw"] == 20


def test_the_page_on_the_objects_of_dynamax_fits():
    names, _ = result("docs/dynamax_objects.md", 0)
    assert jnp.isfinite(names["fitted"].dynamics.cov).all()
    assert (jnp.diff(names["values"]) > 0).all()
    names, printed = result("docs/dynamax_objects.md", 1)
    assert bool(names["found"].converged)
    assert printed.splitlines()[-2].startswith("True")


def test_the_page_on_nonlinear_models_fits_a_singular_one():
    names, printed = result("docs/nonlinear_ssm.md", 1)
    objective = names["fitted"].objective
    assert objective[1] > objective[0]
    assert printed.endswith("converged\n")


def test_the_page_on_models_says_what_it_fits():
    numbered = [EXAMPLES[key] for key in EXAMPLES if key[0] == "docs/models.md"]
    assert result("docs/models.md", 0)[1].startswith("True {'level.variance'")
    for number, code in enumerate(numbered):
        if "state_names" in code:
            assert result("docs/models.md", number)[1].endswith("14\n")
        if "twenty series" in code:
            assert result("docs/models.md", number)[1].startswith("(2,) 2")


def test_the_readme_shows_the_same_quickstart():
    assert EXAMPLES["README.md", 0] == EXAMPLES["docs/quickstart.md", 0]
