"""The problem suite: nonlinear recurrences x_t = f(x_{t-1}, u_t), t = 1..T.

Every problem is a plain ``f(state, input) -> state`` on unbatched arrays with a
known x_0, inputs u_1..u_T (a pytree with a leading axis of length T, or ``None``)
and a float64 reference x_1..x_T.

Data convention: parameters, inputs and initial states are drawn in NumPy from the
seed, rounded to float32 and then cast to the dtype asked for. The float32 and the
float64 version of a problem are therefore the same problem, and share a reference.

    from benchmarks import problems
    p = problems.make("lorenz96", length=1000, seed=0, dtype="float32")
    suite = problems.problems(length=200)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DATA = Path(__file__).parent / "data"
ARGRU_SEEDS = 5


class Problem(NamedTuple):
    """One recurrence, ready to evaluate.

    Attributes:
        name: the name it was asked for by.
        f: ``f(state, input) -> state``; works in the dtype of its state.
        initial_state: x_0, a pytree of arrays.
        inputs: pytree of arrays with leading axis T, or ``None``.
        length: T.
        chaotic: nearby trajectories separate; compare in float64 only.
        observe: index of the flattened state that the published error measure
            looks at, or ``None`` for the whole state.
    """

    name: str
    f: Callable[[Any, Any], Any]
    initial_state: Any
    inputs: Any
    length: int
    chaotic: bool = False
    observe: int | None = None

    @property
    def state_dim(self) -> int:
        """D, the number of scalars in a state."""
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.initial_state))

    def reference(self) -> Any:
        """Evaluate x_1..x_T by ``lax.scan`` in float64.

        Returns:
            Pytree of float64 NumPy arrays with leading axis T.
        """
        with jax.enable_x64(True):
            state, inputs = _cast((self.initial_state, self.inputs), np.float64)
            trajectory = jax.jit(partial(_rollout, self.f, self.length))(state, inputs)
            return jax.tree.map(np.asarray, trajectory)


def sequential(problem: Problem) -> Any:
    """Evaluate x_1..x_T by ``lax.scan`` in the problem's own dtype."""
    return _rollout(problem.f, problem.length, problem.initial_state, problem.inputs)


