"""Train a two-layer GRU classifier sequentially and in parallel, from the same seeds.

    python -m benchmarks.training                       # seglearn's watch data
    python -m benchmarks.training --check               # float64: do the losses agree?
    python -m benchmarks.training --ts EigenWorms_TRAIN.ts EigenWorms_TEST.ts
    python -m benchmarks.training --aeon ACSF1          # a set that aeon ships

Only the evaluation of the recurrences differs between the two. The logits are those of
the mean hidden state over the valid steps, so that padding, which stands at the end,
cannot reach them. The batch of step k is drawn from (seed, k): a run that is
interrupted continues with the batches that it would have seen.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import elk_ssm as elk
from benchmarks.data_io import (
    Batch,
    find_aeon,
    load_watch,
    pad,
    read_ts,
    split_by_group,
    standardize,
)
from elk_ssm.interop import cells

METHODS = {
    "auto": elk.auto(),
    "newton": elk.auto(strategy="newton"),
    "quasi_deer": elk.quasi_deer(),
    "deer_blocks": elk.deer(block_size=32, gate=elk.Gate()),
}

Evaluator = Callable[[Callable, Any, Any], Any]


@dataclass(frozen=True)
class Config:
    """Sizes and numbers of a run."""

    state_size: int = 16
    batch_size: int = 16
    learning_rate: float = 1e-2
    steps: int = 100
    seed: int = 0


class Training(NamedTuple):
    """All that a run is: parameters, optimiser, steps done and their losses."""

    params: Any
    optimizer: Any
    step: Any
    losses: Any


def sequential(f: Callable, initial: Any, inputs: Any) -> Any:
    """Evaluate by `jax.lax.scan`."""

    def body(state: Any, entry: Any) -> tuple[Any, Any]:
        state = f(state, entry)
        return state, state

    return jax.lax.scan(body, initial, inputs)[1]


def parallel(method: Any = None) -> Evaluator:
    """Return the evaluation by `elk.evaluate` with a method."""
    return lambda f, initial, inputs: (
        elk.evaluate(f, initial, inputs, method=method).states
    )


def cell_of(config: Config, dtype: Any) -> nn.GRUCell:
    """Return the GRU cell of every layer."""
    return nn.GRUCell(config.state_size, param_dtype=dtype)


def init_params(config: Config, channels: int, classes: int, dtype: Any) -> Any:
    """Draw the parameters of two GRU layers and a linear head."""
    cell, size = cell_of(config, dtype), config.state_size
    first, second, head = jax.random.split(jax.random.key(config.seed), 3)
    carry = jnp.zeros(size, dtype)
    return {
        "layers": [
            cell.init(first, carry, jnp.zeros(channels, dtype)),
            cell.init(second, carry, carry),
        ],
        "kernel": jax.random.normal(head, (size, classes), dtype) / size**0.5,
        "bias": jnp.zeros(classes, dtype),
    }


def logits(
    params: Any, inputs: jax.Array, length: jax.Array, evaluator: Evaluator
) -> jax.Array:
    """Return the logits `(classes,)` of one recording `(T, C)` with `length` steps."""
    hidden, size = inputs, params["kernel"].shape[0]
    cell = nn.GRUCell(size, param_dtype=params["kernel"].dtype)
    for variables in params["layers"]:
        f, h0 = cells.from_linen(cell, variables)
        hidden = evaluator(f, h0, hidden)
    valid = jnp.arange(len(inputs)) < length
    mean = jnp.where(valid[:, None], hidden, 0).sum(0) / length
    return mean @ params["kernel"] + params["bias"]


def batch_logits(params: Any, batch: Batch, evaluator: Evaluator) -> jax.Array:
    """Return the logits `(N, classes)` of a batch."""
    one = jax.vmap(lambda x, n: logits(params, x, n, evaluator))
    return one(batch.inputs, batch.lengths)


def loss_of(params: Any, batch: Batch, evaluator: Evaluator) -> jax.Array:
    """Return the mean cross-entropy of a batch."""
    scores = batch_logits(params, batch, evaluator)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch.labels)
    return losses.mean()


def accuracy(params: Any, batch: Batch, evaluator: Evaluator = sequential) -> float:
    """Return the share of recordings whose largest logit is their label's."""
    scores = jax.jit(lambda p, b: batch_logits(p, b, evaluator))(params, batch)
    return float((scores.argmax(-1) == batch.labels).mean())


