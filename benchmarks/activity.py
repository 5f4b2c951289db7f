"""Training on human-activity recordings, recorded: accuracy, time, memory, losses.

    python -m benchmarks.activity            # measure, write results/activity.json
    python -m benchmarks.activity --small    # seconds, no files

The model, the data and the training loop are those of `benchmarks.training`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

import elk_ssm as elk
from benchmarks import harness
from benchmarks.harness import Row

SEEDS, CHECKED_STEPS = 5, 50
TRAINED = ("lax.scan", "auto")
BLOCKS = "Jacobi over blocks of 128"


def evaluators() -> dict[str, Any]:
    """What is compared. Flax is imported by those who measure, not by the site."""
    from benchmarks.training import METHODS, parallel, sequential

    return {
        "lax.scan": sequential,
        "auto": parallel(METHODS["auto"]),
        "Newton over blocks": parallel(METHODS["newton"]),
        BLOCKS: parallel(elk.jacobi(block_size=128)),
    }


def measure(length: int | None, config: Any, seeds: int) -> dict[str, Any]:
    """Train, time and compare, on recordings cut to `length` steps."""
    from benchmarks import training

    words = training.parse([] if length is None else ["--length", str(length)])
    data, test, classes = training.load(words, np.float32)
    compared = evaluators()
    seconds = training.time_per_step(config, data, classes, compared)
    rows: list[Row] = []
    for name, evaluator in compared.items():
        bytes_ = training.temporary_bytes(config, data, classes, evaluator)
        row = {"evaluated by": name, "ms a step": 1e3 * seconds[name]}
        row |= {"temporary MB": bytes_ / 1e6}
        if name in TRAINED:
            row |= _accuracies(config, data, test, classes, evaluator, seeds)
        rows.append(row)
        print(row, flush=True)
    sizes = {"to train on": len(data.labels), "to test on": len(test.labels)}
    steps = min(config.steps, CHECKED_STEPS)
    losses = _losses(words, training.Config(config.state_size, steps=steps))
    return {
        "config": asdict(config) | sizes | {"T": data.inputs.shape[1]},
        "methods": rows,
        "losses": losses,
    }


def _accuracies(
    config: Any, data: Any, test: Any, classes: int, evaluator: Any, seeds: int
) -> Row:
    from benchmarks import training

    runs = training.trained(config, data, classes, evaluator, seeds)
    scores = [float(training.accuracy(run.params, test)) for run in runs]
    return {
        "test accuracy": float(np.mean(scores)),
        "its deviation": float(np.std(scores)),
        "by seed": scores,
    }


def _losses(words: Any, config: Any) -> list[Row]:
    """Largest relative difference of the loss curves from the scan's, in float64."""
    from benchmarks import training

    rows, compared = [], evaluators()
    with jax.enable_x64(True):
        data, _, classes = training.load(words, np.float64)
        for name in ("auto", BLOCKS):
            pair = {each: compared[each] for each in ("lax.scan", name)}
            found = training.compare_losses(config, data, classes, pair)
            rows.append({"evaluated by": name, "steps": config.steps})
            rows[-1]["largest relative difference"] = found
            print(rows[-1], flush=True)
    return rows


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/activity.md` has places for."""
    rows = stored["rows"]
    config, seeds = rows["config"], rows["methods"][0]["by seed"]
    columns = ["evaluated by", "ms a step", "temporary MB"]
    columns += ["test accuracy", "its deviation"]
    return {
        "train": str(config["to train on"]),
        "test": str(config["to test on"]),
        "T": f"{config['T']:,}",
        "units": str(config["state_size"]),
        "steps": str(config["steps"]),
        "batch": str(config["batch_size"]),
        "seeds": str(len(seeds)),
        "methods": harness.table(rows["methods"], columns),
        "losses": harness.table(rows["losses"], list(rows["losses"][0])),
    }


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    from benchmarks.training import Config

    if "--small" in arguments:
        measure(40, Config(4, batch_size=4, steps=3), 1)
        return 0
    machine = harness.hardware()
    harness.write("activity", measure(None, Config(), SEEDS), machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
