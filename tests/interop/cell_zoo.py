"""Seeded cells of every framework, with the framework's own way to take one step."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from elk_ssm.interop import cells

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is first imported

D, C = 4, 3

LINEN = ("SimpleCell", "GRUCell", "MGUCell", "LSTMCell", "OptimizedLSTMCell")
NNX = ("SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell")
EQUINOX = ("GRUCell", "LSTMCell")
HAIKU = ("VanillaRNN", "GRU", "LSTM")
KERAS = ("SimpleRNNCell", "GRUCell", "LSTMCell")
WITH_CLOSED_FORM = [
    *(("linen", name) for name in LINEN),
    *(("nnx", name) for name in NNX),
    *(("equinox", name) for name in EQUINOX),
]
ALL = [
    *WITH_CLOSED_FORM,
    *(("haiku", name) for name in HAIKU),
    *(("keras", name) for name in KERAS),
]
IDS = ["-".join(pair) for pair in ALL]


class Case(NamedTuple):
    """What an adapter returned, and the framework's own step on the same state."""

    f: Callable
    initial: Any
    own_step: Callable
    adapt_again: Callable


def jitter(tree: Any, seed: int = 7) -> Any:
    """Shift every leaf at random, so that biases that start at zero matter too."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        x + 0.3 * jax.random.normal(key, x.shape, x.dtype)
        for key, x in zip(keys, leaves)
    ]
    return jax.tree.unflatten(structure, moved)


def make(framework: str, name: str, **options: Any) -> Case:
    """Build a cell, adapt it, and return it beside the framework's own step."""
    return _MAKERS[framework](name, **options)


def _linen(name: str, **options: Any) -> Case:
    nn = pytest.importorskip("flax.linen")
    dtype = jnp.zeros(()).dtype
    cell = getattr(nn, name)(features=D, param_dtype=dtype, **options)
    carry = cell.initialize_carry(jax.random.key(0), (C,))
    variables = jitter(cell.init(jax.random.key(1), carry, jnp.zeros(C)))
    f, initial = cells.from_linen(cell, variables)

    def own(state, x):
        return cell.apply(variables, state, x)[0]

    return Case(f, initial, own, lambda: cells.from_cell(cell, variables, carry))


def _nnx(name: str, **options: Any) -> Case:
    nnx = pytest.importorskip("flax.nnx")
    dtype = jnp.zeros(()).dtype
    # nnx.SimpleCell computes in float32 unless told otherwise.
    options = {"dtype": dtype, "param_dtype": dtype, **options}
    cell = getattr(nnx, name)(C, D, rngs=nnx.Rngs(1), **options)
    nnx.update(cell, jitter(nnx.state(cell, nnx.Param)))
    f, initial = cells.from_nnx(cell)
    return Case(f, initial, lambda s, x: cell(s, x)[0], lambda: cells.from_cell(cell))


def _equinox(name: str, **options: Any) -> Case:
    eqx = pytest.importorskip("equinox")
    cell = getattr(eqx.nn, name)(C, D, key=jax.random.key(1), **options)
    f, initial = cells.from_equinox(cell)
    return Case(f, initial, lambda s, x: cell(x, s), lambda: cells.from_cell(cell))


def _haiku(name: str) -> Case:
    hk = pytest.importorskip("haiku")
    core = hk.transform(lambda x, state: getattr(hk, name)(D)(x, state))
    zeros = hk.transform(lambda: getattr(hk, name)(D).initial_state(None)).apply
    state = zeros({}, None)
    params = jitter(core.init(jax.random.key(1), jnp.zeros(C), state))
    f, initial = cells.from_haiku(lambda: getattr(hk, name)(D), params)

    def own(state, x):
        return core.apply(params, None, x, state)[1]

    return Case(f, initial, own, lambda: cells.from_cell(core, params, state))


def _keras(name: str, **options: Any) -> Case:
    keras = pytest.importorskip("keras")
    # keras.layers.SimpleRNNCell returns float32 whatever its dtype.
    dtype = "float32" if name == "SimpleRNNCell" else jnp.zeros(()).dtype.name
    cell = getattr(keras.layers, name)(D, dtype=dtype, **options)
    cell.build((None, C))
    cell.set_weights(jitter([jnp.asarray(w) for w in cell.get_weights()]))
    f, initial = cells.from_keras(cell)

    def own(state, x):
        after = cell(x[None], [leaf[None] for leaf in state])[1]
        return [leaf[0] for leaf in after]

    return Case(f, initial, own, lambda: cells.from_cell(cell))


_MAKERS = {
    "linen": _linen,
    "nnx": _nnx,
    "equinox": _equinox,
    "haiku": _haiku,
    "keras": _keras,
}


def rounding(initial: Any) -> float:
    """Return a thousand times the rounding of the state's dtype."""
    return 1e3 * float(jnp.finfo(jnp.result_type(*jax.tree.leaves(initial))).eps)


def states_and_inputs(initial: Any, count: int = 6) -> tuple[Any, jax.Array]:
    """Draw states like `initial` and inputs, with a leading axis."""
    leaves, structure = jax.tree.flatten(initial)
    keys = jax.random.split(jax.random.key(3), len(leaves) + 1)
    states = [
        jax.random.normal(key, (count, *x.shape), x.dtype)
        for key, x in zip(keys, leaves)
    ]
    inputs = jax.random.normal(keys[-1], (count, C), states[0].dtype)
    return jax.tree.unflatten(structure, states), inputs