def begin(config: Config, data: Batch, classes: int) -> Training:
    """Return a run of which no step is done."""
    params = init_params(config, data.inputs.shape[-1], classes, data.inputs.dtype)
    losses = jnp.full(config.steps, jnp.nan, data.inputs.dtype)
    optimizer = _adam(config.learning_rate).init(params)
    return Training(params, optimizer, jnp.asarray(0), losses)


def _adam(rate: float) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


@cache
def make_step(learning_rate: float, evaluator: Evaluator) -> Callable:
    """Return the jitted `step(training, batch) -> training`."""
    adam = _adam(learning_rate)

    @jax.jit
    def step(run: Training, batch: Batch) -> Training:
        loss, gradient = jax.value_and_grad(loss_of)(run.params, batch, evaluator)
        updates, optimizer = adam.update(gradient, run.optimizer, run.params)
        params = optax.apply_updates(run.params, updates)
        losses = run.losses.at[run.step].set(loss)
        return Training(params, optimizer, run.step + 1, losses)

    return step


def batch_at(data: Batch, config: Config, step: int) -> Batch:
    """Draw the batch of a step; it depends on the seed and the step alone."""
    rng = np.random.default_rng([config.seed, step])
    size = min(config.batch_size, len(data.labels))
    rows = rng.choice(len(data.labels), size, replace=False)
    return Batch(*(x[rows] for x in data))


def train(
    config: Config,
    data: Batch,
    classes: int,
    evaluator: Evaluator,
    *,
    checkpoints: str | Path | None = None,
    every: int = 10,
    stop_after: int | None = None,
) -> Training:
    """Train, or continue a run from its last checkpoint.

    Args:
        config: Sizes, `steps` included.
        data: The training recordings.
        classes: Number of classes.
        evaluator: How recurrences are evaluated.
        checkpoints: Folder of this run's checkpoints, or None for none.
        every: Steps between checkpoints.
        stop_after: Leave after this many steps in all, as an interruption would: what
            was done since the last checkpoint is lost.
    """
    run, step = begin(config, data, classes), make_step(config.learning_rate, evaluator)
    manager = None if checkpoints is None else _manager(checkpoints, every)
    if manager is not None and manager.latest_step() is not None:
        run = _restore(manager, run)
    last = config.steps if stop_after is None else min(stop_after, config.steps)
    for k in range(int(run.step), last):
        run = step(run, batch_at(data, config, k))
        if manager is not None:
            _save(manager, run)
    if manager is not None:
        manager.close()
    return run


def _manager(folder: str | Path, every: int) -> Any:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=every)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def _save(manager: Any, run: Training) -> None:
    import orbax.checkpoint as ocp

    manager.save(int(run.step), args=ocp.args.StandardSave(run._asdict()))


def _restore(manager: Any, like: Training) -> Training:
    import orbax.checkpoint as ocp

    args = ocp.args.StandardRestore(like._asdict())
    return Training(**manager.restore(manager.latest_step(), args=args))


def temporary_bytes(config: Config, data: Batch, classes: int, evaluator: Any) -> int:
    """Return the temporary memory that XLA plans for one training step."""
    run = begin(config, data, classes)
    step = make_step(config.learning_rate, evaluator)
    compiled = step.lower(run, batch_at(data, config, 0)).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def time_per_step(
    config: Config, data: Batch, classes: int, evaluators: dict, repeats: int = 7
) -> dict[str, float]:
    """Return the median seconds of a training step, candidates interleaved."""
    run, batch = begin(config, data, classes), batch_at(data, config, 0)
    steps = {name: make_step(config.learning_rate, e) for name, e in evaluators.items()}
    for step in steps.values():
        jax.block_until_ready(step(run, batch))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(run, batch))
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(found)) for name, found in times.items()}


