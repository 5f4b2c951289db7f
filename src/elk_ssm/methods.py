"""The published methods by name: each is one line over the same small parts.

Example:
    >>> import elk_ssm as elk
    >>> elk.quasi_elk(noise=1e2).estimate
    'filter'
"""

from elk_ssm._types import ArrayLike
from elk_ssm.solve.anderson import Anderson
from elk_ssm.solve.auto import Auto, Strategy
from elk_ssm.solve.gate import Gate
from elk_ssm.solve.method import Estimate, Method
from elk_ssm.surrogate.jacobians import (
    DenseJacobian,
    DiagonalJacobian,
    IdentityJacobian,
    ZeroJacobian,
)
from elk_ssm.surrogate.linearization import Linearization
from elk_ssm.surrogate.noise import as_policy
from elk_ssm.surrogate.policy import NoisePolicy


def auto(
    *,
    strategy: Strategy = "auto",
    block_size: int | None = None,
    max_passes: int | None = None,
    gate: Gate | None = Auto.gate,
    linearization: Linearization | None = None,
    noise: ArrayLike | NoisePolicy | None = Auto.noise,
) -> Auto:
    """The default: nothing to tune, cannot diverge, bounded cost; see `solve.auto`.

    Args:
        strategy: `"forgetful"` evaluates recurrences that forget their past in blocks
            and others sequentially; `"short_blocks"` rolls short blocks out until they
            fit, and iterates by Newton's method where they do not; `"newton"` does so
            at once, over blocks with the gate; `"sequential"` takes one step
            after the other; `"auto"` takes the first on a CPU and the second
            elsewhere.
        block_size: Steps C in a block; None chooses from T and D.
        max_passes: Largest number of passes over all blocks of the forgetful strategy;
            None is 4 for D <= 8 and 2 above. Of short blocks, the passes before
            Newton's method; None is what 512 steps give.
        gate: Gate of the Newton strategy.
        linearization: Boundary linearisation of the Newton strategy; None chooses.
        noise: s^2 or a policy for the Newton strategy; None is undamped.

    Raises:
        TypeError: The noise is neither a number, an array nor a policy.
        ValueError: An unknown strategy, or a size that is not positive.

    Example:
        >>> import elk_ssm as elk
        >>> elk.auto(strategy="newton", block_size=16).newton(1000, 4).block_size
        16
    """
    policy = None if noise is None else as_policy(noise)
    return Auto(gate, linearization, policy, block_size, strategy, max_passes)


def deer(
    *,
    block_size: int = 1,
    gate: Gate | None = None,
    linearization: Linearization | None = None,
    anderson: Anderson | None = None,
) -> Method:
    """DEER: Newton's method, dense Jacobians, no damping.

    Lim et al. (2023), arXiv 2309.12252; the noise-free limit of `elk`. Each iteration
    takes `(T, D, D)` memory. Converges quadratically near the solution, in at most T
    iterations always.

    Args:
        block_size: Steps C of f between two unknowns.
        gate: Rejects what leaves the range of the exact prefix; None for no gate.
        linearization: Another stand-in for the Jacobian than the whole one.
        anderson: Mixes the steps of some passes, see `picard`.

    Raises:
        TypeError: A part is a class, a word or a number.
        ValueError: A block size that is not a positive integer.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> sol = elk.evaluate(
        ...     lambda x, u: jnp.tanh(x + u), jnp.zeros(2), jnp.ones((9, 2)),
        ...     method=elk.deer(block_size=3, gate=elk.Gate()),
        ... )
        >>> elk.Status(int(sol.status)).name
        'converged'
    """
    own = DenseJacobian() if linearization is None else linearization
    return Method(own, gate=gate, block_size=block_size, anderson=anderson)


def quasi_deer(
    *,
    block_size: int = 1,
    gate: Gate | None = None,
    linearization: Linearization | None = None,
    anderson: Anderson | None = None,
) -> Method:
    """Quasi-DEER: only the diagonal of the Jacobian, no damping.

    Gonzalez et al. (2024), arXiv 2407.19115, section 3. `(T, D)` memory.

    Args:
        block_size: Steps C of f between two unknowns.
        gate: Rejects what leaves the range of the exact prefix; None for no gate.
        linearization: Another stand-in for the Jacobian than its diagonal.
        anderson: Mixes the steps of some passes, see `picard`.

    Raises:
        TypeError: A part is a class, a word or a number.
        ValueError: A block size that is not a positive integer.

    Example:
        >>> import elk_ssm as elk
        >>> elk.quasi_deer(block_size=16, gate=elk.Gate()).linearization
        DiagonalJacobian(chunk=None)
    """
    own = DiagonalJacobian() if linearization is None else linearization
    return Method(own, gate=gate, block_size=block_size, anderson=anderson)


