r"""A recurrence that is many: what each dimension does is a number, not a program.

With h = x / s in units s, and a gain g_t that the last input carries,

    z = g_t A h + b + u        y_i = PARTS[k_i](h_i, z_i)
    x = s ((1 - w) y + w h),   w = c sigmoid(V h),   or h_i again where |h_i| > l_i

so one compiled solve serves linear, smooth and kinked cells, clips, modulo, floors,
flat regions, counters, records and their mixtures, gates that forget slowly (c = 1) or
latch (a finite l), units from 1e-6 to 1e6 side by side, and late jumps of the gain or
the input. Nothing that is not taken is infinite, so derivatives in both directions are
those of what is taken.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.search_draws import Draw

PARTS = ("linear", "tanh", "relu", "kink", "clip", "dead zone", "sine")
PARTS += ("modulo", "floor", "step", "counter", "record", "resetting")
RADII = (0.5, 0.9, 0.99, 1.0, 1.05, 1.5)
NEVER = 1e30


def patchwork(p, x, u):
    h = x / p["s"]
    z = u[-1] * (p["A"] @ h) + p["b"] + u[:-1]
    parts = [
        z,
        jnp.tanh(z),
        jnp.maximum(z, 0),
        jnp.abs(z),
        jnp.clip(z, -1, 1),
        jnp.sign(z) * jnp.maximum(jnp.abs(z) - 1, 0),
        jnp.sin(z),
        jnp.mod(z, 1.7),
        jnp.floor(z),
        jnp.where(z > 0, 0.7, -0.4) + 0 * z,
        h + 1,
        jnp.maximum(h, u[:-1]),
        jnp.where(u[:-1] > 1.5, 0, h + 0.5),
    ]
    which = p["k"].astype(jnp.int32)
    y = sum(jnp.where(which == i, part, 0) for i, part in enumerate(parts))
    w = p["c"] * jax.nn.sigmoid(p["V"] @ h)
    return p["s"] * jnp.where(jnp.abs(h) > p["l"], h, (1 - w) * y + w * h)


def compose(size: int, length: int, choices: dict[str, Any]) -> Draw:
    """Return the numbers that some choices and their seed stand for.

    Args:
        size: D.
        length: T.
        choices: `parts` and `units` (exponents of ten), one for each dimension;
            `radius` of A; `gated` and `latched` (or not); `size` of the noise of the
            inputs; `start`, the size of x_0; `jump`, what the gain is multiplied by
            from a late step on for 5 steps; `pulse`, an input at a late step; `seed`.
    """
    rng = np.random.default_rng(choices["seed"])
    A = rng.normal(size=(size, size))
    A *= choices["radius"] / np.abs(np.linalg.eigvals(A)).max()
    units = 10.0 ** np.asarray(choices["units"][:size])
    p = {
        "A": A,
        "b": rng.normal(size=size),
        "V": rng.normal(size=(size, size)),
        "c": float(choices["gated"]),
        "k": np.array([PARTS.index(name) for name in choices["parts"][:size]], float),
        "l": np.where(rng.random(size) < 0.7, 2.0, NEVER),
        "s": units,
    }
    if not choices["latched"]:
        p["l"] = np.full(size, NEVER)
    late = int(rng.integers(length // 2, max(length - 6, length // 2 + 1)))
    rest = length - late - min(5, length - late)
    pieces = [(late, 1.0, 0.0), (length - late - rest, choices["jump"], 0.0)]
    pieces += [(rest, 1.0, 0.0)] if rest else []
    pulses = [(late, int(rng.integers(size)), choices["pulse"])]
    recipe = {
        "length": length,
        "width": size + 1,
        "seed": int(rng.integers(2**31)),
        "size": choices["size"],
        "pulses": tuple(pulses) if choices["pulse"] else (),
        "pieces": tuple(pieces),
    }
    return Draw(p, units * choices["start"] * rng.normal(size=size), recipe)


OPTIONS: dict[str, tuple] = {
    "radius": RADII,
    "gated": (0, 1),
    "latched": (0, 1),
    "size": (1.0, 0.0, 0.1, 10.0),
    "start": (0.0, 1.0, 100.0),
    "jump": (1.0, 0.0, 10.0, -3.0),
    "pulse": (0.0, 5.0, 1e4),
}


def draw(rng: np.random.Generator, size: int, length: int) -> Draw:
    """Draw the choices as well."""
    choices = {
        name: values[rng.integers(len(values))] for name, values in OPTIONS.items()
    }
    choices |= {
        "parts": [PARTS[i] for i in rng.integers(0, len(PARTS), size)],
        "units": list(rng.integers(-6, 7, size)),
        "seed": int(rng.integers(2**31)),
    }
    return compose(size, length, choices)
