"""Training on human-activity recordings, recorded: accuracy, time, memory, losses.

    python -m benchmarks.activity            # results/activity.json, docs/activity.md
    python -m benchmarks.activity --small    # seconds, no files
    python -m benchmarks.activity --docs     # the page again, from the stored results

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
from benchmarks.training import (
    METHODS,
    Config,
    accuracy,
    compare_losses,
    load,
    parallel,
    parse,
    sequential,
    temporary_bytes,
    time_per_step,
    trained,
)

SEEDS, CHECKED_STEPS = 5, 50
TRAINED = ("lax.scan", "auto")
BLOCKS = "Jacobi over blocks of 128"
EVALUATORS = {
    "lax.scan": sequential,
    "auto": parallel(METHODS["auto"]),
    "Newton over blocks": parallel(METHODS["newton"]),
    BLOCKS: parallel(elk.jacobi(block_size=128)),
}


def measure(length: int | None, config: Config, seeds: int) -> dict[str, Any]:
    """Train, time and compare, on recordings cut to `length` steps."""
    words = parse([] if length is None else ["--length", str(length)])
    data, test, classes = load(words, np.float32)
    seconds = time_per_step(config, data, classes, EVALUATORS)
    rows: list[Row] = []
    for name, evaluator in EVALUATORS.items():
        bytes_ = temporary_bytes(config, data, classes, evaluator)
        row = {"evaluated by": name, "ms a step": 1e3 * seconds[name]}
        row |= {"temporary MB": bytes_ / 1e6}
        if name in TRAINED:
            row |= _accuracies(config, data, test, classes, evaluator, seeds)
        rows.append(row)
        print(row, flush=True)
    sizes = {"to train on": len(data.labels), "to test on": len(test.labels)}
    steps = min(config.steps, CHECKED_STEPS)
    losses = _losses(words, Config(config.state_size, steps=steps))
    return {
        "config": asdict(config) | sizes | {"T": data.inputs.shape[1]},
        "methods": rows,
        "losses": losses,
    }


def _accuracies(
    config: Config, data: Any, test: Any, classes: int, evaluator: Any, seeds: int
) -> Row:
    runs = trained(config, data, classes, evaluator, seeds)
    scores = [float(accuracy(run.params, test)) for run in runs]
    return {
        "test accuracy": float(np.mean(scores)),
        "its deviation": float(np.std(scores)),
        "by seed": scores,
    }


def _losses(words: Any, config: Config) -> list[Row]:
    """Largest relative difference of the loss curves from the scan's, in float64."""
    rows = []
    with jax.enable_x64(True):
        data, _, classes = load(words, np.float64)
        for name in ("auto", BLOCKS):
            pair = {"lax.scan": sequential, name: EVALUATORS[name]}
            found = compare_losses(config, data, classes, pair)
            rows.append({"evaluated by": name, "steps": config.steps})
            rows[-1]["largest relative difference"] = found
            print(rows[-1], flush=True)
    return rows


def document(stored: dict[str, Any]) -> str:
    """The page of the docs."""
    rows = stored["rows"]
    config = rows["config"]
    columns = ["evaluated by", "ms a step", "temporary MB"]
    columns += ["test accuracy", "its deviation"]
    return "\n".join(
        [
            "# Training on human-activity recordings",
            "",
            "Written by `python -m benchmarks.activity`, numbers in "
            "`benchmarks/results/activity.json`.",
            harness.machine_line(stored["hardware"]),
            "",
            f"The watch recordings of seglearn: {config['to train on']} to train on, "
            f"{config['to test on']} of other subjects to test on, 6 channels, 7 "
            f"exercises, 947 to {config['T']:,} samples, padded. Two GRU layers of "
            f"{config['state_size']} units, the mean state over the valid samples is "
            f"classified; {config['steps']} steps of Adam on batches of "
            f"{config['batch_size']}. Only the evaluation of the recurrences differs.",
            "",
            harness.table(rows["methods"], columns),
            "",
            f"Accuracy: mean and standard deviation over {SEEDS} seeds. On a CPU the "
            "default steps through a batch of 16 as a scan does; what it gains is the "
            "backward pass, which differentiates the equation and keeps states alone. "
            "Newton over blocks is what the default runs on an accelerator; on a CPU "
            "it loses, as [the page on speed](speed.md) explains.",
            "",
            "Loss curves against those of `lax.scan`, same seed, float64:",
            "",
            harness.table(rows["losses"], list(rows["losses"][0])),
            "",
            "The paper's EigenWorms (T = 17,984) is rerun, where its files are, by "
            "`python -m benchmarks.training --ts EigenWorms_TRAIN.ts "
            "EigenWorms_TEST.ts`. Not run here.",
        ]
    )


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    if "--small" in arguments:
        measure(40, Config(4, batch_size=4, steps=3), 1)
        return 0
    if "--docs" not in arguments:
        machine = harness.hardware()
        harness.write("activity", measure(None, Config(), SEEDS), machine)
    harness.document("activity", document(harness.read("activity")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