def elk(
    noise: ArrayLike | NoisePolicy,
    *,
    estimate: Estimate = "filter",
    block_size: int = 1,
    gate: Gate | None = None,
    linearization: Linearization | None = None,
) -> Method:
    """ELK: Newton steps damped by a Kalman filter or smoother.

    Gonzalez et al. (2024), arXiv 2407.19115, section 4. `noise` is s^2, the variance
    with which the surrogate observes the previous iterate, in units of its process
    variance: 1 / lambda of the paper. `noise=inf` is `deer()`.

    Args:
        noise: s^2 > 0, a scalar, `(D,)`, `(T, 1)` or `(T, D)`, or a noise policy.
        estimate: `"filter"` (as published) or `"smoother"` (Levenberg-Marquardt).
        block_size: Steps C of f between two unknowns.
        gate: Rejects what leaves the range of the exact prefix; None for no gate.
        linearization: Another stand-in for the Jacobian than the whole one.

    Raises:
        TypeError: The noise is neither a number, an array nor a policy, or another part
            is a class, a word or a number.
        ValueError: A noise that is not positive, an unknown estimate, or a block size
            that is not a positive integer.

    Example:
        >>> import elk_ssm as elk
        >>> elk.elk(noise=1e2, estimate="smoother").estimate
        'smoother'
        >>> elk.elk(noise=float("inf")) == elk.deer()
        True
    """
    own = DenseJacobian() if linearization is None else linearization
    return Method(own, as_policy(noise), gate, estimate, block_size)


def quasi_elk(
    noise: ArrayLike | NoisePolicy,
    *,
    estimate: Estimate = "filter",
    block_size: int = 1,
    gate: Gate | None = None,
    linearization: Linearization | None = None,
) -> Method:
    """Quasi-ELK: ELK with the diagonal of the Jacobian; D scalar filters.

    Gonzalez et al. (2024), arXiv 2407.19115, section 4. Arguments as `elk`.

    Example:
        >>> import elk_ssm as elk
        >>> elk.quasi_elk(elk.Annealed(1.0, growth=4.0)).noise.growth
        4.0
    """
    own = DiagonalJacobian() if linearization is None else linearization
    return Method(own, as_policy(noise), gate, estimate, block_size)


def picard(
    *,
    anderson: int | Anderson | None = None,
    noise: NoisePolicy | None = None,
    estimate: Estimate = "filter",
    block_size: int = 1,
    gate: Gate | None = None,
) -> Method:
    """Picard iteration: the Jacobian is taken to be the identity.

    For recurrences whose steps are small, x_t = x_{t-1} + small: differential equations
    and diffusion samplers. A pass is f at all steps side by side and a cumulative sum.

    Args:
        anderson: Mix the steps of so many passes, by Tang et al. (2024), arXiv
            2402.09970: fewer passes and further horizons. 4 is good in general.
        noise: A policy for the damping, or None for none.
        estimate: `"filter"` or `"smoother"`, with noise.
        block_size: Steps C of f between two unknowns.
        gate: Rejects what leaves the range of the exact prefix; None for no gate.

    Raises:
        TypeError: A part is a class, a word or a number.
        ValueError: A memory that is not a positive integer, or noise besides.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> def f(x, _):  # a pendulum
        ...     return x + 0.01 * jnp.stack([x[1], -jnp.sin(x[0])])
        >>> sols = [
        ...     elk.evaluate(f, jnp.ones(2), length=500, method=method)
        ...     for method in (elk.picard(), elk.picard(anderson=4))
        ... ]
        >>> bool(sols[1].num_iters < sols[0].num_iters)
        True
    """
    if anderson is not None and not isinstance(anderson, Anderson):
        anderson = Anderson(anderson)
    own = IdentityJacobian()
    return Method(own, noise, gate, estimate, block_size, anderson)


def jacobi(*, block_size: int = 1, gate: Gate | None = None) -> Method:
    """Jacobi iteration: the Jacobian is taken to be zero.

    The first inexact state takes its value from an exact one, so n iterations make n
    states exact, and a recurrence that forgets is done sooner.

    Args:
        block_size: Steps C of f between two unknowns.
        gate: Rejects what leaves the range of the exact prefix; None for no gate.

    Raises:
        TypeError: A part is a class, a word or a number.
        ValueError: A block size that is not a positive integer.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> sol = elk.evaluate(
        ...     lambda x, u: jnp.tanh(x + u), jnp.zeros(2), jnp.ones((9, 2)),
        ...     method=elk.jacobi(),
        ... )
        >>> elk.Status(int(sol.status)).name
        'converged'
    """
    return Method(ZeroJacobian(), gate=gate, block_size=block_size)


__all__ = [
    "Linearization",
    "Method",
    "auto",
    "deer",
    "elk",
    "jacobi",
    "picard",
    "quasi_deer",
    "quasi_elk",
]