def make(
    name: str, length: int = 1000, seed: int = 0, dtype: Any = "float32"
) -> Problem:
    """Build one problem.

    Args:
        name: one of ``NAMES``, or ``gru_D<n>`` / ``lstm_D<n>`` of any size, where
            n is the number of scalars in the state.
        length: T.
        seed: fixes parameters, inputs and initial state.
        dtype: float32 or float64; float64 needs x64 enabled.

    Raises:
        ValueError: unknown name, T < 1, or float64 while x64 is disabled.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}.")
    if np.dtype(dtype) == np.float64 and not jax.config.jax_enable_x64:
        raise ValueError(
            "float64 problems need 64-bit JAX: build and run them inside "
            "`with jax.enable_x64(True):`."
        )
    problem = _builder(name)(name, int(length), np.random.default_rng(seed))
    data = _cast((problem.initial_state, problem.inputs), dtype)
    return problem._replace(initial_state=data[0], inputs=data[1])


def problems(
    length: int = 1000,
    seed: int = 0,
    dtype: Any = "float32",
    names: tuple[str, ...] | None = None,
) -> list[Problem]:
    """Build the suite, or the named part of it, at one length."""
    return [make(name, length, seed, dtype) for name in names or NAMES]


def flatten(problem: Problem) -> Problem:
    """Return the same problem with its state packed into one (D,) vector."""
    leaves, tree = jax.tree.flatten(problem.initial_state)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def pack(state):
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(state)])

    def f(vector, u):
        pieces = jnp.split(vector, ends)
        shaped = [x.reshape(leaf.shape) for x, leaf in zip(pieces, leaves)]
        return pack(problem.f(jax.tree.unflatten(tree, shaped), u))

    return problem._replace(f=f, initial_state=pack(problem.initial_state))


# --- helpers ----------------------------------------------------------------


def _rollout(f, length, state, inputs):
    def step(carry, u):
        carry = f(carry, u)
        return carry, carry

    return jax.lax.scan(step, state, inputs, length=length)[1]


def _cast(tree, dtype):
    def cast(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            # Through NumPy: jnp would refuse float64 leaves made outside x64.
            return jnp.asarray(np.asarray(leaf), dtype)
        return leaf

    return jax.tree.map(cast, tree)


def _single(array) -> np.ndarray:
    return np.asarray(array, np.float32)


def _normal(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _lecun_normal(rng, fan_in, fan_out):
    """Normal truncated at two standard deviations, variance 1 / fan_in."""
    draw = rng.standard_normal((fan_in, fan_out))
    while (far := np.abs(draw) > 2).any():
        draw[far] = rng.standard_normal(far.sum())
    return _single(draw * math.sqrt(1 / fan_in) / 0.87962566103423978)


def _orthogonal(rng, n):
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return _single(q * np.sign(np.diag(r)))


# --- recurrent networks -----------------------------------------------------


def gru_step(params, h, u):
    """Advance a GRU with the reset gate applied after the hidden matmul.

    r = s(u W_r + h U_r + b_r), z = s(u W_z + h U_z + b_z),
    n = tanh(u W_n + b_n + r (h U_n + c_n)), h' = (1 - z) n + z h:
    the cell of ``flax.linen.GRUCell``.
    """
    r = jax.nn.sigmoid(u @ params["W_r"] + h @ params["U_r"] + params["b_r"])
    z = jax.nn.sigmoid(u @ params["W_z"] + h @ params["U_z"] + params["b_z"])
    hidden = h @ params["U_n"] + params["c_n"]
    n = jnp.tanh(u @ params["W_n"] + params["b_n"] + r * hidden)
    return (1 - z) * n + z * h


def lstm_step(params, state, u):
    """Advance an LSTM: c' = s(f) c + s(i) tanh(g), h' = s(o) tanh(c').

    Each gate is u W + h U + b; the cell and the state order (c, h) of
    ``flax.linen.LSTMCell``.
    """
    c, h = state
    i, f, g, o = (
        u @ params[f"W_{gate}"] + h @ params[f"U_{gate}"] + params[f"b_{gate}"]
        for gate in "ifgo"
    )
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def _gate_params(rng, gates, num_inputs, num_hidden):
    params = {}
    for gate in gates:
        params[f"W_{gate}"] = _lecun_normal(rng, num_inputs, num_hidden)
        params[f"U_{gate}"] = _orthogonal(rng, num_hidden)
        params[f"b_{gate}"] = np.zeros(num_hidden, np.float32)
    return params


def _gru_params(rng, dim, update_bias=0.0):
    params = _gate_params(rng, "rzn", dim, dim)
    params["c_n"] = np.zeros(dim, np.float32)
    params["b_z"] = params["b_z"] + np.float32(update_bias)
    return params


def _gru(name, length, rng, update_bias=0.0):
    """Untrained GRU, flax default initialisation, D standard normal inputs.

    Source: the timing problem of Lim et al., arXiv 2309.12252, section 4.1.
    """
    dim = _size(name)
    f = partial(gru_step, _gru_params(rng, dim, update_bias))
    return Problem(
        name, f, np.zeros(dim, np.float32), _normal(rng, length, dim), length
    )


def _slow_gru(name, length, rng):
    """Untrained GRU (D = 16) that forgets slowly: update-gate bias 4.

    z is near s(4) = 0.98, so a perturbation lives for about 50 steps.
    """
    return _gru("gru_D16", length, rng, update_bias=4.0)._replace(name=name)


def _lstm(name, length, rng):
    """Untrained LSTM, flax default initialisation; D / 2 units, D / 2 inputs."""
    units = _size(name) // 2
    f = partial(lstm_step, _gate_params(rng, "ifgo", units, units))
    state = (np.zeros(units, np.float32), np.zeros(units, np.float32))
    return Problem(name, f, state, _normal(rng, length, units), length)


def _growth_rate(weights, h, steps=1000):
    """Largest Lyapunov exponent of h' = tanh(W h), in NumPy."""
    direction, total = np.ones_like(h) / math.sqrt(h.size), 0.0
    for _ in range(steps):
        h = np.tanh(weights @ h)
        direction = (1 - h**2) * (weights @ direction)
        norm = np.linalg.norm(direction)
        direction, total = direction / norm, total + math.log(norm)
    return total / steps


def _chaotic_rnn(name, length, rng):
    """Vanilla RNN h' = tanh(g W h + u / 1000), W_ij ~ N(0, 1/D), D = 32.

    Chaotic for every gain g > 1 as D grows, but at D = 32 only for some draws of W:
    it is redrawn until the Lyapunov exponent without inputs exceeds 0.01. Source:
    Sompolinsky, Crisanti, Sommers, Phys. Rev. Lett. 61 (1988) 259, in discrete time.
    """
    dim, gain = 32, float(name.rsplit("_g", 1)[1])
    start = _normal(rng, dim) / 2
    for _ in range(200):
        weights = _single(gain * _normal(rng, dim, dim) / math.sqrt(dim))
        if _growth_rate(weights, start) > 0.01:
            break
    else:
        raise ValueError(f"no chaotic network of gain {gain} found in 200 draws.")

    def f(h, u):
        return jnp.tanh(weights @ h + u)

    inputs = _single(_normal(rng, length, dim) * 0.001)
    return Problem(name, f, start, inputs, length, chaotic=True)


def _bistable_rnn(name, length, rng):
    """RNN h' = tanh(2 h + W h + u) of D = 8 units, each with two stable states.

    The fixed points of h = tanh(2 h) are 0 (slope 2) and +-0.957 (slope 0.17).
    Small noise arrives at every step and, in one step of fifty, a pulse that may
    flip units, so the trajectory remembers which pulse came last.
    """
    dim = 8
    weights = _single(_normal(rng, dim, dim) * 0.1 / math.sqrt(dim))
    pulses = (rng.random((length, 1)) < 0.02) * 3.0 * rng.standard_normal((length, dim))
    inputs = _single(0.1 * rng.standard_normal((length, dim)) + pulses)

    def f(h, u):
        return jnp.tanh(2.0 * h + weights @ h + u)

    return Problem(name, f, np.zeros(dim, np.float32), inputs, length)


# --- the autoregressive GRU -------------------------------------------------


def argru_step(params, state, noise):
    """Draw the next sample of a series from an autoregressive GRU.

    The state (x, h) in R^4 is the last sample and three hidden units:

        h' = GRU(x, h)
        (m, s) = V (h' + x 1) + a
        x' = m + softplus(s) noise

    Source: the sine-wave experiment of Gonzalez et al., arXiv 2407.19115, sec. 6.2.

    Args:
        params: ``w`` (9,), ``U`` (9, 3), ``b`` (9,), ``c`` (3,), ``V`` (2, 3) and
            ``a`` (2,); gates stacked in the order reset, update, candidate.
        state: (4,).
        noise: (), a standard normal draw.
    """
    x, h = state[0], state[1:]
    r_in, z_in, n_in = jnp.split(params["w"] * x + params["b"], 3)
    r_h, z_h, n_h = jnp.split(params["U"] @ h, 3)
    z = jax.nn.sigmoid(z_in + z_h)
    n = jnp.tanh(n_in + jax.nn.sigmoid(r_in + r_h) * (n_h + params["c"]))
    h = (1 - z) * n + z * h
    mean, scale = params["V"] @ (h + x) + params["a"]
    x = mean + jax.nn.softplus(scale) * noise
    return jnp.concatenate([x[None], h])


def argru_params(seed: int) -> dict[str, np.ndarray]:
    """Load trained weights.

    Args:
        seed: 0 to 4, the seed of ``benchmarks/train_argru.py``.
    """
    path = DATA / f"argru_D4_seed{seed}.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} is missing; make it with `python -m benchmarks.train_argru`."
        )
    with np.load(path) as data:
        return {key: _single(data[key]) for key in data.files}


