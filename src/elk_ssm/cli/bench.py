"""`elk-ssm bench NAME`: run one of the repository's benchmarks.

The benchmarks live beside the package, in a checkout, and not in the installed wheel:
they compare with packages that users do not need.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.interrupts import run_child

NAMES = (
    "activity",
    "argru_draws",
    "chains",
    "convergence",
    "differential_equations",
    "dynamax_objects",
    "first_result",
    "forced",
    "gradients",
    "kalman",
    "lyapunov",
    "paper",
    "predictions",
    "search",
    "series",
    "sharding",
    "speed",
    "structured",
)


def add_bench(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "bench",
        help="run a benchmark of the repository",
        description="Run a benchmark; needs a checkout of the repository.",
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--small", action="store_true", help="small sizes, no files")
    parser.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> int:
    options = ["--small"] if args.small else []
    command = [sys.executable, "-m", "benchmarks", args.name, *options]
    return run_child(command, _checkout(args.name))


def _checkout(name: str) -> Path:
    """Return the checkout that this package belongs to, if it has the benchmark."""
    checkout = Path(__file__).parents[3]
    if not (checkout / "benchmarks" / f"{name}.py").exists():
        raise UsageError(
            f"the benchmark {name} is not here: run it from a checkout of the "
            "repository, where `make test` has installed the package"
        )
    return checkout
