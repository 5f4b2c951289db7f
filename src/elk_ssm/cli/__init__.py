"""The command line: `elk-ssm fit`, `smooth`, `decompose`, `evaluate`, `demo`, `bench`.

Exit codes: 0 done; 1 the evaluation or the fit did not converge (its file is written
all the same); 2 a mistake in the arguments or the data, or a file or standard output
that cannot be written, told in one line; 130 interrupted; 141 nobody reads the output.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

import elk_ssm
from elk_ssm.cli.arguments import integer
from elk_ssm.cli.bench import add_bench
from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.evaluate import add_evaluate
from elk_ssm.cli.output import (
    OutputLostError,
    complain,
    let_go_of_standard_output,
    to_standard_output,
)
from elk_ssm.cli.series import add_series


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the arguments after the program's name; those of the process by default.
    """
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except UsageError as error:
        return _fail(str(error))
    except OutputLostError as error:
        if argv is None:
            let_go_of_standard_output()
        return _fail(str(error), error.code)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        reason = str(error) or "out of memory"
        return _fail(f"the computation failed: {reason.splitlines()[0]}")
    except KeyboardInterrupt:  # A process of our own ends without: see `interrupts`.
        complain("interrupted")
        return 130


def _fail(message: str, code: int = 2) -> int:
    complain(f"error: {message}")
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, the same for every command."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        # As argparse's, which says nothing where --help has no reader.
        with to_standard_output():
            print(message, end="")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="elk-ssm",
        description="State-space models of series, and nonlinear recurrences as Kalman "
        "inference.",
        allow_abbrev=False,
    )
    version = f"elk-ssm {elk_ssm.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    add_series(commands)
    add_evaluate(commands)
    add_bench(commands)
    return parser


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="compare the methods on a real recording",
        description="Drive a GRU, an LSTM and a vanilla RNN with an intracellular "
        "recording, evaluate each by every method, print a table and draw a figure.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output-dir", type=Path, default=Path("."), metavar="DIR")
    add("--length", type=integer(1), metavar="N", help="samples to use (default: all)")
    add("--seed", type=integer(0), default=0, help="seed of the weights (default: 0)")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    # Here, because the demo brings rich and matplotlib.
    from elk_ssm.cli.demo import run_demo

    return run_demo(args.output_dir, args.length, args.seed)