def argru(name: str, params: dict[str, np.ndarray], length: int, seed) -> Problem:
    """Sample from an autoregressive GRU with the noise fixed by the seed.

    x_0 is one step taken from the zero state, u_t the noise of ``argru_step``.
    """
    f = partial(argru_step, params)
    noise = _normal(np.random.default_rng(seed), length + 1)
    with jax.enable_x64(True):
        start = f(jnp.zeros(4), jnp.asarray(noise[0], jnp.float64))
    return Problem(name, f, _single(start), noise[1:], length, observe=0)


def _argru(name, length, rng):
    """Trained autoregressive GRU sampling a noisy sine, D = 4.

    ``argru_seed<k>`` has the k-th set of weights; see ``argru_step``.
    """
    return argru(name, argru_params(int(name.rsplit("seed", 1)[1])), length, rng)


# --- dynamical systems ------------------------------------------------------

# Dormand-Prince 5(4): the rows of the explicit tableau, fifth-order weights last.
_DOPRI5 = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)


def dopri5_step(field, dt, x):
    """Take one fifth-order Dormand-Prince step of fixed size dt."""
    slopes = [field(x)]
    for row in _DOPRI5:
        x_stage = x + dt * sum(a * k for a, k in zip(row, slopes) if a)
        slopes.append(field(x_stage))
    return x_stage


def _lorenz96_field(x):
    return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8.0


def _lorenz63_field(x):
    return jnp.stack(
        [
            10.0 * (x[1] - x[0]),
            x[0] * (28.0 - x[2]) - x[1],
            x[0] * x[1] - 8.0 / 3.0 * x[2],
        ]
    )


