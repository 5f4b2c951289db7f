"""Train the autoregressive GRUs of the problem suite.

    python -m benchmarks.train_argru

The data are noisy sines y_t = 10 sin(2 pi t / P + phase) + e_t, e_t ~ N(0, 1). The
cell predicts the next sample's mean and standard deviation from the samples before
it and is fitted by maximum likelihood. Run on its own samples with the noise fixed
(``problems.argru_step``) it is the hard recurrence of arXiv 2407.19115, sec. 6.2.

All candidates are trained side by side, vectorised, with a sequential scan over
time. A problem that undamped DEER finds easy would prove little, so the first five
candidates on which it needs more than T / 5 iterations at T = 1,000, on each of
three noise draws, are kept as ``benchmarks/data/argru_D4_seed<k>.npz``. How hard
every candidate is, the ones passed over included, stands in
``benchmarks/data/argru_difficulty.json``.
"""

from __future__ import annotations

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import problems, published

HIDDEN = 3
AMPLITUDE = 10.0


def init_params(key):
    """Draw gate weights from U(-1/sqrt(3), 1/sqrt(3)); a small decoder."""
    keys = jax.random.split(key, 5)
    bound = HIDDEN**-0.5

    def uniform(key, *shape):
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return {
        "w": uniform(keys[0], 3 * HIDDEN),
        "U": uniform(keys[1], 3 * HIDDEN, HIDDEN),
        "b": uniform(keys[2], 3 * HIDDEN),
        "c": uniform(keys[3], HIDDEN),
        "V": 0.1 * (2 / (HIDDEN + 2)) ** 0.5 * jax.random.normal(keys[4], (2, HIDDEN)),
        "a": jnp.zeros(2),
    }


def noisy_sines(key, batch, length, period):
    """Draw (batch, length) noisy sines of random phase."""
    phase_key, noise_key = jax.random.split(key)
    phase = jax.random.uniform(phase_key, (batch, 1), maxval=2 * jnp.pi)
    clean = jnp.sin(2 * jnp.pi * jnp.arange(length) / period + phase)
    return AMPLITUDE * clean + jax.random.normal(noise_key, (batch, length))


def negative_log_likelihood(params, series):
    """Mean over time of -log p(y_t | y_{<t}), teacher forced, for one (T,) series."""

    def step(h, pair):
        previous, target = pair
        state = jnp.concatenate([previous[None], h])
        # Noise 0 gives the mean, noise 1 the mean plus one standard deviation.
        mean_state = problems.argru_step(params, state, 0.0)
        upper = problems.argru_step(params, state, 1.0)[0]
        mean, scale = mean_state[0], upper - mean_state[0]
        loss = 0.5 * ((target - mean) / scale) ** 2 + jnp.log(scale)
        return mean_state[1:], loss

    pairs = (jnp.concatenate([jnp.zeros(1), series[:-1]]), series)
    return jnp.mean(jax.lax.scan(step, jnp.zeros(HIDDEN), pairs)[1])


def train(seeds, *, steps, batch, length, period, learning_rate, verbose=False):
    """Train one model per seed, side by side.

    Returns:
        (params, losses): pytree with leading axis ``len(seeds)``, and the final
        smoothed losses, ``(len(seeds),)``.
    """
    schedule = optax.cosine_decay_schedule(learning_rate, steps, alpha=0.02)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def loss_fn(params, key):
        series = noisy_sines(key, batch, length, period)
        return jnp.mean(
            jax.vmap(negative_log_likelihood, in_axes=(None, 0))(params, series)
        )

    @jax.jit
    @jax.vmap
    def update(params, opt_state, key):
        loss, grads = jax.value_and_grad(loss_fn)(params, key)
        changes, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, changes), opt_state, loss

    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    params = jax.vmap(init_params)(keys)
    opt_state = jax.vmap(optimizer.init)(params)
    average = None
    for i in range(steps):
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)
        params, opt_state, loss = update(params, opt_state, step_keys)
        average = loss if average is None else 0.98 * average + 0.02 * loss
        if verbose and (i % 250 == 0 or i == steps - 1):
            print(i, np.round(np.asarray(average), 3), flush=True)
    return params, average


def difficulty(params, noise_seeds, length=1000):
    """Count the published iterations on samples of one model.

    Guess zero; NaN reset to 0 for DEER; until the mean absolute deviation of the
    samples is below 0.1. ELK and quasi-ELK with their published noise.

    Returns:
        Dict of lists, one count per noise seed, -1 where T iterations were too few.
    """
    params = {key: np.asarray(value, np.float32) for key, value in params.items()}
    methods = {"deer": jnp.inf, "quasi_deer": jnp.inf, "elk": 1e6, "quasi_elk": 1e2}
    counts = {method: [] for method in methods}
    for seed in noise_seeds:
        problem = problems.argru("candidate", params, length, seed)
        for method, noise in methods.items():
            reset = "none" if method.endswith("elk") else "nan_to_num"
            options = published.Options(method, "sequential", reset)
            counts[method] += published.count_problem(problem, options, (noise,))
    return counts


def main():
    """Train, measure, keep the five."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=2000)
    parser.add_argument("--period", type=float, default=800.0)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    settings = vars(parser.parse_args())
    seeds = range(settings.pop("candidates"))
    params, losses = train(seeds, verbose=True, **settings)
    keep(seeds, params, losses, settings)


def keep(seeds, params, losses, settings, length=1000):
    """Measure every candidate, write the first hard ones and the record."""
    candidates, kept = [], 0
    for i, seed in enumerate(seeds):
        weights = {key: np.asarray(value[i]) for key, value in params.items()}
        counts = difficulty(weights, range(3), length)
        hard = all(c == -1 or c > length / 5 for c in counts["deer"])
        row = {"training seed": seed, "loss": round(float(losses[i]), 4), **counts}
        if hard and kept < problems.ARGRU_SEEDS:
            row["kept as"] = f"argru_D4_seed{kept}.npz"
            np.savez(problems.DATA / row["kept as"], **weights)
            kept += 1
        candidates.append(row)
        print(row, flush=True)
    record = {
        "measure": f"iterations to mean absolute deviation < 0.1 at T = {length}, "
        "zero guess, one count per noise draw",
        "training": settings,
        "candidates": candidates,
    }
    path = problems.DATA / "argru_difficulty.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    if kept < problems.ARGRU_SEEDS:
        raise SystemExit(f"only {kept} candidates were hard enough; train more.")


if __name__ == "__main__":
    main()
