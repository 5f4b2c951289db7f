"""Iterated smoothing on a grid of small nonlinear models, and what its statuses claim.

    python -m benchmarks.nssm_grid [--small] [--scipy]

19 emissions x 9 dynamics x 4 data sets: as drawn, with an outlier of 1e6, all zero, and
short (5 steps); all in float64 from the default start. Prints counts by status, the
cases that did not converge in 100 passes, and every claim that a dense computation does
not bear out: a gradient that is not zero, a Hessian that is not negative definite, a
covariance that is not positive definite. `--scipy` compares the log posterior of every
short case with that which SciPy's `trust-exact` finds from the same start.
"""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.scipy.stats import norm, t

from elk_ssm.linalg.structure import Diagonal
from elk_ssm.nssm.densities import log_joint
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.nssm.posed import Posed, pose
from elk_ssm.smoothing import Smoothed, smooth
from elk_ssm.solution import Status

LENGTH, SHORT = 60, 5
STEPS = np.arange(float(LENGTH))
VARIANTS = ("drawn", "outlier", "zeros", "short")


class Dynamics(NamedTuple):
    """f, with the moments of the first state and the deviation of the noise."""

    step: Callable
    mean: tuple[float, ...]
    deviation: float
    noise: float


def _pendulum(z, k):
    velocity = z[1] - 0.98 * jnp.sin(z[0])
    return jnp.stack([z[0] + 0.1 * velocity, velocity])


def _van_der_pol(z, k):
    slope = jnp.stack([z[1], (1 - z[0] ** 2) * z[1] - z[0]])
    return z + 0.1 * slope


DYNAMICS = {
    "autoregression": Dynamics(lambda z, k: 0.9 * z, (0.0,), 1.0, 0.5),
    "random walk": Dynamics(lambda z, k: z, (0.0,), 3.0, 0.1),
    "growth": Dynamics(lambda z, k: z / 2 + 25 * z / (1 + z**2), (0.0,), 2.0, 10**0.5),
    "driven growth": Dynamics(
        lambda z, k: z / 2 + 25 * z / (1 + z**2) + 8 * jnp.cos(1.2 * k),
        (0.0,),
        2.0,
        10**0.5,
    ),
    "logistic": Dynamics(lambda z, k: 3.7 * z * (1 - z), (0.5,), 0.2, 0.03),
    "double well": Dynamics(lambda z, k: z + 0.3 * (z - z**3), (0.0,), 1.0, 0.2),
    "pendulum": Dynamics(_pendulum, (1.0, 0.0), 0.5, 0.1),
    "van der Pol": Dynamics(_van_der_pol, (0.5, 0.0), 1.0, 0.1),
    "two wells": Dynamics(
        lambda z, k: z + 0.3 * (z - z * jnp.sum(z**2)), (0.0, 0.0), 1.0, 0.2
    ),
}


