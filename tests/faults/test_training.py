"""A training run killed at random moments goes on bit for bit from its checkpoint."""

import subprocess
import sys
import time

import numpy as np

SCRIPT = """
import os, sys
import jax, jax.numpy as jnp, numpy as np, optax
import elk_ssm as elk

place, steps = sys.argv[1], int(sys.argv[2])
tool = optax.adam(1e-2)
noise = elk.Annealed(1.0, 4.0)

@jax.jit
def step(carry):
    weights, state, key, guess, count = carry
    key, now = jax.random.split(key)
    inputs = jax.random.normal(now, (30, 3))
    def loss(weights):
        sol = elk.evaluate(lambda x, u: jnp.tanh(weights @ x + u), jnp.zeros(3),
                           inputs, method=elk.quasi_elk(noise), guess=guess)
        return jnp.mean(sol.states**2), sol.states
    slope, states = jax.grad(loss, has_aux=True)(weights)
    updates, state = tool.update(slope, state)
    return optax.apply_updates(weights, updates), state, key, states, count + 1

weights = 0.3 * jnp.eye(3)
carry = weights, tool.init(weights), jax.random.PRNGKey(0), jnp.zeros((30, 3)), 0
form = jax.tree.structure(carry)
if os.path.exists(place):
    with np.load(place) as file:
        carry = form.unflatten([jnp.asarray(file[name]) for name in file.files])
while carry[-1] < steps:
    carry = step(carry)
    with open(place + ".tmp", "wb") as file:
        np.savez(file, *map(np.asarray, jax.tree.leaves(carry)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(place + ".tmp", place)
    print(int(carry[-1]), flush=True)
"""
STEPS = 60


def start(place):
    command = [sys.executable, "-c", SCRIPT, str(place), str(STEPS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run(place, kill_after=None, later=0.0):
    """Run on to the end, or to a kill some time after a step; return its last words."""
    with start(place) as child:
        said = 0
        for line in child.stdout:
            said = int(line)
            if kill_after is not None and said >= kill_after:
                time.sleep(later)
                child.kill()
                break
        child.stdout.read()
    return said, child.returncode


def test_bit_for_bit(tmp_path):
    rng = np.random.default_rng(20)
    whole, killed = tmp_path / "whole.npz", tmp_path / "killed.npz"
    assert run(whole) == (STEPS, 0)
    moments = np.sort(rng.choice(np.arange(3, STEPS - 3), size=3, replace=False))
    for moment in moments:
        said, code = run(killed, moment, rng.uniform(0, 0.01))
        assert said < STEPS
        assert code == -9
    assert run(killed) == (STEPS, 0)
    with np.load(whole) as a, np.load(killed) as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
