"""The no-U-turn sampler of blackjax, several chains side by side.

Step size and a diagonal mass matrix of each chain are adapted in windows, as Stan does
it. blackjax is imported when a function is called: `pip install "elk-ssm[chains]"`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from elk_ssm._types import Array


class Draws(NamedTuple):
    """Samples of some chains, each array `(chains, samples, ...)`.

    Attributes:
        positions: The samples.
        log_density: Theirs.
        acceptance_rate: Of the transition that led to each.
        is_divergent: Whether its integration diverged.
        num_steps: Leapfrog steps of it.
    """

    positions: Array
    log_density: Array
    acceptance_rate: Array
    is_divergent: Array
    num_steps: Array


def nuts_chains(
    log_density: Callable[[Array], Array],
    starts: Array,
    key: Array,
    num_samples: int,
    num_warmup: int,
    target_acceptance: float = 0.8,
) -> Draws:
    """Sample a log density of vectors; may be compiled.

    Args:
        log_density: Of `(n,)`, up to a constant.
        starts: `(chains, n)`.
        key: A JAX PRNG key.
        num_samples: Of each chain, after the warm-up.
        num_warmup: Steps of adaptation, which are thrown away.
        target_acceptance: What the step size is adapted to.

    Raises:
        ImportError: blackjax is not installed.
    """
    blackjax = _blackjax()
    warmup = blackjax.window_adaptation(
        blackjax.nuts,
        log_density,
        target_acceptance_rate=target_acceptance,
        adaptation_info_fn=lambda *_: None,
    )

    def chain(start: Array, key: Array) -> Draws:
        first, second = jax.random.split(key)
        (state, found), _ = warmup.run(first, start, num_steps=num_warmup)
        kernel = blackjax.nuts(log_density, **found)

        def step(state: Any, key: Array) -> tuple[Any, Draws]:
            state, info = kernel.step(key, state)
            return state, Draws(
                state.position,
                state.logdensity,
                info.acceptance_rate,
                info.is_divergent,
                info.num_integration_steps,
            )

        keys = jax.random.split(second, num_samples)
        return jax.lax.scan(step, state, keys)[1]

    return jax.vmap(chain)(starts, jax.random.split(key, len(starts)))


def _blackjax() -> Any:
    try:
        import blackjax
    except ImportError as error:
        raise ImportError(
            'sample_posterior needs blackjax: pip install "elk-ssm[chains]".'
        ) from error
    return blackjax
