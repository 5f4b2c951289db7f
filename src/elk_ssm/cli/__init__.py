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
from elk_ssm._memory import MemoryLimitError, in_words, left_bytes, out_of_memory
from elk_ssm._start import end
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
    if argv is not None:
        return _run(argv)
    try:
        return end(_run(None))
    except SystemExit as done:  # Of --help and --version.
        return end(int(done.code or 0))


def _run(argv: Sequence[str] | None) -> int:
    lighter = ""
    try:
        args = _parser().parse_args(argv)
        lighter = getattr(args, "lighter", lighter)
        return args.run(args)
    except UsageError as error:
        return _fail(str(error))
    except OutputLostError as error:
        if argv is None:
            let_go_of_standard_output()
        return _fail(str(error), error.code)
    except (MemoryError, MemoryLimitError, jax.errors.JaxRuntimeError) as error:
        return _fail(_without_memory(error, lighter))
    except KeyboardInterrupt:  # A process of our own ends without: see `interrupts`.
        complain("interrupted")
        return 130


def _without_memory(error: Exception, lighter: str) -> str:
    """Say what did not fit, in how much room, and what takes less."""
    what = out_of_memory(error)
    if what is None:
        return f"the computation failed: {str(error).splitlines()[0]}"
    left = None if isinstance(error, MemoryLimitError) else left_bytes()
    room = "" if left is None else f", and at most {in_words(left)} may be taken"
    return f"{what}{room}. What takes less: {lighter or 'a shorter series'}."


def _fail(message: str, code: int = 2) -> int:
    complain(f"error: {message}")
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, the same for every command."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("required: FILE"):
            message += "; FILE comes first, before flags of several values"
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