def _van_der_pol_field(x):
    return jnp.stack([x[1], 2.0 * (1 - x[0] ** 2) * x[1] - x[0]])


@lru_cache(maxsize=32)
def _settled(field, dt, start, steps):
    """Run a flow on from ``start`` for ``steps`` steps, to its attractor."""
    with jax.enable_x64(True):
        x = jnp.asarray(start, jnp.float64)
        body = lambda _, x: dopri5_step(field, dt, x)  # noqa: E731
        return _single(jax.jit(partial(jax.lax.fori_loop, 0, steps, body))(x))


def _flow(name, length, field, dt, start, steps, chaotic):
    def f(x, _):
        return dopri5_step(field, dt, x)

    return Problem(name, f, _settled(field, dt, start, steps), None, length, chaotic)


def _lorenz96(name, length, rng):
    """Lorenz-96: dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + 8, D = 5, no inputs.

    One fixed Dopri5 step of 0.01 on the attractor, as in fig. 8 of arXiv 2407.19115;
    the seed chooses how long the flow ran before x_0.
    """
    steps = 10_000 + int(rng.integers(10_000))
    start = (8.01, 8.0, 8.0, 8.0, 8.0)
    return _flow(name, length, _lorenz96_field, 0.01, start, steps, True)


def _lorenz63(name, length, rng):
    """Lorenz-63 (sigma 10, rho 28, beta 8/3), Dopri5 steps of 0.01, no inputs.

    Source: Lorenz, J. Atmos. Sci. 20 (1963) 130.
    """
    steps = 2_000 + int(rng.integers(2_000))
    return _flow(name, length, _lorenz63_field, 0.01, (1.0, 1.0, 20.0), steps, True)


def _van_der_pol(name, length, rng):
    """Van der Pol oscillator x'' = 2 (1 - x^2) x' - x, Dopri5 steps of 0.05.

    The seed chooses where on the limit cycle it starts; no inputs.
    """
    steps = 500 + int(rng.integers(500))
    return _flow(name, length, _van_der_pol_field, 0.05, (1.0, 0.0), steps, False)


def _double_well(name, length, rng):
    """Langevin dynamics x' = x - dt grad V(x) + sqrt(2 dt tau) u, D = 2.

    V(x, y) = (x^2 - 1)^2 + (y - x)^2 / 2, dt = 0.05, temperature tau = 0.3: the
    chain hops between the wells (1, 1) and (-1, -1).
    """
    dt, tau = 0.05, 0.3

    def f(state, u):
        x, y = state
        slope = jnp.stack([4 * x * (x**2 - 1) - (y - x), y - x])
        return state - dt * slope + math.sqrt(2 * dt * tau) * u

    return Problem(name, f, np.ones(2, np.float32), _normal(rng, length, 2), length)


def _cubic(name, length, rng):
    """Cubic map x' = 1.9 x - x^3 + (roll x) / 20 + u / 20, D = 2.

    From |x| <= 1.3 the trajectory stays there (stable points near +-0.95, slope
    -0.8), but the origin has slope 1.9: linearised at a zero guess, the first
    undamped iterate grows as 1.9^t, leaves the basin |x| < 1.7 within ten steps,
    and its cube overflows float32 from t = 45 on (float64 from t = 370). Every
    undamped method meets inf and NaN at the second iteration.
    """

    def f(x, u):
        return 1.9 * x - x**3 + 0.05 * jnp.roll(x, 1) + u

    inputs = _single(0.05 * np.clip(_normal(rng, length, 2), -3, 3))
    start = _single(0.5 * rng.choice([-1.0, 1.0], 2))
    return Problem(name, f, start, inputs, length)


def _linear_unstable(name, length, rng):
    """Linear x' = A x + u / 10, A = rho times a rotation of R^4, rho = 1.02.

    The growth 1.02^T overflows float32 near T = 4,400, so beyond T = 2,000 rho is
    lowered to keep rho^T = 1.02^2000 = 1.6e17.
    """
    rho = 1.02 ** min(1.0, 2000 / length)
    matrix = _single(rho * _orthogonal(rng, 4))

    def f(x, u):
        return matrix @ x + u

    inputs = _single(0.1 * _normal(rng, length, 4))
    return Problem(name, f, np.ones(4, np.float32), inputs, length)


# --- Markov chain Monte Carlo -----------------------------------------------


def _log_density(x):
    """Unnormalised log density of a banana: N(x_1; 0, 1) N(x_2; x_1^2 / 2, 1/2^2)."""
    return -0.5 * x[0] ** 2 - 2.0 * (x[1] - 0.5 * x[0] ** 2) ** 2


_score = jax.grad(_log_density)


