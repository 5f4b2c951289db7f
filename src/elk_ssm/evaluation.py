"""Evaluate a recurrence, in parallel over time or one step after the other."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elk_ssm._closures import hoist
from elk_ssm._memory import explained
from elk_ssm._options import Asked, concrete_method, for_mesh, prepare
from elk_ssm._progress import check_untraced, shown
from elk_ssm._recurrence import (
    Recurrence,
    canonicalize,
    check_problem,
    without_time,
)
from elk_ssm._types import Array, ArrayLike, Dynamics, PyTree
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.mesh import shards_of
from elk_ssm.solution import Solution, Status, int_status, without_empty
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.iterates import all_iterates
from elk_ssm.solve.method import Method
from elk_ssm.solve.options import Adjoint, Keep, Kernel, Options
from elk_ssm.solve.rollout import roll_out_sequentially
from elk_ssm.solve.sequential import solve_sequentially
from elk_ssm.solve.strategies import Report
from elk_ssm.solve.trajectory import solve_trajectory


def evaluate(
    f: Dynamics,
    initial_state: PyTree,
    inputs: PyTree = None,
    *,
    length: int | None = None,
    method: Method | Auto | None = None,
    guess: PyTree = None,
    tol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_iters: int | None = None,
    history: int = 0,
    backend: Backend = "auto",
    adjoint: Adjoint = "auto",
    keep: Keep = "all",
    mesh: Mesh | None = None,
    axis_name: str = "time",
    kernel: Kernel | None = None,
    progress: bool = False,
) -> Solution:
    r"""Evaluate x_t = f(x_{t-1}, u_t), t = 1, ..., T, in parallel over time.

    The trajectory is found as the fixed point of a sequence of linear-Gaussian models,
    each solved by scans over time (Gonzalez et al. 2024, arXiv 2407.19115, equations 3
    to 7). Derivatives with respect to everything f closes over, the inputs and the
    initial state are exact whichever method is used; those with respect to the guess,
    noise and tolerances are zero. Derivative rules inside f are honoured, rules of
    rules too. A `jax.custom_vjp` in f (clipped or surrogate gradients, kernels) is
    applied where `lax.scan` applies it, once a step to all that arrives there: its
    gradient takes one step after the other, whichever adjoint was asked for, and there
    is no forward mode (`TypeError`), as there is none for `lax.scan`.

    Args:
        f: `f(state, input) -> state` for one time step, without batch axis. Batches
            come from `jax.vmap` over `evaluate`. f must be pure.
        initial_state: x_0, a pytree of float32 or float64 arrays. Leaves that are not
            floating point (counters, PRNG keys) are allowed when they evolve
            independently of those that are.
        inputs: A pytree whose leaves share a leading time axis of length T, any dtypes;
            or None.
        length: T, needed when there are no inputs.
        method: What to run; see `elk_ssm.methods`.
        guess: First iterate: the state with a leading time axis of length T. Default is
            x_0 at every step. Entries that are not finite are replaced by x_0.
        tol: Relative tolerance on the error, in units of the state's own size: of each
            dimension by itself, and over the few tens of steps about it. Default 1e-5
            in float32, 1e-12 in float64.
        atol: Absolute tolerance, in units of the state, for what is zero or tiny. The
            default is 1e-12 `tol`: states below 1e-12 count as no larger than that.
        max_iters: Largest number of iterations. Default is T (T // C for blocks of C),
            which always suffices. Without effect where `auto` does not iterate, on a
            CPU; its passes are bounded by `max_passes`.
        history: Record residual, step, noise, exact prefix and rejected states of
            this many first iterations; where `auto` does not iterate, of the last pass
            alone, the others NaN.
        backend: Which scans to use; `"auto"` is sequential on a CPU and associative
            elsewhere.
        adjoint: How derivatives solve their linear recursion: `"sequential"` pushes
            (co)tangents through f step by step with memory T x D; `"blocks"` does so
            for blocks of about sqrt(T) steps side by side; `"short_blocks"` for short
            ones until they fit together, and as `"blocks"` where they do not;
            `"parallel"` forms the `(T, D, D)` Jacobians and scans over them. `"auto"`
            is sequential on a CPU; elsewhere parallel for `deer` and `elk` without
            blocks, which hold such Jacobians anyway, and short blocks for every other
            method (blocks on a mesh). Of short blocks, derivatives below 1e-10 of the
            largest are right to rounding of that.
        keep: Which states to return. `"all"`; `"boundaries"`, those at the ends of
            blocks of C steps, t = C, 2C, ... (C is the method's `block_size`, and
            `plan.block_size` for `auto`); or `"last"`, x_T alone, without time axis.
            Except with `"all"`, memory beyond the inputs is O(T D / C), in derivatives
            too, and f is evaluated a little more often in total.
        mesh: Devices over which time is sharded: each holds T / P steps of the inputs,
            the states and all intermediates, and sends summaries of D x D numbers.
            Methods and results are the same as without; `auto` is then Newton over
            blocks on every platform, `backend` concerns the passes inside a device,
            and blocks are cut inside each device, so that per-step noise with blocks
            has one entry for each of P ceil(T / P / C) blocks. Inputs may be sharded
            already. Where P does not divide T they are padded, and the result, which
            no even sharding fits, is not sharded.
        axis_name: Name of the axis of the mesh that time is sharded over. The others
            are free for a batch (`jax.vmap` over sharded inputs).
        kernel: `"pallas"` runs every pass of `auto` over short blocks as one Triton
            kernel on an NVIDIA GPU, and the sweeps of its derivatives, in which f is
            inlined and states stay in registers. Elsewhere nothing changes, and
            `plan.describe()` says so. Off by default: it was checked by interpretation
            and compiled for an H100, not timed on one.
        progress: Show on a terminal, or in a notebook, how far the passes are: which
            one runs, the largest residual, the exact prefix, the time. It is compiled
            apart and waits for the result, which stays the same; not under `jit` or
            any other transformation.

    Returns:
        A `Solution`. A failed solve does not raise: look at `status`, or call
        `raise_if_failed` outside `jit`.

    Raises:
        TypeError: f is not callable, or a dtype cannot be used.
        ValueError: A shape, structure, length or option does not fit, `progress` was
            asked for inside `jit`, `vmap` or a derivative, f does not fit
            the kernel that was asked for (the message names the primitive or the size),
            or the Jacobians of a dense method alone are more than a device holds.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> sol = elk.evaluate(
        ...     lambda x, u: jnp.tanh(0.5 * x + u), jnp.zeros(3), jnp.ones((100, 3))
        ... )
        >>> elk.Status(int(sol.status)).name, sol.states.shape
        ('converged', (100, 3))
    """
    shards = shards_of(mesh, axis_name)
    given = for_mesh(shards, "evaluate", initial_state, inputs, guess)
    initial_state, inputs, guess = given
    recurrence = canonicalize(f, initial_state, inputs, length)
    asked = Asked(
        method=method,
        guess=guess,
        tol=tol,
        atol=atol,
        max_iters=max_iters,
        history=history,
        backend=backend,
        adjoint=adjoint,
        keep=keep,
        shards=shards,
        kernel=kernel,
        progress=progress,
    )
    if not progress:
        with explained():
            return run(recurrence, prepare(recurrence, asked))
    check_untraced(recurrence.primals, guess)
    with explained(), shown(recurrence.length):
        return jax.block_until_ready(run(recurrence, prepare(recurrence, asked)))


def run(recurrence: Recurrence, options: Options) -> Solution:
    """Solve a canonical recurrence and give the states the user's structure back."""
    states, report = solve_trajectory(recurrence.function, recurrence.primals, options)
    every = options.every
    if options.keep == "last":
        states, report = _finish(recurrence, every, states, report)
        every = recurrence.length
    rebuilt = recurrence.rebuild(states, every)
    if options.keep == "last":
        rebuilt = jax.tree.map(lambda x: x[0], rebuilt)
    report = report._replace(history=without_empty(report.history))
    return Solution(rebuilt, *report)


def _finish(
    recurrence: Recurrence, every: int, states: Array, report: Report
) -> tuple[Array, Report]:
    """From the last block end to x_T; shape `(1, D)`."""
    done = states.shape[0] * every
    rest = recurrence.length - done
    if not rest:
        return states[-1:], report
    tail = jax.tree.map(lambda x: x[done:], recurrence.inputs)
    found = roll_out_sequentially(recurrence.step, states[-1], tail, rest)
    finite = jnp.all(jnp.isfinite(found), axis=1)
    before = report.status == Status.nonfinite
    broke = ~jnp.all(finite) & ~before
    failed = jnp.where(broke, done + jnp.argmin(finite), report.failed_step)
    status = jnp.where(broke, int_status(Status.nonfinite), report.status)
    index = jnp.argmin(finite) - 1
    finite_one = jnp.where(index >= 0, found[jnp.maximum(index, 0)], states[-1])[None]
    last = jnp.where(broke, finite_one, jnp.where(before, states[-1:], found[-1:]))
    return last, report._replace(status=status, failed_step=failed.astype(jnp.int32))


def sequential(
    f: Dynamics,
    initial_state: PyTree,
    inputs: PyTree = None,
    *,
    length: int | None = None,
    kernel: Kernel | None = None,
) -> Solution:
    """Evaluate a recurrence one step after the other with `jax.lax.scan`.

    The reference that every method is compared with. Arguments as `evaluate`, except
    that the state may have any dtypes. With `kernel="pallas"` all steps are one Triton
    kernel on an NVIDIA GPU, where a scan launches several kernels a step; the state is
    then floating point, as for `evaluate`.

    Returns:
        A `Solution` with zero residual; `num_iters` is 1.

    Raises:
        ValueError: f does not fit the kernel that was asked for.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> sol = elk.sequential(lambda x, u: x + u, jnp.zeros(1), jnp.ones((3, 1)))
        >>> float(sol.states.sum())
        6.0
    """
    if kernel is not None:
        how = Auto(strategy="sequential")
        return evaluate(
            f, initial_state, inputs, length=length, method=how, kernel=kernel
        )
    initial_state, inputs, steps = check_problem(f, initial_state, inputs, length)
    function, consts = hoist(f, initial_state, without_time(inputs))
    states, failed_step = solve_sequentially(
        function, steps, consts, initial_state, inputs
    )
    converged, nonfinite = int_status(Status.converged), int_status(Status.nonfinite)
    status = jnp.where(failed_step < 0, converged, nonfinite)
    zero, one = jnp.zeros(()), jnp.asarray(1, jnp.int32)
    return Solution(states, status, one, zero, zero, failed_step)


def iterates(
    f: Dynamics,
    initial_state: PyTree,
    inputs: PyTree = None,
    *,
    length: int | None = None,
    num_iters: int,
    method: Method | Auto | None = None,
    guess: PyTree = None,
    backend: Backend = "auto",
) -> PyTree:
    """Return every iterate of a method, for teaching and pictures.

    Runs exactly `num_iters` iterations, keeps all of them in memory and never stops
    early. Not differentiable with respect to anything useful; see `evaluate`.

    Returns:
        The state with two leading axes, `num_iters + 1` iterates (the guess first) by
        T steps, on every leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> elk.iterates(
        ...     lambda x, u: 0.5 * x + u, jnp.zeros(2), jnp.ones((9, 2)), num_iters=3
        ... ).shape
        (4, 9, 2)
    """
    recurrence = canonicalize(f, initial_state, inputs, length)
    chosen = concrete_method(method, recurrence, "iterates")
    asked = Asked(chosen, guess, max_iters=num_iters, backend=backend)
    options = prepare(recurrence, asked)
    flat = all_iterates(recurrence.function, num_iters, recurrence.primals, options)
    return recurrence.rebuild(flat)
