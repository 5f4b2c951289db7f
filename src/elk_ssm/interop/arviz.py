r"""Chains for `arviz`: dimensions chain and draw, and what the kernel said.

arviz is imported when a function is called: `pip install "elk-ssm[chains]"`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._types import Array, PyTree
from elk_ssm.interop.chain import Chains
from elk_ssm.solution import Status, raise_if_failed

__all__ = ["to_arviz"]

# Names of arviz, and how the steps of one thinned sample become one number.
_STATISTICS: dict[str, tuple[str, Any]] = {
    "acceptance_rate": ("acceptance_rate", np.mean),
    "is_accepted": ("accepted", np.mean),
    "is_divergent": ("diverging", np.any),
    "energy": ("energy", None),
    "num_integration_steps": ("n_steps", np.sum),
    "num_trajectory_expansions": ("tree_depth", np.max),
}


def to_arviz(chains: Chains, *, drop_failed: bool = False, **options: Any) -> Any:
    """Write chains as arviz's `InferenceData`, for `summary`, `rhat`, `ess`, plots.

    Args:
        chains: From `elk.chains`, with all states. The posterior is the field
            `position` of the states, or the states where there is none; the leaves of a
            pytree are named by their path, an array alone `position`. Of the infos
            those that arviz knows become sample statistics: acceptance rate,
            divergences, energy, steps (fields, or keys of a dict); of the states
            `logdensity`, as `lp`. Of the steps of one thinned sample rates are
            averaged, steps added, and of energies the last is taken.
        drop_failed: Leave out the chains that did not converge, instead of raising.
        **options: `coords`, `dims` and others of `arviz.from_dict`.

    Raises:
        ImportError: arviz is not installed.
        TypeError: What was passed is not the result of `elk.chains`.
        RuntimeError: A chain did not converge (`drop_failed`: none did).
        ValueError: The states have no axis of samples.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop.arviz import to_arviz
        >>> def step(key, x):
        ...     return {"a": 0.5 * x["a"] + jax.random.normal(key)}
        >>> found = elk.chains(step, {"a": jnp.ones(())}, jax.random.key(0), 50, 3)
        >>> dict(to_arviz(found).posterior["a"].sizes)
        {'chain': 3, 'draw': 50}
    """
    if not isinstance(chains, Chains):
        raise TypeError(
            "to_arviz takes the result of elk.chains as a whole, not its states alone; "
            f"got {type(chains).__name__}."
        )
    _arviz()
    if drop_failed:
        good = np.flatnonzero(np.asarray(chains.status) == Status.converged)
        if good.size:
            chains = jax.tree.map(lambda x: x[good], chains)
    raise_if_failed(chains)
    posterior, statistics = _posterior(chains.states), _statistics(chains)
    shapes = {np.shape(x)[:2] for x in posterior.values()}
    draws = {np.shape(x)[:2] for x in statistics.values()} | shapes
    if len(draws) != 1 or len(next(iter(draws))) < 2:
        raise ValueError(
            "to_arviz needs chains with all samples, (chain, draw, ...); with "
            'keep="last" there is one state a chain.'
        )
    return inference_data(posterior, statistics, **options)


def inference_data(
    posterior: dict[str, Any], statistics: dict[str, Any], **options: Any
) -> Any:
    """Return draws as `InferenceData`, whichever arviz is there.

    Args:
        posterior: By name, `(chain, draw, ...)`.
        statistics: By the names of arviz, `(chain, draw)`.
        **options: Of `arviz.from_dict`.

    Raises:
        ImportError: arviz is not installed.
    """
    arviz = _arviz()
    groups = {"posterior": {k: np.asarray(v) for k, v in posterior.items()}}
    if statistics:
        groups["sample_stats"] = {k: np.asarray(v) for k, v in statistics.items()}
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(groups, **options)
    return arviz.from_dict(**groups, **options)


def _arviz() -> Any:
    try:
        import arviz
    except ImportError as error:
        raise ImportError(
            'to_arviz needs arviz: pip install "elk-ssm[chains]".'
        ) from error
    return arviz


def _posterior(states: PyTree) -> dict[str, np.ndarray]:
    found = getattr(states, "position", states)
    leaves, _ = jax.tree_util.tree_flatten_with_path(found)
    return {_name(path): np.asarray(leaf) for path, leaf in leaves if _is_data(leaf)}


def _name(path: tuple) -> str:
    """Join the keys, fields and positions on the way to a leaf by dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "position"


def _is_data(leaf: Array) -> bool:
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _statistics(chains: Chains) -> dict[str, np.ndarray]:
    found = {}
    if hasattr(chains.states, "logdensity"):
        found["lp"] = np.asarray(chains.states.logdensity)
    for name, (theirs, join) in _STATISTICS.items():
        said = chains.info
        value = said.get(name) if isinstance(said, dict) else getattr(said, name, None)
        if value is None:
            continue
        array = np.asarray(value)
        if array.ndim > 2:
            array = array[..., -1] if join is None else join(array, axis=2)
        found[theirs] = array
    return found
