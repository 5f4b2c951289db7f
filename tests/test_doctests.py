"""The examples in the docstrings are right, and every public name has one."""

import doctest
import importlib
import inspect

import jax
import pytest

import elk_ssm
from elk_ssm import models, plotting
from elk_ssm.interop import (
    arviz,
    blackjax,
    cells,
    diffrax,
    dynamax,
    dynamax_conversion,
    dynamax_nonlinear,
    tfp,
)

FINDER = doctest.DocTestFinder(exclude_empty=True)
RUNNER_OPTIONS = doctest.NORMALIZE_WHITESPACE


def public():
    """Names of the public face: of the package, and of the modules it has in pieces."""
    for module in (elk_ssm, models, plotting, cells, blackjax, arviz):
        yield from ((module.__name__, name) for name in module.__all__)
    for module in (diffrax, dynamax, dynamax_conversion, dynamax_nonlinear, tfp):
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if own and not name.startswith("_"):
                yield module.__name__, name
    yield "elk_ssm.interop.dynamax_parameters", "check_version"


def modules():
    """Modules in which public names are written, and the layers."""
    layers = ("linen", "nnx", "equinox")
    found = {f"elk_ssm.interop.cells.layers.{layer}" for layer in layers}
    for module, name in public():
        value = getattr(importlib.import_module(module), name)
        found.add(value.__name__ if inspect.ismodule(value) else value.__module__)
    return ["elk_ssm", *sorted(found)]


def examples(name):
    """Doctests of a module, those of names that it only imports left out.

    Each knows `elk` and nothing else: it is pasted alone by whoever reads it.
    """
    found = FINDER.find(importlib.import_module(name), name, globs={"elk": elk_ssm})
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_are_right(name, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for test in examples(name):
        runner = doctest.DocTestRunner(optionflags=RUNNER_OPTIONS)
        report = []
        runner.run(test, out=report.append)
        assert runner.failures == 0, "".join(report)
    assert not jax.config.jax_enable_x64  # no example leaves a setting behind


@pytest.mark.parametrize(("module", "name"), list(public()))
def test_every_public_name_is_described_with_an_example(module, name):
    value = getattr(importlib.import_module(module), name)
    text = inspect.getdoc(value) or ""
    assert len(text.splitlines()) > 1
    if not inspect.ismodule(value):
        assert "Example:" in text
        assert ">>>" in text


@pytest.mark.parametrize(("module", "name"), list(public()))
def test_every_argument_is_described(module, name):
    value = getattr(importlib.import_module(module), name)
    if not inspect.isfunction(value):
        return
    text = inspect.getdoc(value)
    if "Args:" not in text:
        # Only where the text says that the arguments are those of another function.
        assert "rguments" in text or "see `" in text
        return
    described = text.split("Args:")[1]
    missing = [
        p for p in inspect.signature(value).parameters if f"{p}:" not in described
    ]
    assert not missing