def load(arguments: argparse.Namespace, dtype: type) -> tuple[Batch, Batch, int]:
    """Return training and test batches, and the number of classes."""
    if arguments.ts or arguments.aeon:
        paths = arguments.ts or find_aeon(arguments.aeon)
        train_set, test_set = (read_ts(path) for path in paths)
    else:
        train_set, test_set = split_by_group(load_watch(), arguments.held_out)
    train_set, test_set = standardize(train_set, test_set)
    longest = max(len(x) for x in (*train_set.series, *test_set.series))
    length = arguments.length or longest
    batches = [pad(part, length, dtype) for part in (train_set, test_set)]
    return batches[0], batches[1], len(train_set.classes)


def compare_losses(
    config: Config, data: Batch, classes: int, evaluators: dict
) -> float:
    """Return the largest relative difference between the loss curves."""
    curves = [
        np.asarray(train(config, data, classes, evaluator).losses)
        for evaluator in evaluators.values()
    ]
    return float(np.abs(curves[1] / curves[0] - 1).max())


def trained(
    config: Config, data: Batch, classes: int, evaluator: Any, seeds: int
) -> list[Training]:
    """Train from each of the seeds 0, 1, ..."""
    configs = (replace(config, seed=seed) for seed in range(seeds))
    return [train(seeded, data, classes, evaluator) for seeded in configs]


def main(arguments: argparse.Namespace) -> None:
    """Print what was asked for."""
    jax.config.update("jax_enable_x64", arguments.check)
    dtype = np.float64 if arguments.check else np.float32
    data, test, classes = load(arguments, dtype)
    config = Config(arguments.state_size, steps=arguments.steps)
    chosen = METHODS[arguments.method]
    evaluators = {"sequential": sequential, arguments.method: parallel(chosen)}
    print(f"{jax.devices()[0].device_kind}, {np.dtype(dtype)}, {asdict(config)}")
    print(f"{len(data.labels)} + {len(test.labels)} recordings {data.inputs.shape[1:]}")
    if arguments.check:
        found = compare_losses(config, data, classes, evaluators)
        print(f"largest relative difference of the losses: {found:.2e}")
        return
    seconds = time_per_step(config, data, classes, evaluators)
    for name, evaluator in evaluators.items():
        memory = temporary_bytes(config, data, classes, evaluator) / 2**20
        runs = trained(config, data, classes, evaluator, arguments.seeds)
        scores = [accuracy(run.params, test) for run in runs]
        print(
            f"{name:>10}: {1e3 * seconds[name]:.0f} ms a step, {memory:.0f} MiB "
            f"temporary, test accuracy {np.mean(scores):.3f} +- {np.std(scores):.3f} "
            f"{np.round(scores, 3).tolist()}",
            flush=True,
        )
    print(f"{arguments.method}, once trained: {how(runs[-1].params, data, chosen)}")


def how(params: Any, data: Batch, method: Any) -> str:
    """Say how the first layer's recurrence over the first recording is evaluated."""
    cell = nn.GRUCell(params["kernel"].shape[0], param_dtype=data.inputs.dtype)
    f, h0 = cells.from_linen(cell, params["layers"][0])
    solution = elk.evaluate(f, h0, jnp.asarray(data.inputs[0]), method=method)
    if solution.plan is not None:
        return solution.plan.describe()
    status = elk.Status(int(solution.status)).name
    return f"{status} after {int(solution.num_iters)} iterations"


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ts", nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("--aeon", metavar="NAME")
    parser.add_argument("--held-out", nargs="+", type=int, default=[8, 9, 10])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--state-size", type=int, default=16)
    parser.add_argument("--length", type=int, help="cut or pad to this many steps")
    parser.add_argument("--method", choices=METHODS, default="auto")
    parser.add_argument("--check", action="store_true", help="compare float64 losses")
    return parser.parse_args(words)


if __name__ == "__main__":
    main(parse())
