r"""Will a recurrence parallelise, which method suits it, and why.

What decides is the product of Jacobians along the trajectory, J_t ... J_{s+1}: how much
a perturbation at s matters at t. If every such product dies out within a few steps the
recurrence forgets, and blocks evaluated side by side agree after two or three passes.
If some product is large, Newton's method has to work through that stretch: the largest
growth over any interval predicts the number of iterations far better than the mean
growth rate (the Lyapunov exponent) does.

The products are followed for a few tangent directions from several starting points, so
the growth is a lower bound, and exact for D <= 8 over intervals that begin at those
points.

Products on the trajectory do not see where else a start may end: on another phase of a
cycle, at another state of rest. So every method is tried on a first stretch, which
predicts its passes over all of time: see `predicting`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._recurrence import canonicalize
from elk_ssm._showing import arrays, as_html, known, number, show
from elk_ssm._types import Array, Dynamics, PyTree
from elk_ssm.jacobian_products import DIRECTIONS, follow_products, summarize_products
from elk_ssm.lyapunov import stretching, summarize_rates, trajectory_of
from elk_ssm.predicting import passes_at, passes_of_methods, stretch_looked_at
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.forgetful import burn_in_steps

_HARD_GROWTH = 8.0
# Below this share of quasi-DEER's passes, those of DEER are worth their D x D matrices.
_FEW = 0.1
# Passes of `auto` on an accelerator beyond those that forgetting takes, and before it
# goes on with Newton's method; chosen with benchmarks/predictions.py.
_TRIALS, _BEFORE_NEWTON = 2, 4


class Diagnosis(NamedTuple):
    """What `diagnose` found; numbers are arrays of shape `()`.

    Attributes:
        lyapunov_exponent: Mean logarithmic growth of a perturbation per step.
        growth: Largest log |J_t ... J_{s+1}| over the intervals looked at, at least 0.
        growth_interval: Its first and last step, shape `(2,)`.
        forgetting_length: Steps after which every followed product is below 1e-6, or -1
            when one is not within the stretch looked at.
        off_diagonal_share: |J - diag J| / |J| in the Frobenius norm, mean over time.
        log_growth: log |J_t ... J_{s+1}| for every start, `(S, T)`, NaN before it.
        length: Number of steps T of the recurrence, an integer.
        size: Number D of state dimensions, an integer.
        spectrum: The largest Lyapunov exponents, at most eight, `(k,)`.
        stretch_passes: By method, the passes that it took over half of the first steps
            and over all of them, `(2,)`; `predictions` makes of it those over T.
        failed_step: First step looked at whose state is not finite, or -1; all else is
            of the steps before it.

    Example:
        >>> import elk_ssm as elk
        >>> elk.Diagnosis._fields[:3]
        ('lyapunov_exponent', 'growth', 'growth_interval')
    """

    lyapunov_exponent: Array
    growth: Array
    growth_interval: Array
    forgetting_length: Array
    off_diagonal_share: Array
    log_growth: Array
    length: int
    size: int
    spectrum: Array
    stretch_passes: dict[str, Array]
    failed_step: Array | int = -1

    @property
    def predictions(self) -> dict[str, int]:
        """Passes by method, at the default tolerance: deer, quasi_deer, ..., auto.

        Each was tried on the first steps. Those of `auto` are on an accelerator, over
        short blocks or by Newton's method; `docs/prediction.md` has the errors of all
        on the problem suite.
        """
        found = {
            name: passes_at(passes, self._stretch, self.length)
            for name, passes in self.stretch_passes.items()
        }
        if found["jacobi"] < self.length - 1:
            block = Auto().short_block_size(self.length, self.size)
            return found | {"auto": _TRIALS + -(-found["jacobi"] // block)}
        # Over blocks Newton's method takes no more passes than over all states.
        newton = _BEFORE_NEWTON + min(self._newton_passes, found["deer"])
        return found | {"auto": min(newton, -(-self.length // 16))}

    @property
    def _stretch(self) -> int:
        """Steps that every method was tried on."""
        return stretch_looked_at(self.log_growth.shape[1], self.size)

    @property
    def _newton_passes(self) -> int:
        """Passes of Newton's method over blocks of 16 with the gate: a rough guess."""
        limit = max(self.length // 16, 1)
        return int(min(limit, np.ceil(4 + 2.5 * float(self.growth))))

    @property
    def least_alpha(self) -> float:
        """Smallest alpha of `forced` at which the followed products contract.

        1 - exp(-rate), where the rate is the largest mean one of the products that were
        followed for at least half of the time, and 0 where all contract already. It is
        the edge: a larger alpha forgets sooner.
        """
        growth = np.asarray(self.log_growth)
        steps = np.sum(~np.isnan(growth), axis=1)
        rates = growth[:, -1] / np.maximum(steps, 1)
        rate = max(np.max(rates[2 * steps >= growth.shape[1]]), 0.0)
        return float(-np.expm1(-rate))

    @property
    def forgets_its_start(self) -> bool:
        """Whether another start comes to the same trajectory, soon and everywhere.

        More than that products of Jacobians die out: those of a cycle do, and another
        start ends on another phase of it.
        """
        ends = int(self.stretch_passes["jacobi"][1]) < self._stretch
        return int(self.forgetting_length) >= 0 and (ends or self._stretch == 1)

    @property
    def predicted_passes(self) -> int:
        """Passes that `auto` needs on a CPU: over blocks, or 1 step by step."""
        auto, length = Auto(), self.length
        block = auto.forgetful_block_size(length, self.size)
        burn_in = int(burn_in_steps(int(self.forgetting_length), block))
        pays = auto.forgetful_pays(length, self.size)
        if not (self.forgets_its_start and pays):
            return 1
        reach = block * (auto.most_passes(self.size) - 1)
        return 1 + -(-burn_in // block) if burn_in <= reach else 1

    @property
    def recommendation(self) -> str:
        """Which method to use, and why."""
        if int(self.failed_step) >= 0:
            return f"none: the state is not finite from step {int(self.failed_step)} on"
        if self.forgets_its_start:
            return (
                f"auto(): the state is forgotten after {int(self.forgetting_length)} "
                "steps, so blocks side by side agree after a few passes"
            )
        if int(self.forgetting_length) >= 0:
            return (
                "auto(), or sequential: perturbations die out, but another start does "
                "not come to this trajectory (a cycle, or several states of rest)"
            )
        if float(self.growth) > _HARD_GROWTH:
            return (
                "auto(), or sequential on a CPU; on an accelerator deer(block_size=16, "
                "gate=Gate()): perturbations grow too much for undamped steps"
            )
        deer, quasi = (self.predictions[name] for name in ("deer", "quasi_deer"))
        if deer <= _FEW * quasi:
            return (
                f"deer(): nothing grows, and it takes some {deer} iterations where "
                f"quasi_deer() takes some {quasi}"
            )
        if float(self.off_diagonal_share) < 0.3:
            return "quasi_deer(): nothing grows and the Jacobian is nearly diagonal"
        return "deer(): nothing grows, and the Jacobian is far from diagonal"

    def __repr__(self) -> str:
        if any(known(x) is None for x in self[:5]):
            growth = arrays(self.log_growth)
            return show("Diagnosis", steps=self.length, log_growth=growth)
        if np.ndim(self.growth):
            return show(
                "Diagnosis", batch=arrays(self.growth), growth=number(self.growth)
            )
        first, last = (int(i) for i in self.growth_interval)
        failed, forgets = int(self.failed_step), int(self.forgetting_length)
        steps = f"{self.length} steps" if failed < 0 else f"the first {failed} steps"
        memory = f"{forgets} steps" if forgets >= 0 else "longer than looked at"
        passes = ", ".join(f"{k} {n}" for k, n in self.predictions.items())
        return (
            f"Diagnosis of {steps}, {self.size} dimensions\n"
            f"  Lyapunov exponent   {float(self.lyapunov_exponent):+.3g} per step\n"
            f"  largest growth      exp({float(self.growth):.3g}), steps {first} to "
            f"{last}\n"
            f"  forgetting length   {memory}\n"
            f"  off-diagonal share  {float(self.off_diagonal_share):.2g}\n"
            f"  predicted passes    {self.predicted_passes} on a CPU; {passes}\n"
            f"  recommended         {self.recommendation}"
        )

    def _repr_html_(self) -> str:
        return as_html(self)


def diagnose(
    f: Dynamics,
    initial_state: PyTree,
    inputs: PyTree = None,
    *,
    length: int | None = None,
    max_length: int = 2000,
    num_starts: int = 16,
) -> Diagnosis:
    """Say how a recurrence amplifies and forgets, and which method suits it.

    Evaluates the first `max_length` steps sequentially and follows products of
    Jacobians along them; call it once on a typical sequence.

    Args:
        f: The recurrence, as for `evaluate`.
        initial_state: As for `evaluate`.
        inputs: As for `evaluate`.
        length: As for `evaluate`.
        max_length: Steps to look at, from the beginning.
        num_starts: Starting points of the products, evenly spaced.

    Returns:
        A `Diagnosis`; print it.

    Raises:
        ValueError: A number of steps does not fit, or the state is not finite within
            the first two.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> found = elk.diagnose(
        ...     lambda x, u: jnp.tanh(0.5 * x + u), jnp.zeros(2), jnp.ones((200, 2))
        ... )
        >>> int(found.forgetting_length) < 20
        True
    """
    if max_length < 2 or num_starts < 1:
        raise ValueError("max_length must be at least 2 and num_starts at least 1.")
    total = canonicalize(f, initial_state, inputs, length).length
    looked, failed = min(total, max_length), -1
    head = jax.tree.map(lambda x: jnp.asarray(x)[:looked], inputs)
    recurrence, flat = trajectory_of(f, initial_state, head, looked)
    if not is_traced(flat) and not np.isfinite(flat).all():
        failed = int(np.argmin(np.isfinite(flat).all(axis=1)))
        if failed < 2:
            raise ValueError(f"the state is not finite at step {failed}.")
        looked = failed
        head = jax.tree.map(lambda x: x[:looked], head)
        recurrence, flat = trajectory_of(f, initial_state, head, looked)
    function, primals, size = recurrence.function, recurrence.primals, flat.shape[1]
    found = follow_products(function, min(num_starts, looked), primals, flat)
    rates = stretching(function, min(size, DIRECTIONS), primals, flat)
    stretch = stretch_looked_at(looked, size)
    consts, initial, entries = primals
    first = consts, initial, jax.tree.map(lambda x: x[:stretch], entries)
    return Diagnosis(
        **summarize_products(*found),
        length=total,
        size=size,
        spectrum=summarize_rates(rates).exponents,
        stretch_passes=passes_of_methods(function, first, stretch),
        failed_step=failed,
    )
