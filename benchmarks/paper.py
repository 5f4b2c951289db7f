"""The figures of arXiv 2407.19115 again, ours beside what was published.

    python -m benchmarks.paper             # every figure: results and pictures
    python -m benchmarks.paper lorenz      # that part again (see PARTS), others kept
    python -m benchmarks.paper --small     # seconds, no files
    python -m benchmarks.paper --figure    # the pictures again, from stored results

| figure of the paper | what it shows | part |
|---|---|---|
| 2, 6 | time and memory of GRUs over T and D, batches of 16 and of 1 | time, memory |
| 4 | convergence on an autoregressive GRU, untrained and trained | argru |
| 5 | that outputs agree with sequential evaluation | agreement |
| 7 | iterations on the AR-GRU by the noise of ELK | sensitivity |
| 8 | Lorenz-96: the same; with and without damping | sensitivity, lorenz |

What is in which figure is taken from the authors' scripts (github lindermanlab/elk,
`experiments/`), their grids of sizes and noises included. Figure 3 (EigenWorms) needs
data that no package has: `benchmarks.training --ts` runs it where the files are, and
`benchmarks.activity` stands in.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import harness, paper_convergence, paper_cost, paper_figures, paper_page
from benchmarks.harness import Row

FULL, SMALL = paper_convergence.FULL, paper_convergence.SMALL

# In the order in which they run: what is counted first, what is timed last.
PARTS: dict[str, Callable[[], Any]] = {
    "argru": lambda: paper_convergence.autoregressive(FULL),
    "lorenz": lambda: paper_convergence.lorenz(FULL),
    "sensitivity": lambda: paper_convergence.sensitivity(FULL),
    "agreement": lambda: paper_cost.measure_agreement(paper_cost.Cell(1, 4, 10_000)),
    "memory": lambda: paper_cost.measure_memory(paper_cost.COMPILED),
    "vanilla": paper_cost.measure_vanilla,
    "time": lambda: paper_cost.measure_time(paper_cost.TIMED),
}


def small() -> dict[str, Any]:
    """Every part at a size of seconds."""
    tiny = paper_cost.Cell(1, 2, 200)
    large = paper_cost.Cell(1, 64, 1_000_000)
    return {
        "argru": paper_convergence.autoregressive(SMALL),
        "lorenz": paper_convergence.lorenz(SMALL),
        "sensitivity": paper_convergence.sensitivity(SMALL),
        "agreement": paper_cost.measure_agreement(tiny, last=20),
        "memory": paper_cost.measure_memory([tiny]),
        "vanilla": paper_cost.measure_vanilla(4, 200, largest_power=0),
        "time": paper_cost.measure_time([tiny, large], seconds=0.1),
    }


def measure(names: list[str]) -> None:
    """Run parts one after the other, each stored as soon as it is there."""
    path = harness.RESULTS / "paper.json"
    for name in names:
        machine, begun = harness.hardware(), time.perf_counter()
        found: list[Row] | dict[str, list[Row]] = PARTS[name]()
        machine["minutes"] = round((time.perf_counter() - begun) / 60, 1)
        stored = harness.read("paper")["rows"] if path.exists() else {}
        part = {name: {"machine": machine, "rows": found}}
        harness.write("paper", stored | part, machine)
        print(f"{name}: done in {machine['minutes']} min", flush=True)


def show(parts: dict[str, Any]) -> None:
    """Print the tables, ours beside what was published."""
    for title, table in paper_page.tables(parts).items():
        print(f"\n{title}\n\n{table}")


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    if "--small" in arguments:
        # Before the first program: most of these seconds are compilation.
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
        show(small())
        print("\nSmall sizes, compiled without optimisation: these times say nothing.")
        return 0
    if "--figure" not in arguments:
        measure([name for name in PARTS if name in arguments] or list(PARTS))
    stored = harness.read("paper")["rows"]
    parts = {name: part["rows"] for name, part in stored.items()}
    show(parts)
    paper_figures.draw(parts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
