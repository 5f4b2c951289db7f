"""What the random search prints: scripts that show a failure, and counts."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np

import elk_ssm as elk
from benchmarks.search_cases import MAX_ITERS, Case
from benchmarks.search_draws import series
from benchmarks.search_truth import Failure

# Nearly all of the time is compilation.
FLAGS = "--xla_backend_optimization_level=0"


class Outcome(NamedTuple):
    """What a case came to."""

    case: Case
    status: elk.Status
    ratio: float
    failures: list[Failure]


_SCRIPT = """\
# {kind}, {label}, seed {seed}
import os
os.environ["XLA_FLAGS"] = "{flags}"
import jax, jax.numpy as jnp, numpy as np, elk_ssm as elk
jax.config.update("jax_enable_x64", {double})
nan, inf = np.nan, np.inf

{series}
{f}
p = {p}
x0 = {x0}
inputs = series(**{recipe})
p, x0, inputs = jax.tree.map(
    lambda x: jnp.asarray(x, "{dtype}"), (p, x0, inputs),
    is_leaf=lambda x: isinstance(x, list))
noise, slope = {noise}, {slope}
step = lambda x, u: {name}(p, x, u)
sol = elk.evaluate(step, x0, inputs, method={method},
    tol={tol}, max_iters={max_iters}, keep="{keep}"{options})
true = jax.lax.scan(lambda x, u: (step(x, u),) * 2, x0, inputs)[1]
print(elk.Status(int(sol.status)).name, "failed_step", sol.failed_step)
print("states", sol.states)
print("scan  ", true)
# {claims}
"""


def _literal(tree: Any) -> str:
    """Numbers as text, arrays as lists."""
    return repr(jax.tree.map(lambda x: np.asarray(x, float).tolist(), tree))


def script(outcome: Outcome) -> str:
    """Return a program that shows a case, with nothing but elk_ssm imported."""
    case = outcome.case
    program, draw = case.program, case.draw
    claims = [f"{failure.claim}: {failure.detail}" for failure in outcome.failures]
    return _SCRIPT.format(
        kind=case.kind,
        label=program.method,
        seed=case.seed,
        flags=FLAGS,
        double=program.dtype == "float64",
        series=inspect.getsource(series),
        f=inspect.getsource(program.f),
        name=program.f.__name__,
        p=_literal(draw.p),
        x0=_literal(draw.x0),
        recipe=jax.tree.map(lambda x: np.asarray(x).tolist(), draw.recipe),
        dtype=program.dtype,
        noise=case.noise,
        slope=case.slope,
        method=program.expression,
        tol=case.tol,
        max_iters=MAX_ITERS,
        keep=program.keep,
        options="".join(f", {k}={v!r}" for k, v in program.options),
        claims="\n# ".join(claims),
    )


def _table(title: str, names: list[str], failed: list[bool]) -> str:
    count = Counter(names)
    broken = Counter(name for name, bad in zip(names, failed) if bad)
    rows = [f"  {n:28} {count[n]:6} {broken[n]:6}" for n in sorted(count)]
    return "\n".join([f"{title:30} {'cases':>6} {'failed':>6}", *rows])


def summary(outcomes: list[Outcome], seed: int) -> str:
    """Counts by kind, method and status, the claims that fell, the worst ratio."""
    failed = [bool(outcome.failures) for outcome in outcomes]
    cases = [outcome.case for outcome in outcomes]
    claims = Counter(f.claim for outcome in outcomes for f in outcome.failures)
    statuses = Counter(outcome.status.name for outcome in outcomes)
    worst = max((outcome.ratio for outcome in outcomes), default=0.0)
    return "\n".join(
        [
            _table("kind", [case.kind for case in cases], failed),
            _table("method", [case.program.method for case in cases], failed),
            f"statuses: {dict(statuses)}",
            f"seed {seed}: {len(outcomes)} cases, {sum(failed)} failed; claims that "
            f"fell: {dict(claims)}; largest error over its bound {worst:.3g}",
        ]
    )
