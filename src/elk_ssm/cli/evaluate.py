"""`elk-ssm evaluate`: a cell driven by a file."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from elk_ssm.cli.arguments import integer, positive, tolerance
from elk_ssm.cli.cells import CELL_NAMES, hidden_states, make_cell
from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.method_names import (
    DAMPED_METHODS,
    DEFAULT_METHOD,
    DEFAULT_NOISE,
    METHOD_NAMES,
    make_method,
)
from elk_ssm.cli.output import complain, say, shows_progress
from elk_ssm.cli.reading import (
    SUFFIXES,
    Recording,
    add_reading_arguments,
    fill_gaps,
    read_recording,
    reading_of,
)
from elk_ssm.cli.recording import standardize
from elk_ssm.cli.writing import check_output, write_npz

LIGHTER = "--method auto or quasi_deer, a smaller --state-size, a shorter file"
MAX_STATE_SIZE = 16_384  # The recurrent kernel alone is then 1 GiB in float32.


def add_evaluate(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="evaluate a cell driven by a file",
        description="Drive a randomly drawn cell with a recording and write its hidden "
        "states, the status, the settings, what was read and, for an LSTM, the memory.",
        allow_abbrev=False,
    )
    _add_data_arguments(parser)
    _add_solver_arguments(parser.add_argument)
    parser.set_defaults(run=_evaluate, lighter=LIGHTER)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    known = ", ".join(SUFFIXES)
    add(
        "--input",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"a file of samples in time: {known}; text may be gzipped",
    )
    add("--output", type=Path, required=True, metavar="FILE", help=".npz file to write")
    add_reading_arguments(parser.add_argument_group("how to read it").add_argument)
    add(
        "--standardize",
        action="store_true",
        help="give each column mean 0 and standard deviation 1 first",
    )
    add("--cell", choices=CELL_NAMES, required=True)
    size = integer(1, MAX_STATE_SIZE)
    add("--state-size", type=size, default=8, metavar="N", help="default: 8")
    add("--seed", type=integer(0), default=0, help="seed of the weights (default: 0)")


def _add_solver_arguments(add: Callable[..., Any]) -> None:
    method_help = f"default: {DEFAULT_METHOD}"
    add("--method", choices=METHOD_NAMES, default=DEFAULT_METHOD, help=method_help)
    add(
        "--noise",
        type=positive,
        metavar="X",
        help="variance s^2 of the previous iterate as an observation, for "
        f"{' and '.join(DAMPED_METHODS)}; small is careful ({DEFAULT_NOISE:g})",
    )
    add("--tol", type=tolerance, help="relative tolerance (default: by the dtype)")
    add("--max-iters", type=integer(1), metavar="N", help="default: by the length")
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show the passes as they run (default: on a terminal)",
    )


def _evaluate(args: argparse.Namespace) -> int:
    noise = _check_noise(args.method, args.noise)
    check_output(args.output, ".npz")
    recording = fill_gaps(read_recording(args.input, reading_of(args)), args.missing)
    inputs = _inputs(args, recording)
    say(recording.line())
    cell = make_cell(args.cell, args.state_size, inputs.shape[1], args.seed)
    options = {"method": make_method(args.method, noise or DEFAULT_NOISE)}
    options |= {} if args.tol is None else {"tol": args.tol}
    options |= {"max_iters": args.max_iters, "progress": shows_progress(args.progress)}
    found = elk.evaluate(cell.step, cell.initial_state, inputs, **options)
    solution = jax.device_get(found)
    results = _results(solution, _settings(args, noise)) | recording.arrays()
    write_npz(args.output, results)
    return _report(args, solution)


def _check_noise(method: str, noise: float | None) -> float | None:
    """Return the noise that `method` will use, None where it uses none."""
    if method in DAMPED_METHODS:
        return DEFAULT_NOISE if noise is None else noise
    if noise is not None:
        damped = " and ".join(DAMPED_METHODS)
        raise UsageError(f"--noise is for {damped}; {method} makes no use of it")
    return None


def _inputs(args: argparse.Namespace, recording: Recording) -> jax.Array:
    values = recording.values
    values = standardize(values) if args.standardize else values
    with np.errstate(over="ignore"):
        inputs = jnp.asarray(values, jnp.zeros(()).dtype)
    if not np.isfinite(np.asarray(inputs)).all():
        raise UsageError(f"{args.input}: a value is too large for {inputs.dtype}")
    return inputs


def _settings(args: argparse.Namespace, noise: float | None) -> dict[str, Any]:
    apart = {"run", "lighter", "noise", "input", "output", "progress"}
    settings = {name: x for name, x in vars(args).items() if name not in apart}
    settings |= {"noise": noise, "input": str(args.input)}
    return settings | {"version": elk.__version__}


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
    say(
        f"{args.cell}, {args.method}: {status.name} after {int(solution.num_iters)} "
        f"iterations, residual {float(solution.residual_norm):.1e}; "
        f"wrote {args.output}"
    )
    if status.name == "converged":
        return 0
    complain(f"not converged: {status.message}")
    return 1