def mala_step(step_size, x, noise, log_uniform):
    """Take one Metropolis-adjusted Langevin step on the banana density.

    y = x + e score(x) + sqrt(2 e) noise, accepted if log_uniform is below the log
    ratio. Source: Roberts and Tweedie, Bernoulli 2 (1996) 341.
    """
    y = x + step_size * _score(x) + math.sqrt(2 * step_size) * noise
    back = x - y - step_size * _score(y)
    ahead = y - x - step_size * _score(x)
    log_ratio = _log_density(y) - _log_density(x)
    log_ratio += (jnp.sum(ahead**2) - jnp.sum(back**2)) / (4 * step_size)
    return jnp.where(log_uniform < log_ratio, y, x)


def hmc_step(step_size, num_leapfrog, x, momentum, log_uniform):
    """Take one Hamiltonian Monte Carlo step on the banana density.

    Source: Neal, MCMC using Hamiltonian dynamics (2011), arXiv 1206.1901.
    """
    q, p = x, momentum + 0.5 * step_size * _score(x)
    for i in range(num_leapfrog):
        q = q + step_size * p
        p = p + (1.0 if i < num_leapfrog - 1 else 0.5) * step_size * _score(q)
    log_ratio = _log_density(q) - _log_density(x)
    log_ratio += 0.5 * jnp.sum(momentum**2) - 0.5 * jnp.sum(p**2)
    return jnp.where(log_uniform < log_ratio, q, x)


def _chain_inputs(rng, length):
    return {
        "noise": _normal(rng, length, 2),
        "log_uniform": _single(-rng.standard_exponential(length)),
    }


def _mala(name, length, rng):
    """MALA chain on a banana density, step 0.1; its random numbers are the inputs."""

    def f(x, u):
        return mala_step(0.1, x, u["noise"], u["log_uniform"])

    inputs = _chain_inputs(rng, length)
    return Problem(name, f, np.zeros(2, np.float32), inputs, length)


def _hmc(name, length, rng):
    """HMC chain on a banana density, 4 leapfrog steps of 0.2; inputs as for MALA."""

    def f(x, u):
        return hmc_step(0.2, 4, x, u["noise"], u["log_uniform"])

    inputs = _chain_inputs(rng, length)
    return Problem(name, f, np.zeros(2, np.float32), inputs, length)


def _mala_keys(name, length, rng):
    """MALA chain whose inputs are T typed JAX PRNG keys.

    Draws are made in float32 whatever the state's dtype, since JAX's float64 draws
    from the same key are other numbers.
    """

    def f(x, key):
        noise_key, uniform_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (2,), jnp.float32)
        log_uniform = -jax.random.exponential(uniform_key, (), jnp.float32)
        return mala_step(0.1, x, noise, log_uniform)

    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), length)
    return Problem(name, f, np.zeros(2, np.float32), keys, length)


# --- registry ---------------------------------------------------------------

_BUILDERS: dict[str, Callable[..., Problem]] = {
    r"gru_D\d+": _gru,
    r"lstm_D\d*[02468]": _lstm,
    r"slow_gru": _slow_gru,
    rf"argru_seed[0-{ARGRU_SEEDS - 1}]": _argru,
    r"lorenz96": _lorenz96,
    r"lorenz63": _lorenz63,
    r"chaotic_rnn_g\d+(\.\d+)?": _chaotic_rnn,
    r"double_well": _double_well,
    r"van_der_pol": _van_der_pol,
    r"cubic": _cubic,
    r"bistable_rnn": _bistable_rnn,
    r"mala": _mala,
    r"mala_keys": _mala_keys,
    r"hmc": _hmc,
    r"linear_unstable": _linear_unstable,
}

NAMES: tuple[str, ...] = (
    *(f"gru_D{d}" for d in (4, 8, 16, 32, 64, 128)),
    *(f"lstm_D{d}" for d in (4, 16, 64, 128)),
    "slow_gru",
    *(f"argru_seed{k}" for k in range(ARGRU_SEEDS)),
    "lorenz96",
    "lorenz63",
    *(f"chaotic_rnn_g{g}" for g in ("1.5", "2", "3")),
    "double_well",
    "van_der_pol",
    "cubic",
    "bistable_rnn",
    "mala",
    "mala_keys",
    "hmc",
    "linear_unstable",
)


def _builder(name):
    for pattern, build in _BUILDERS.items():
        if re.fullmatch(pattern, name):
            return build
    raise ValueError(f"no problem {name!r}; there are {', '.join(NAMES)}.")


def _size(name):
    return int(name.rsplit("_D", 1)[1])
