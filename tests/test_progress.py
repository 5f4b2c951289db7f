"""`progress=True` shows passes, changes nothing, and is refused where nothing runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm import _progress

METHODS = {
    "deer": elk.deer(),
    "blocks": elk.quasi_elk(noise=1e2, block_size=8, gate=elk.Gate()),
    "auto": elk.auto(),
}


@pytest.fixture
def heard(monkeypatch):
    """What the display was told."""
    calls, tell = [], _progress.Display.passed

    def passed(self, *numbers):
        calls.append(numbers)
        tell(self, *numbers)

    monkeypatch.setattr(_progress.Display, "passed", passed)
    return calls


@pytest.mark.parametrize("name", METHODS)
def test_the_result_is_the_same_and_every_pass_is_told(problem, heard, name):
    f, x0, inputs = problem("gru", 60)
    options = {"method": METHODS[name], "history": 9}
    silent = elk.evaluate(f, x0, inputs, **options)
    assert not heard
    shown = elk.evaluate(f, x0, inputs, **options, progress=True)
    jax.tree.map(np.testing.assert_array_equal, silent, shown)
    told = [] if name == "auto" else list(range(1, int(shown.num_iters) + 1))
    assert sorted(iteration for iteration, _, _ in heard) == told
    if heard:
        assert max(heard)[2] == float(shown.residual_norm)
    assert not _progress._displays


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
def test_it_is_refused_inside_transformations(problem, transform):
    f, x0, inputs = problem("linear", 5)

    def run(scale):
        return elk.evaluate(f, x0, scale * inputs, progress=True).states.sum()

    argument = jnp.ones(2) if transform is jax.vmap else jnp.asarray(1.0)
    with pytest.raises(ValueError, match=r"progress=True .* outside jax\.jit"):
        transform(run)(argument)
    with pytest.raises(ValueError, match=r"progress=True .* outside jax\.jit"):
        jax.jit(lambda: elk.evaluate(f, x0, inputs, progress=True).states)()


def test_what_is_shown():
    display = _progress.Display(12_000)
    assert display.__rich__() == "evaluating 12,000 steps, 0 s"
    display.passed(3, 6_000, 0.0312)
    display.passed(2, 10, 1.0)  # Late: callbacks come in any order.
    assert display.__rich__() == (
        "pass 3, residual 3.1e-02, first 50% of 12,000 steps exact, 0 s"
    )
