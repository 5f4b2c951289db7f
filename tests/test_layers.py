"""Imports run downwards only, and importing the package changes nothing."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import elk_ssm

ROOT = Path(elk_ssm.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
OPTIONAL = {
    "arviz": {"interop/arviz.py"},
    "blackjax": {"interop/nuts.py"},  # for `chains` any pure function is a kernel
    "dynamax": {"interop/dynamax.py"},
    "tensorflow_probability": {"interop/tfp.py"},
    "diffrax": {"interop/diffrax_terms.py"},
}

GROUND = {
    "_limits",
    "_memory",
    "_jax",
    "_platforms",
    "_types",
    "_trees",
    "_programs",
    "_closures",
    "_forward_mode",
}
GROUND |= {
    "_failing",
    "_order",
    "_showing",
    "_status",
    "_values",
    "_recurrence",
    "_loop",
    "_progress",
    "_start",
    "solution",
}
FOLDERS = {
    **{
        "kernels": 0,
        "linalg": 1,
        "parallel": 2,
        "kalman": 3,
        "surrogate": 4,
        "nssm": 4,
    },
    **{"solve": 5, "interop": 6},
}
FACE = {"__init__", "__main__", "methods", "cli", "plotting", "models", "fitted"}


def name_of(path):
    """Path of a module below the package, such as `kalman/affine` or `scan`."""
    return path.relative_to(ROOT).with_suffix("").as_posix()


def floor(name):
    """0 ground, 1 matrices, 2 time, 3 algebra, 4 models, 5 engine, 6 tasks, 7 face."""
    top = name.split("/")[0]
    if top in FOLDERS:
        return FOLDERS[top]
    return 0 if top in GROUND else 7 if top in FACE else 6


def imported(path):
    """Absolute names of everything that a module imports, wherever in the file."""
    package = ["elk_ssm", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                deeper = ROOT.parent.joinpath(*module.split("."), f"{alias.name}.py")
                folder = deeper.with_suffix("")
                known = deeper.exists() or (folder / "__init__.py").exists()
                yield f"{module}.{alias.name}" if known else module


def targets(path):
    """Modules of the package that a module imports, as `name_of` writes them."""
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "elk_ssm":
            yield "/".join(parts[1:]) or "__init__"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_import_runs_up_the_floors(path):
    here = name_of(path)
    arrows = [f"{here} -> {t}" for t in targets(path) if floor(t) > floor(here)]
    assert not arrows


@pytest.mark.parametrize("folder", ["linalg", "parallel", "kalman"])
def test_the_algebra_knows_nothing_but_itself(folder):
    algebra = {"linalg", "parallel", "kalman"}
    # A mesh of matrices, or a matrix that knows where time lives, would be a knot.
    # What is combined over time is written out by what takes programs apart.
    parallel = {"parallel", "kernels"}
    known = {"linalg": {"linalg"}, "parallel": parallel}.get(folder, algebra)
    known = known | {"_jax", "_order", "_platforms", "_showing"}
    for path in sorted((ROOT / folder).glob("*.py")):
        assert {t.split("/")[0] for t in targets(path)} <= known, name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_optional_packages_are_imported_in_one_place(path):
    here = path.relative_to(ROOT).as_posix()
    for name in imported(path):
        assert here in OPTIONAL.get(name.split(".")[0], {here})


def test_the_reader_sees_arrows():
    arrows = set(targets(ROOT / "solve" / "loop.py"))
    assert {"kalman/affine", "solve/gate", "solution"} <= arrows
    assert floor("linalg/dense") < floor("parallel/driver") < floor("kalman/affine")
    assert floor("kalman/affine") < floor("surrogate/noise") < floor("solve/loop")
    assert floor("kalman/lgssm") < floor("nssm/iterate") < floor("solve/loop")
    assert floor("solve/loop") < floor("evaluation") < floor("methods")
    assert any(name.startswith("jax") for name in imported(ROOT / "evaluation.py"))


def documented():
    """Full names of what users call: the face, and what the documentation names."""
    face = (getattr(elk_ssm, name) for name in elk_ssm.__all__)
    names = {f"{x.__module__}.{x.__name__}" for x in face if hasattr(x, "__module__")}
    for page in (Path(__file__).parents[1] / "docs" / "api").glob("*.md"):
        names |= set(re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE))
    return names


def functions(node, name, owner=None):
    """Every function below a node, its outermost name, and whether it is a method."""
    for child in ast.iter_child_nodes(node):
        inner = isinstance(child, ast.FunctionDef | ast.ClassDef)
        outermost = owner or (f"{name}.{child.name}" if inner else None)
        if isinstance(child, ast.FunctionDef):
            yield child, outermost, isinstance(node, ast.ClassDef)
        yield from functions(child, name, outermost)


def parameters(function, is_method):
    """Number of parameters, `self` apart."""
    args = function.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    return len(named) + bool(args.vararg) + bool(args.kwarg) - is_method


def lines(function):
    """Number of lines, the docstring apart."""
    first = function.body[0]
    text = ast.get_docstring(function) is not None
    described = first.end_lineno - first.lineno + 1 if text else 0
    return function.end_lineno - function.lineno + 1 - described


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_are_small(path):
    text, full = path.read_text(), "elk_ssm." + name_of(path).replace("/", ".")
    assert len(text.splitlines()) <= 300
    public = documented()
    for function, outermost, is_method in functions(ast.parse(text), full):
        where = f"{outermost}, {function.name}"
        assert lines(function) <= 60, where
        if outermost not in public:
            assert parameters(function, is_method) <= 7, where


def test_the_reader_counts_lines_and_parameters():
    source = """
class A:
    def f(self, a, *b, c=1, **d):
        '''One
        two.'''
        def inner(x, /, y): return x
"""
    found = list(functions(ast.parse(source), "m"))
    assert [outermost for _, outermost, _ in found] == ["m.A", "m.A"]
    assert [parameters(f, method) for f, _, method in found] == [4, 2]
    assert [lines(f) for f, *_ in found] == [2, 1]
    assert "elk_ssm.evaluation.evaluate" in documented()
    assert "elk_ssm.interop.cells.layers.equinox.RNN" in documented()


SCRIPT = """
import json, sys
import jax
before = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
import elk_ssm as elk
import jax.numpy as jnp
elk.evaluate(lambda x, u: 0.5 * x + u, jnp.zeros(1), jnp.ones((3, 1)))
after = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
print(json.dumps([before, after, sorted(sys.modules)]))
"""


def test_importing_changes_no_setting_and_loads_nothing_optional():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    before, after, modules = json.loads(run.stdout.splitlines()[-1])
    assert before == after
    loaded = set(modules)
    assert "elk_ssm.solve.loop" in loaded
    optional = {"dynamax", "tensorflow_probability", "rich", "matplotlib"}
    optional |= {"arviz", "blackjax", "diffrax", "pandas", "h5py"}
    assert not optional & loaded


INTERNAL = re.compile(
    r"jax\.core\.|jax\.extend|jax\.interpreters|jax\._src|partial_eval|SymbolicZero"
    r"|custom_batching|jaxpr_thunk|jvp_jaxpr_fun"
)


def test_internal_and_young_parts_of_jax_are_named_in_one_file():
    """A new version of JAX is one file to read: see `_jax`."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in MODULES
        for line in path.read_text().splitlines()
        if INTERNAL.search(line) and not line.lstrip().startswith("`")
    }
    assert found == {"_jax.py"}