def _range(z):
    square = jnp.sum(z**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


GAUSSIAN = {
    "identity": lambda z: z[0],
    "square": lambda z: z[0] ** 2,
    "square / 20": lambda z: z[0] ** 2 / 20,
    "cube": lambda z: z[0] ** 3,
    "exponential": lambda z: jnp.exp(z[0]),
    "sine": lambda z: jnp.sin(z[0]),
    "tanh": lambda z: jnp.tanh(z[0]),
    "range": _range,
    "product": lambda z: z[0] * z[-1] + z[0],
    "bearing": lambda z: jnp.arctan2(z[0] - 0.5, 2.0 + z[-1] ** 2),
}

DENSITIES = {
    "Poisson, log rate": lambda h, y: y * h - jnp.exp(h) - gammaln(y + 1),
    "Poisson, square": lambda h, y: _poisson(h**2 + 1e-3, y),
    "Poisson, softplus": lambda h, y: _poisson(jax.nn.softplus(h) + 1e-6, y),
    "Bernoulli": lambda h, y: jnp.minimum(y, 1) * h - jax.nn.softplus(h),
    "negative binomial": lambda h, y: y * h - (y + 5) * jnp.logaddexp(h, jnp.log(5.0)),
    "Student": lambda h, y: t.logpdf(y, 3.0, loc=h, scale=0.5),
    # Written out: autodiff of a normal density with exp(h / 2) as its deviation divides
    # zero by zero where h is far below zero, which is where zeros for y lead.
    "log variance": lambda h, y: -h / 2 - y**2 * jnp.exp(-h) / 2,
    "gamma": lambda h, y: -2 * h - (jnp.abs(y) + 1e-2) * jnp.exp(-h),
    "variance of h": lambda h, y: norm.logpdf(y, h, jnp.sqrt(0.1 + h**2)),
}


def _poisson(rate, y):
    return y * jnp.log(rate) - rate - gammaln(y + 1)


EMISSIONS = (*GAUSSIAN, *DENSITIES)


def model_of(dynamics: str, emission: str) -> NonlinearSSM:
    """Build a model whose program it shares with all of its size and kind.

    Which functions it has is a number that the functions close over, so that the grid
    compiles four programs and not 171.
    """
    size = len(DYNAMICS[dynamics].mean)
    steps = {name: d for name, d in DYNAMICS.items() if len(d.mean) == size}
    chosen = DYNAMICS[dynamics]
    which = jnp.asarray(list(steps).index(dynamics))
    kind = GAUSSIAN if emission in GAUSSIAN else DENSITIES
    what = jnp.asarray(list(kind).index(emission))
    branches = [d.step for d in steps.values()]
    emissions = list(kind.values())

    def moved(z, k):
        return jax.lax.switch(which, branches, z, k)

    parts = {
        "initial_mean": jnp.asarray(chosen.mean),
        "initial_covariance": Diagonal(jnp.full(size, chosen.deviation**2)),
        "dynamics": moved,
        "dynamics_covariance": Diagonal(jnp.full(size, chosen.noise**2)),
    }
    if kind is GAUSSIAN:
        return NonlinearSSM(
            **parts,
            emission=lambda z, k: jax.lax.switch(what, emissions, z)[None],
            emission_covariance=Diagonal(jnp.full(1, 0.1)),
        )
    return NonlinearSSM(
        **parts,
        emission=lambda z, k: z[:1],
        log_density=lambda h, y, k: jax.lax.switch(what, emissions, h[0], y[0]),
    )


def draw(dynamics: str, emission: str, seed: int) -> np.ndarray:
    """Simulate `(LENGTH, 1)` emissions with a NumPy loop."""
    rng = np.random.default_rng(seed)
    step, mean, deviation, noise = DYNAMICS[dynamics]
    emit = GAUSSIAN.get(emission, lambda z: z[0])
    z = np.asarray(mean) + deviation * rng.normal(size=len(mean))
    values = []
    for k in range(LENGTH):
        if k:
            z = np.asarray(step(z, float(k))) + noise * rng.normal(size=z.size)
        z = z % 1 if dynamics == "logistic" else np.clip(z, -30, 30)
        values.append(_value(emission, float(emit(z)), rng))
    return np.asarray(values)[:, None]


def _value(emission: str, h: float, rng: Any) -> float:
    if emission in GAUSSIAN:
        return h + 0.1**0.5 * rng.normal()
    rates = {
        "Poisson, log rate": np.exp(min(h, 10.0)),
        "Poisson, square": h**2,
        "Poisson, softplus": np.logaddexp(0, h),
        "negative binomial": np.exp(min(h, 10.0)),
    }
    if emission in rates:
        return float(rng.poisson(rates[emission]))
    return {
        "Bernoulli": lambda: float(rng.random() < 1 / (1 + np.exp(-h))),
        "Student": lambda: h + 0.5 * rng.standard_t(3),
        "log variance": lambda: np.exp(h / 2) * rng.normal(),
        "gamma": lambda: rng.gamma(2.0) * np.exp(h),
        "variance of h": lambda: h + np.sqrt(0.1 + h**2) * rng.normal(),
    }[emission]()


def variant(values: np.ndarray, name: str) -> np.ndarray:
    """Make a data set of those drawn."""
    values = values.copy()
    if name == "outlier":
        values[LENGTH // 2] = 1e6
    if name == "zeros":
        values[:] = 0.0
    return values[:SHORT] if name == "short" else values


def run(model: NonlinearSSM, y: Any, **options: Any) -> Smoothed:
    """Smooth from the default start; models of one size and kind share a program."""
    return smooth(model, y, STEPS[: len(y)], backend="sequential", **options)


class Claim(NamedTuple):
    """What a dense computation says of a result."""

    decrement: float
    lowest: float
    covariance: float


@jax.jit
def dense(posed: Posed, flat: Any) -> tuple[Any, Any, Any]:
    """Return -log p with gradient and Hessian, of `log_joint` and dense autodiff."""

    def merit(flat):
        return -log_joint(posed, flat.reshape(posed.shape))

    return merit(flat), jax.grad(merit)(flat), jax.hessian(merit)(flat)


def examine(model: NonlinearSSM, y: Any, result: Smoothed) -> Claim:
    """Return the Newton decrement and the lowest eigenvalues, scaled by the diagonal.

    A decrement of rounding in the states is subtracted.
    """
    posed = pose(model, y, STEPS[: len(y)])
    _, gradient, hessian = map(np.asarray, dense(posed, result.means.ravel()))
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-300))
    values, vectors = np.linalg.eigh(scale[:, None] * hessian * scale)
    along = vectors.T @ (scale * gradient)
    decrement = float(np.sum(along**2 / np.maximum(np.abs(values), 1e-15)))
    rounding = np.sum((8 * 2.2e-16 * np.ravel(result.means) / scale) ** 2)
    covariances = np.asarray(result.covariances)
    if not np.all(np.isfinite(covariances)):
        return Claim(decrement - rounding, values[0], -np.inf)
    deviations = np.sqrt(np.abs(np.diagonal(covariances, axis1=1, axis2=2)))
    unit = covariances / (deviations[:, :, None] * deviations[:, None, :])
    return Claim(decrement - rounding, values[0], np.linalg.eigvalsh(unit).min())


