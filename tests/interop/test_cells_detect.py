"""Cells are recognised by what they are, and no framework is imported for it."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from tests.interop.cell_zoo import C, D

from elk_ssm.interop import cells

SCRIPT = """
import json, sys
from elk_ssm.interop import cells
import jax, jax.numpy as jnp
class Mine:
    pass
try:
    cells.from_cell(Mine())
except TypeError:
    pass
params = cells.init_diagonal_gru(jax.random.key(0), 2, 3, forget_length=5)
cells.diagonal_gru(params)
frameworks = {"flax", "equinox", "haiku", "keras", "torch", "tensorflow"}
print(json.dumps(sorted(frameworks & set(sys.modules))))
"""


def test_no_framework_is_imported():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert json.loads(run.stdout.splitlines()[-1]) == []


def test_unknown_objects_are_told_what_is_known_and_what_to_write():
    with pytest.raises(TypeError, match=r"builtins\.dict") as caught:
        cells.from_cell({})
    message = str(caught.value)
    for word in ("from_linen", "from_nnx", "from_equinox", "from_haiku", "from_keras"):
        assert word in message
    assert "f = lambda state, input:" in message


def test_the_wrong_adapter_names_the_right_one():
    eqx = pytest.importorskip("equinox")
    cell = eqx.nn.GRUCell(C, D, key=jax.random.key(0))
    for adapter in (cells.from_nnx, cells.from_keras):
        with pytest.raises(TypeError, match="Use from_equinox"):
            adapter(cell)
    with pytest.raises(TypeError, match="Use from_equinox"):
        cells.from_linen(cell, {"params": {}})
    with pytest.raises(TypeError, match="f = lambda"):
        cells.from_equinox(lambda x, h: h)


def test_linen_wants_variables():
    nn = pytest.importorskip("flax.linen")
    cell = nn.GRUCell(D)
    params = cell.init(jax.random.key(0), jnp.zeros(D), jnp.zeros(C))["params"]
    with pytest.raises(ValueError, match=r"Wrap bare parameters as \{'params'"):
        cells.from_linen(cell, params)


def test_equinox_modules_without_a_known_state_need_one():
    eqx = pytest.importorskip("equinox")
    with pytest.raises(ValueError, match=r"from_equinox\(cell, state\)"):
        cells.from_equinox(eqx.nn.Linear(C, D, key=jax.random.key(0)))


def test_haiku_transforms_need_a_state_and_other_objects_are_refused():
    hk = pytest.importorskip("haiku")
    core = hk.transform(lambda x, state: hk.GRU(D)(x, state))
    params = core.init(jax.random.key(0), jnp.zeros(C), jnp.zeros(D))
    with pytest.raises(ValueError, match="pass it as"):
        cells.from_haiku(core, params)
    with pytest.raises(TypeError, match="makes the core"):
        cells.from_haiku(hk.transform_with_state(lambda x: x), params)
    with pytest.raises(TypeError, match="makes the core"):
        cells.from_haiku(3, params)


def test_keras_cells_must_be_built():
    keras = pytest.importorskip("keras")
    with pytest.raises(ValueError, match="build it first"):
        cells.from_keras(keras.layers.GRUCell(D))


def test_keras_on_another_backend_is_refused(monkeypatch):
    keras = pytest.importorskip("keras")
    cell = keras.layers.GRUCell(D)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax"):
        cells.from_keras(cell)
