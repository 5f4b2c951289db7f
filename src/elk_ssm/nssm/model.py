r"""The nonlinear state-space model and its index convention.

    z_0 ~ N(m, P)
    z_t = f(z_{t-1}, u_t) + N(0, Q_t)                          t = 1 .. T-1
    y_t = h(z_t, u_t)     + N(0, R_t)                          t = 0 .. T-1
    or  log p(y_t | z_t) = log_density(h(z_t, u_t), y_t, u_t)

**Index convention.** Input u_t and entry t of a time-varying Q act on the transition
*into* step t; entry 0 of Q is never used, because z_0 comes from the initial
distribution. It is that of `elk_ssm.LGSSM` and of dynamax from 1.0.3 on.

A covariance is declared, never guessed: a bare `(D, D)` array or `Dense` is static,
with a leading axis T it varies in time, `Diagonal` and `ScaledIdentity` likewise, and a
function is state-dependent: Q(z_{t-1}, u_t) and R(z_t, u_t).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from elk_ssm._showing import held
from elk_ssm._types import Array, PyTree
from elk_ssm.linalg.structure import Matrix
from elk_ssm.nssm.covariances import is_singular

Covariance: TypeAlias = Matrix | Callable[[Array, PyTree], Matrix]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, repr=False)
class NonlinearSSM:
    """A state-space model with state `D`, emissions `E` and any pytree of inputs.

    A pytree: arrays are data, and so is a function that is itself a pytree
    (`jax.tree_util.Partial`, an Equinox module); a plain function is part of the
    structure. What a plain function closes over may be traced: build the model inside
    the function that is differentiated or compiled.

    Attributes:
        initial_mean: m, `(D,)`, float32 or float64; all else takes this dtype.
        initial_covariance: P, `(D, D)`, positive semidefinite; zero for a known state.
        dynamics: f, `(D,), input -> (D,)`; the input is `None` without inputs.
        dynamics_covariance: Q, `(D, D)`, positive semidefinite.
        emission: h, `(D,), input -> (E,)`; the state itself if `None`.
        emission_covariance: R, `(E, E)`, positive definite, for Gaussian emissions.
        log_density: `log_density(h, y, input) -> ()` instead of a covariance. A step
            with a missing entry is missing as a whole.
        draw: `draw(key, h, input) -> y`, only needed to sample with `log_density`.
        singular: Whether P or Q may have a zero eigenvalue; static. `None` becomes True
            where the numbers are known when the model is made and have one. Say True,
            or give a `LowRank`, where they are traced: in what is compiled by `jit` or
            differentiated. `fit` looks at its first parameters.

    **Singular noise.** With P = L L' and Q = G G' the state is driven by independent
    standard normal noises, z_0 = m + L w_0 and z_t = f(z_{t-1}) + G w_t, of which there
    may be fewer than D: position and velocity of which only the velocity is disturbed,
    lags of an autoregression, a level that is known. Then a trajectory has a density
    only among those that some noise leads to. `log_prob` is that with respect to their
    volume, which has pseudo-determinants of P and Q, and -inf elsewhere; log p(y) does
    not depend on such a choice. See `elk_ssm.smooth` for how the mode is found.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> pendulum = elk.NonlinearSSM(
        ...     initial_mean=jnp.zeros(2),
        ...     initial_covariance=elk.ScaledIdentity(1.0),
        ...     dynamics=lambda z, u: z + 0.05 * jnp.array([z[1], -9 * jnp.sin(z[0])]),
        ...     dynamics_covariance=elk.ScaledIdentity(1e-3),
        ...     emission=lambda z, u: jnp.sin(z[:1]),
        ...     emission_covariance=elk.ScaledIdentity(0.1),
        ... )
        >>> pendulum.state_dim
        2
    """

    initial_mean: Array
    initial_covariance: Matrix
    dynamics: Callable[[Array, PyTree], Array]
    dynamics_covariance: Covariance
    emission: Callable[[Array, PyTree], Array] | None = None
    emission_covariance: Covariance | None = None
    log_density: Callable[[Array, Array, PyTree], Array] | None = None
    draw: Callable[[Array, Array, PyTree], Array] | None = None
    singular: bool | None = None

    def __post_init__(self) -> None:
        """Look for zero eigenvalues in the covariances that are known."""
        dtype = getattr(self.initial_mean, "dtype", None)
        if self.singular is None and dtype in (jnp.float32, jnp.float64):
            known = (self.initial_covariance, self.dynamics_covariance)
            if any(is_singular(covariance, dtype) for covariance in known):
                object.__setattr__(self, "singular", True)

    def __repr__(self) -> str:
        return held(self, *(field.name for field in dataclasses.fields(self)))

    @property
    def state_dim(self) -> int:
        """The number of state dimensions, D."""
        return jnp.shape(self.initial_mean)[-1]

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """Keep plain functions in the structure and everything else as data."""
        values = [getattr(self, name) for name in _DATA]
        plain = [_is_plain_function(value) for value in values]
        data = tuple(None if p else value for p, value in zip(plain, values))
        functions = tuple(value if p else None for p, value in zip(plain, values))
        return data, (functions, self.singular)

    @classmethod
    def tree_unflatten(cls, structure: tuple, data: Any) -> "NonlinearSSM":
        """Put the functions back among the data, which may be traced by now."""
        functions, singular = structure
        model = object.__new__(cls)
        for name, function, value in zip(_DATA, functions, data):
            kept = value if function is None else function
            object.__setattr__(model, name, kept)
        object.__setattr__(model, "singular", singular)
        return model

    @classmethod
    def from_distribution(
        cls,
        initial_mean: Array,
        initial_covariance: Matrix,
        dynamics: Callable[[Array, PyTree], Array],
        dynamics_covariance: Covariance,
        distribution: Callable[[Array, PyTree], Any],
        emission: Callable[[Array, PyTree], Array] | None = None,
    ) -> "NonlinearSSM":
        """Build a model whose emissions follow any distribution, for example TFP's.

        Args:
            initial_mean: As the attribute.
            initial_covariance: As the attribute.
            dynamics: As the attribute.
            dynamics_covariance: As the attribute.
            distribution: `distribution(h, input)` returns an object with `log_prob(y)`
                and `sample(seed=key)`; a log_prob of several entries is summed.
            emission: The predictor h, on which the distribution depends; the state
                itself if `None`. A low-dimensional h makes the smoother cheaper.

        Example:
            >>> import jax.numpy as jnp
            >>> import tensorflow_probability.substrates.jax.distributions as tfd
            >>> import elk_ssm as elk
            >>> one = elk.ScaledIdentity(1.0)
            >>> model = elk.NonlinearSSM.from_distribution(
            ...     jnp.zeros(1), one, lambda z, u: 0.9 * z, one,
            ...     lambda h, u: tfd.Poisson(log_rate=h),
            ... )
            >>> round(float(model.log_density(jnp.zeros(1), jnp.ones(1), None)), 3)
            -1.0
        """
        return cls(
            initial_mean,
            initial_covariance,
            dynamics,
            dynamics_covariance,
            emission,
            None,
            lambda h, y, u: jnp.sum(distribution(h, u).log_prob(y)),
            lambda key, h, u: distribution(h, u).sample(seed=key),
        )


_DATA = [f.name for f in dataclasses.fields(NonlinearSSM) if f.name != "singular"]


def _is_plain_function(value: Any) -> bool:
    return callable(value) and jax.tree_util.all_leaves([value])
