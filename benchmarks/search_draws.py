r"""How the random search draws the numbers of its cases.

A draw is small enough to be printed: the parameters, x_0, and the recipe from which
`series` makes the inputs. Draws of one recurrence share their shapes, so that one
compiled program serves them all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


def series(length, width, seed=0, size=0.0, pulses=(), pieces=()):
    """Noise of a size, single values (step, column, value), and pieces of time.

    A piece (steps, gain, drive) writes the gain into the last column and adds the drive
    to the others.
    """
    u = size * np.random.default_rng(seed).normal(size=(length, width))
    for step, column, value in pulses:
        u[step, column] = value
    if pieces:
        steps, gain, drive = np.transpose(pieces)
        u[:, -1] = np.repeat(gain, steps.astype(int))
        u[:, :-1] += np.repeat(drive, steps.astype(int))[:, None]
    return u


class Draw(NamedTuple):
    """The numbers of one case: parameters, x_0, arguments of `series`."""

    p: dict[str, Any]
    x0: Any
    recipe: dict[str, Any]


def _power(rng: Any, low: float, high: float, *shape: int) -> Any:
    return 10 ** rng.uniform(low, high, shape)


def _seed(rng: Any) -> int:
    return int(rng.integers(2**31))


def _radius(rng: Any, size: int, radius: float) -> Any:
    matrix = rng.normal(size=(size, size))
    return matrix * radius / np.abs(np.linalg.eigvals(matrix)).max()


def _linear(A: Any, x0: Any, length: int, b: Any = 0.0, **recipe: Any) -> Draw:
    size = len(A)
    pieces = recipe.pop("pieces", ((length, 1.0, 0.0),))
    recipe = {"length": length, "width": size + 1, "pieces": pieces, **recipe}
    full = np.broadcast_to
    return Draw({"A": A, "b": full(b, size) * 1.0}, full(x0, size) * 1.0, recipe)


def integrator(rng: Any, size: int, length: int) -> Draw:
    start, noise = _power(rng, -3, 3), _power(rng, -6, 1)
    drift = _power(rng, -8, -3, size)
    noise = noise * rng.integers(2)
    return _linear(np.eye(size), start, length, drift, seed=_seed(rng), size=noise)


def drift_beside(rng: Any, size: int, length: int) -> Draw:
    """A slow drift in the last dimension, the others driven by large inputs."""
    A, b = 0.5 * np.eye(size), np.zeros(size)
    A[-1, -1], b[-1] = 1.0, _power(rng, -8, -3)
    sizes = np.append(_power(rng, 0, 8, size), 0.0)
    sizes[size - 1] = 0.0
    return _linear(A, 0.0, length, b, seed=_seed(rng), size=sizes)


def slow_decay(rng: Any, size: int, length: int) -> Draw:
    rate = 1 - _power(rng, -7, -1, size)
    return _linear(np.diag(rate), _power(rng, -3, 6), length)


def rotation(rng: Any, size: int, length: int) -> Draw:
    """An orthogonal matrix, or a roll, with gain just below one."""
    Q = np.linalg.qr(rng.normal(size=(size, size)))[0]
    if rng.integers(2):
        Q = np.roll(np.eye(size), 1, axis=0)
    start = _power(rng, -2, 4, size)
    return _linear((1 - _power(rng, -7, -1)) * Q, start, length)


def mixed_scales(rng: Any, size: int, length: int) -> Draw:
    scale = _power(rng, -8, 8, size)
    R = _radius(rng, size, rng.uniform(0.3, 0.999))
    A = scale[:, None] * R / scale
    sizes = np.append(scale, 0.0)
    return _linear(
        A, scale * rng.normal(size=size), length, seed=_seed(rng), size=sizes
    )


def outlier(rng: Any, size: int, length: int) -> Draw:
    """One large input in the first, a middle or the last step."""
    where = [0, int(rng.integers(length)), length - 1 - int(rng.integers(3))]
    step, value = where[rng.integers(3)], float(_power(rng, 3, 8))
    pulses = ((step, int(rng.integers(size)), value),)
    A = _radius(rng, size, rng.uniform(0.3, 0.99))
    return _linear(A, 0.0, length, seed=_seed(rng), size=1.0, pulses=pulses)


def uneven_outlier(rng: Any, size: int, length: int) -> Draw:
    """A large input, or x_0, beside a long memory that the first steps do not show."""
    first, second = (int(rng.integers(1, length // 2)) for _ in range(2))
    slow = 1 - _power(rng, -5, -1)
    pieces = ((first, 0.5, 0.0), (second, slow, 0.0), (length - first - second, 0.5, 0))
    step, value = int(rng.choice([0, length - 1])), float(_power(rng, 3, 8))
    pulses = ((step, int(rng.integers(size)), value),) * int(rng.integers(2))
    start = 0.0 if pulses else value
    noise = {"seed": _seed(rng), "size": 1.0}
    return _linear(np.eye(size), start, length, pieces=pieces, pulses=pulses, **noise)


def far_start(rng: Any, size: int, length: int) -> Draw:
    A = _radius(rng, size, rng.uniform(0.3, 0.95))
    return _linear(A, _power(rng, 3, 8), length, seed=_seed(rng), size=1.0)


def _pieces(rng: Any, length: int, growth: float) -> tuple:
    """Contracting, neutral, growing by 10^growth in all, contracting."""
    grown = min(int(growth / np.log10(2.0)), length // 3)
    first, second = (int(rng.integers(1, (length - grown) // 2)) for _ in range(2))
    last = length - grown - first - second
    gain = 10 ** (growth / max(grown, 1)) if rng.integers(2) else 2.0
    return (
        (first, 0.5, 0.1),
        (second, 1.0, 0.01),
        (grown, gain, 0.1),
        (last, 0.5, 0.1),
    )


def late_growth(rng: Any, size: int, length: int) -> Draw:
    pieces = _pieces(rng, length, rng.uniform(3, 30))
    return _linear(np.eye(size), 0.0, length, pieces=pieces)


def overflow(rng: Any, size: int, length: int) -> Draw:
    """A late growth by 10^330, past the range of both dtypes."""
    first, second = (int(rng.integers(1, length // 3)) for _ in range(2))
    gain = 10 ** (330 / (length - first - second))
    pieces = ((first, 0.5, 0.1), (second, 1.0, 0.01))
    pieces = (*pieces, (length - first - second, max(gain, 4.0), 0.1))
    return _linear(np.eye(size), 1.0, length, pieces=pieces)


def stopping(draw: Callable) -> Callable:
    def stopping(rng: Any, size: int, length: int) -> Draw:
        found = draw(rng, size, length)
        kept = rng.choice([0.0, 0.5, 1.0], size=size)
        return found._replace(p={**found.p, "m": kept})

    return stopping


def _noisy(length: int, width: int, rng: Any, size: Any = 1.0, **recipe: Any) -> dict:
    return {"length": length, "width": width, "seed": _seed(rng), "size": size} | recipe


def cell(rng: Any, size: int, length: int) -> Draw:
    gain = rng.uniform(0.3, 2.5) / np.sqrt(size)
    W = gain * rng.normal(size=(size, size))
    p = {"W": W, "s": np.ones(size)}
    return Draw(p, rng.normal(size=size), _noisy(length, size, rng, rng.uniform(0, 1)))


def scaled_cell(rng: Any, size: int, length: int) -> Draw:
    p, x0, recipe = cell(rng, size, length)
    scale = _power(rng, -8, 8, size)
    return Draw({**p, "s": scale}, scale * x0, recipe)


def struck_cell(rng: Any, size: int, length: int) -> Draw:
    p, x0, recipe = cell(rng, size, length)
    pulse = (int(rng.integers(length)), 0, float(_power(rng, 3, 8)))
    return Draw(p, x0, {**recipe, "pulses": (pulse,)})


def gated_cell(rng: Any, size: int, length: int) -> Draw:
    """A GRU that may hold for long, in units of its own or not, from afar or not."""
    scale = _power(rng, -8, 8, size) if rng.integers(2) else np.ones(size)
    W = rng.uniform(0.3, 2.5) / np.sqrt(size) * rng.normal(size=(3, size, size))
    b = np.array([0.0, rng.uniform(-1, 8)])
    x0 = scale * rng.normal(size=size) * rng.choice([1.0, 1.0, 1e6])
    return Draw({"W": W, "b": b, "s": scale}, x0, _noisy(length, size, rng))


def in_units(rng: Any, size: int, length: int) -> Draw:
    p = {"a": rng.uniform(0.1, 0.9), "c": _power(rng, 0, 8), "d": _power(rng, -8, -2)}
    return Draw(
        p, {"age": np.zeros(()), "pressure": np.ones(2)}, _noisy(length, 2, rng)
    )


def slow_well(rng: Any, size: int, length: int) -> Draw:
    p = {"h": _power(rng, -4, -1), "c": _power(rng, -6, -1) * rng.integers(2)}
    return Draw(p, rng.uniform(-2, 2, size), _noisy(length, size, rng))


def _plain(length: int, size: int) -> dict:
    return {"length": length, "width": size}


def counting(rng: Any, size: int, length: int) -> Draw:
    start = np.floor(_power(rng, 0, 5.5, size))
    return Draw({"b": float(rng.integers(1, 4))}, start, _plain(length, size))


def rounding(rng: Any, size: int, length: int) -> Draw:
    slope = rng.choice([0.5, 1.0])
    noise = 3.0 if slope < 1 else 0.0
    p = {"a": slope, "b": float(rng.integers(1, 4))}
    start = np.floor(_power(rng, 0, 5, size))
    return Draw(p, start, _noisy(length, size, rng, noise))


def walking(rng: Any, size: int, length: int) -> Draw:
    p = {"h": 2.0 ** -rng.integers(1, 12)}
    return Draw(p, np.zeros(size), _noisy(length, size, rng, _power(rng, -1, 2)))


def switching(rng: Any, size: int, length: int) -> Draw:
    slopes = rng.choice([-0.9, 0.3, 0.9, 1.0, 1.1], size=2)
    p = {"a": slopes.min(), "b": slopes.max(), "at": rng.normal()}
    return Draw(p, rng.normal(size=size), _noisy(length, size, rng))


def choosing(rng: Any, size: int, length: int) -> Draw:
    p = {"W": rng.normal(size=(size, size)), "a": rng.choice([0.3, 0.9, 1.0])}
    return Draw(p, np.zeros(size), _noisy(length, size, rng, rng.integers(2)))


def wrapping(rng: Any, size: int, length: int) -> Draw:
    p = {"b": float(rng.integers(1, 9)), "m": float(rng.integers(10, 100_000))}
    return Draw(p, np.floor(rng.uniform(0, p["m"], size)), _plain(length, size))


def latching(rng: Any, size: int, length: int) -> Draw:
    p = {"at": rng.uniform(0.5, 3.5), "a": rng.choice([1.0, 1 - _power(rng, -6, -1)])}
    return Draw(p, rng.normal(size=size), _noisy(length, size, rng))


def catching(rng: Any, size: int, length: int) -> Draw:
    p = {"at": rng.uniform(1, 4), "a": rng.uniform(0.3, 0.99)}
    return Draw(p, np.zeros(size), _noisy(length, size, rng))


def positive(rng: Any, size: int, length: int) -> Draw:
    p = {"a": rng.uniform(0.2, 2)}
    return Draw(p, _power(rng, -3, 1, size), _noisy(length, size, rng))


def above_one(rng: Any, size: int, length: int) -> Draw:
    found = positive(rng, size, length)
    return found._replace(p={"a": rng.uniform(1, 2)})


def relu_root(rng: Any, size: int, length: int) -> Draw:
    return Draw({"a": rng.uniform(0.3, 1)}, np.ones(size), _noisy(length, 1, rng))


def blowing_up(rng: Any, size: int, length: int) -> Draw:
    """Either side of the border between decay and overflow, x_0 = 1 / k."""
    k = _power(rng, -3, 3)
    start = rng.uniform(0.2, 1.0 if rng.integers(2) else 2.0, size) / k
    noise = _noisy(length, size, rng)
    return Draw({"k": k, "c": 0.01 / k * rng.integers(2)}, start, noise)


def exploding(rng: Any, size: int, length: int) -> Draw:
    p = {"k": rng.uniform(0.05, 0.5), "c": 0.1 * rng.integers(2)}
    return Draw(p, np.zeros(size), _noisy(length, size, rng))


def zeros_of_a_sign(rng: Any, size: int, length: int) -> Draw:
    p = {"a": rng.choice([-1.0, -0.5, 1.0]), "c": rng.choice([-1.0, 1.0])}
    start = np.array([rng.choice([0.0, -0.0]), 0.0])
    return Draw(p, start, _plain(length, size))
