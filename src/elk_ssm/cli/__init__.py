"""The command line: `elk-ssm demo`, `elk-ssm evaluate` and `elk-ssm bench`.

Exit codes: 0 done; 1 the evaluation did not converge (its file is written all the
same); 2 a mistake in the arguments or the data, told in one line; 130 interrupted.
"""

import argparse
import importlib.metadata
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from elk_ssm.cli.bench import add_bench
from elk_ssm.cli.cells import CELL_NAMES, hidden_states, make_cell
from elk_ssm.cli.method_names import (
    DAMPED_METHODS,
    DEFAULT_METHOD,
    DEFAULT_NOISE,
    METHOD_NAMES,
    make_method,
)
from elk_ssm.cli.recording import (
    UsageError,
    check_output,
    read_recording,
    standardize,
    write_npz,
)

MAX_STATE_SIZE = 16_384  # The recurrent kernel alone is then 1 GiB in float32.
MAX_INT32 = 2**31 - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the arguments after the program's name; those of the process by default.
    """
    if argv is None:
        sys.unraisablehook = _interrupt_again
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except UsageError as error:
        return _fail(str(error))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        reason = str(error) or "out of memory"
        return _fail(f"the computation failed: {reason.splitlines()[0]}")
    except KeyboardInterrupt:
        if argv is None:
            # Shutting down in order after an interrupted compilation can crash XLA.
            os._exit(130)
        return 130


def _interrupt_again(unraisable: Any) -> None:
    """Repeat an interrupt that fell into JAX's garbage collection and was dropped."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, signal.raise_signal, [signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(unraisable)


def _fail(message: str) -> int:
    print("elk-ssm: error:", *message.split(), file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, the same for every command."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="elk-ssm",
        description="Evaluate nonlinear recurrences as Kalman inference.",
        allow_abbrev=False,
    )
    version = importlib.metadata.version("elk-ssm")
    parser.add_argument("--version", action="version", version=f"elk-ssm {version}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_evaluate(commands)
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
    add("--length", type=_integer(1), metavar="N", help="samples to use (default: all)")
    add("--seed", type=_integer(0), default=0, help="seed of the weights (default: 0)")
    parser.set_defaults(run=_demo)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="evaluate a cell driven by a file",
        description="Drive a randomly drawn cell with a recording and write its hidden "
        "states, the status, the settings and, for an LSTM, the memory.",
        allow_abbrev=False,
    )
    _add_data_arguments(parser.add_argument)
    _add_solver_arguments(parser.add_argument)
    parser.set_defaults(run=_evaluate)


def _add_data_arguments(add: Callable[..., Any]) -> None:
    add("--input", type=Path, required=True, metavar="FILE", help=".npy or .csv file")
    add("--output", type=Path, required=True, metavar="FILE", help=".npz file to write")
    add(
        "--column",
        nargs="+",
        default=[],
        metavar="NAME_OR_INDEX",
        help="columns to use, by header name or number from 0 (default: all)",
    )
    add(
        "--standardize",
        action="store_true",
        help="give each column mean 0 and standard deviation 1 first",
    )
    add("--cell", choices=CELL_NAMES, required=True)
    size = _integer(1, MAX_STATE_SIZE)
    add("--state-size", type=size, default=8, metavar="N", help="default: 8")
    add("--seed", type=_integer(0), default=0, help="seed of the weights (default: 0)")


def _add_solver_arguments(add: Callable[..., Any]) -> None:
    method_help = f"default: {DEFAULT_METHOD}"
    add("--method", choices=METHOD_NAMES, default=DEFAULT_METHOD, help=method_help)
    add(
        "--noise",
        type=_positive,
        metavar="X",
        help="variance s^2 of the previous iterate as an observation, for "
        f"{' and '.join(DAMPED_METHODS)}; small is careful ({DEFAULT_NOISE:g})",
    )
    add("--tol", type=_positive, help="tolerance (default: by the dtype)")
    add("--max-iters", type=_integer(1), metavar="N", help="default: by the length")


def _integer(low: int, high: int = MAX_INT32) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            expected = f"expected an integer from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
        return value

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _demo(args: argparse.Namespace) -> int:
    # Here, because the demo brings rich and matplotlib.
    from elk_ssm.cli.demo import run_demo

    return run_demo(args.output_dir, args.length, args.seed)


def _evaluate(args: argparse.Namespace) -> int:
    noise = _check_noise(args.method, args.noise)
    check_output(args.output, ".npz")
    inputs = _inputs(args)
    cell = make_cell(args.cell, args.state_size, inputs.shape[1], args.seed)
    options = {"method": make_method(args.method, noise or DEFAULT_NOISE)}
    options |= {} if args.tol is None else {"tol": args.tol}

    @jax.jit
    def solve(state: Any, inputs: jax.Array) -> Any:
        run = elk.evaluate
        return run(cell.step, state, inputs, max_iters=args.max_iters, **options)

    solution = jax.device_get(solve(cell.initial_state, inputs))
    write_npz(args.output, _results(solution, _settings(args, noise)))
    return _report(args, solution)


def _check_noise(method: str, noise: float | None) -> float | None:
    """Return the noise that `method` will use, None where it uses none."""
    if method in DAMPED_METHODS:
        return DEFAULT_NOISE if noise is None else noise
    if noise is not None:
        damped = " and ".join(DAMPED_METHODS)
        raise UsageError(f"--noise is for {damped}; {method} makes no use of it")
    return None


def _inputs(args: argparse.Namespace) -> jax.Array:
    values = read_recording(args.input, args.column)
    values = standardize(values) if args.standardize else values
    with np.errstate(over="ignore"):
        inputs = jnp.asarray(values, jnp.zeros(()).dtype)
    if not np.isfinite(np.asarray(inputs)).all():
        raise UsageError(f"{args.input}: a value is too large for {inputs.dtype}")
    return inputs


def _settings(args: argparse.Namespace, noise: float | None) -> dict[str, Any]:
    names = ("cell", "state_size", "seed", "method", "tol", "max_iters", "standardize")
    settings = {name: getattr(args, name) for name in names}
    settings |= {"noise": noise, "input": str(args.input), "column": args.column}
    return settings | {"version": importlib.metadata.version("elk-ssm")}


def _results(solution: Any, settings: dict[str, Any]) -> dict[str, Any]:
    results = {
        "states": hidden_states(solution.states),
        "status": elk.Status(int(solution.status)).name,
        "num_iters": solution.num_iters,
        "residual_norm": solution.residual_norm,
        "settings": json.dumps(settings),
    }
    if isinstance(solution.states, tuple):
        results["memory"] = solution.states[0]
    return results


def _report(args: argparse.Namespace, solution: Any) -> int:
    status = elk.Status(int(solution.status))
    print(
        f"{args.cell}, {args.method}: {status.name} after {int(solution.num_iters)} "
        f"iterations, residual {float(solution.residual_norm):.1e}; "
        f"wrote {args.output}"
    )
    if status.name == "converged":
        return 0
    print(f"elk-ssm: not converged: {status.message}", file=sys.stderr)
    return 1
