"""The marginal likelihood, for fitting by gradient.

log p(y) = sum_t log N(y_t; H m^p_t + d, H P^p_t H' + R), accumulated over the scalars
of every step by the filter (see `filtering`). Derivatives come from differentiating
the filter; a missing emission contributes neither to the value nor to the derivative.
"""

from jax import Array
from jax.sharding import Mesh

from elk_ssm.kalman.filtering import lgssm_filter
from elk_ssm.kalman.form import Form
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.parallel.backend import Backend


def lgssm_log_likelihood(
    model: LGSSM,
    emissions: Array,
    inputs: Array | None = None,
    *,
    mask: Array | None = None,
    form: Form = "auto",
    backend: Backend = "auto",
    mesh: Mesh | None = None,
    axis_name: str = "time",
) -> Array:
    """Return log p(y_{0:T-1}), the states integrated out.

    **Exact emissions.** A value without noise (a singular R, or R = 0) whose predicted
    variance is zero is known already. It contributes the density on the observed
    subspace: a factor of one where it agrees with what is known, up to rounding, and
    zero, a log likelihood of -inf, where it contradicts it. Zero means a deviation of
    less than sqrt(eps) of the state's (3e-4 in float32, 1.5e-8 in float64); a root of
    the covariance tells it from what rounding left (see `kalman/exactly.py`). The rule
    is the same for both forms and backends; under a mesh, R = 0 together with Q = 0
    keeps half the digits, and there is no square root.

    **Diffuse priors.** Held as a covariance, a prior variance of 1e12 costs as many
    digits, about twelve of the sixteen of float64. `form="square_root"` keeps them all,
    and is chosen by itself where the model is not traced; inside `jit` or `grad` ask
    for it.

    Args:
        model: the model.
        emissions: `(T, E)`, NaN where missing.
        inputs: `(T, U)` or `None`.
        mask: `(T, E)` or `(T,)`, True where observed.
        form: How the recursion is held, as for `lgssm_filter`.
        backend: `"sequential"`, `"associative"`, or `"auto"`: sequential on a CPU.
        mesh: Devices over which time is sharded, as for `lgssm_filter`.
        axis_name: Name of the axis of the mesh for time.

    Returns:
        A scalar, differentiable in everything but the mask.

    Raises:
        ValueError: a shape does not fit, or the backend is unknown.
        TypeError: a dtype is not a float, or the mask is not boolean.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> def loss(drift):
        ...     dynamics = elk.ScaledIdentity(drift)
        ...     model = elk.LGSSM(jnp.zeros(1), one, dynamics, one, one, one)
        ...     emissions = jnp.array([[0.0], [jnp.nan], [1.0]])
        ...     return elk.lgssm_log_likelihood(model, emissions)
        >>> bool(jnp.isfinite(jax.grad(loss)(0.5)))
        True
    """
    posterior = lgssm_filter(
        model,
        emissions,
        inputs,
        mask=mask,
        form=form,
        backend=backend,
        mesh=mesh,
        axis_name=axis_name,
    )
    return posterior.log_likelihood