def is_borne_out(claim: Claim) -> bool:
    """Whether a result that says converged has a zero gradient and is a maximum."""
    return claim.decrement < 1e-9 and claim.lowest > -1e-9 and claim.covariance > 0


def against_scipy(model: NonlinearSSM, y: Any, result: Smoothed) -> float:
    """Return how much higher SciPy's mode of a short case is than ours."""
    from scipy.optimize import minimize

    start = np.broadcast_to(model.initial_mean, result.means.shape).ravel()
    posed = pose(model, y, STEPS[: len(y)])

    def parts(flat):
        return dense(posed, jnp.asarray(flat))

    best = minimize(
        lambda x: float(parts(x)[0]),
        start,
        jac=lambda x: np.asarray(parts(x)[1]),
        hess=lambda x: np.asarray(parts(x)[2]),
        method="trust-exact",
        options={"gtol": 1e-8, "maxiter": 500},
    )
    return -best.fun - float(result.log_posterior)


def main(arguments: list[str]) -> None:
    """Run the grid and print what did not go well."""
    jax.config.update("jax_enable_x64", True)
    small = "--small" in arguments
    seeds = 1
    statuses: Counter = Counter()
    passes, gains, unsound = [], [], []
    for number, dynamics in enumerate(DYNAMICS):
        for place, emission in enumerate(EMISSIONS):
            if small and (number + place) % 4:
                continue
            model = model_of(dynamics, emission)
            for seed in range(seeds):
                drawn = draw(dynamics, emission, seed)
                for name in VARIANTS:
                    y = jnp.asarray(variant(drawn, name))
                    result = run(model, y)
                    status = Status(int(result.status)).name
                    statuses[status] += 1
                    passes.append(int(result.num_iters))
                    case = f"{dynamics}, {emission}, {name}"
                    claim = examine(model, y, result)
                    if status != "converged":
                        print(f"{status:18s} {case}: {claim}", flush=True)
                    elif not is_borne_out(claim):
                        unsound.append(case)
                        print(f"UNSOUND            {case}: {claim}", flush=True)
                    if "--scipy" in arguments and name == "short":
                        gains.append(against_scipy(model, y, result))
                        if abs(gains[-1]) > 1e-6:
                            print(f"SciPy {gains[-1]:+.3g}  {case}", flush=True)
    total = sum(statuses.values())
    print({name: f"{n} ({100 * n / total:.1f} %)" for name, n in statuses.items()})
    print("passes: median", np.median(passes), "most", max(passes))
    print("not borne out:", len(unsound))
    if gains:
        gains = np.asarray(gains)
        print("SciPy higher:", np.sum(gains > 1e-6), "lower:", np.sum(gains < -1e-6))


if __name__ == "__main__":
    main(sys.argv[1:])
