"""`elk-ssm fit`, `elk-ssm smooth` and `elk-ssm decompose`: their flags, and the order.

model, files to write     what can be wrong is said first
series                    read, and said in one line
fitted                    found or put in
tables and figures        computed, then written
parameters                shown, and what became of it in one line
"""

import argparse
from pathlib import Path
from typing import Any

import jax

from elk_ssm.cli.arguments import integer, tolerance
from elk_ssm.cli.errors import UsageError, needed
from elk_ssm.cli.output import complain, say
from elk_ssm.cli.reading import GAP_POLICIES, SUFFIXES, add_reading_arguments
from elk_ssm.cli.series.data import Series, future_inputs, read_series
from elk_ssm.cli.series.found import fitted_to, model_of
from elk_ssm.cli.series.grid import SPACINGS
from elk_ssm.cli.series.results import check_figure, check_table
from elk_ssm.cli.series.stored import as_json
from elk_ssm.cli.series.tables import decomposed, forecast, smoothed
from elk_ssm.cli.writing import check_output, write_files
from elk_ssm.solution import Status

MAX_STEPS = 1_000_000
_EPILOG = (
    "A SUM adds up level, trend, seasonal(PERIOD) or seasonal(PERIOD, harmonics=N), "
    "cycle(SHORTEST, LONGEST), ar(ORDER), arma(P, Q), regression(COUNT), matern(NU). "
    "FILE comes first: behind a flag of several values it would be one of them."
)
LIGHTER = "a model of fewer states (harmonics of a season), a shorter series"


def add_series(commands: Any) -> None:
    """Add the commands to the parser."""
    fit = _add(
        commands,
        "fit",
        "fit a model to a series, and forecast it",
        "Fit a sum of components to a series, show the parameters with standard "
        "errors, and forecast.",
    )
    steps = integer(1, MAX_STEPS)
    fit("--forecast", type=steps, metavar="N", help="steps to forecast after the last")
    fit(
        "--future",
        type=Path,
        metavar="FILE",
        help="the inputs of the steps to forecast, in columns named as in the data",
    )
    smooth = _add(
        commands,
        "smooth",
        "the signal in a series, and its states, given all of it",
        "Fit a sum of components, or take --params, and write the series without its "
        "noise and every state, each with its standard deviation; gaps are filled.",
    )
    apart = _add(
        commands,
        "decompose",
        "a series as the sum of its components",
        "Fit a sum of components, or take --params, and write each with its band.",
    )
    for add in (smooth, apart):
        add("--future", type=Path, help=argparse.SUPPRESS)


def _add(commands: Any, name: str, short: str, long: str) -> Any:
    parser = commands.add_parser(
        name,
        help=short,
        description=long,
        usage=f"elk-ssm {name} FILE --model SUM [flags]",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    add = parser.add_argument
    known = ", ".join(SUFFIXES)
    add("data", type=Path, metavar="FILE", help=f"the series: {known}; text gzipped")
    add("--model", metavar="SUM", help='such as "trend + seasonal(52, harmonics=6)"')
    add("--output", type=Path, metavar="FILE", help="table to write, .csv or .npz")
    add("--figure", type=Path, metavar="FILE", help="picture, .png, .svg or .pdf")
    share = "probability of the bands (default: 0.95)"
    add("--level", type=tolerance, default=0.95, metavar="X", help=share)
    add("--save-params", type=Path, metavar="FILE", help="write parameters, .json")
    add("--params", type=Path, metavar="FILE", help="take them from there: no fit")
    search = parser.add_argument_group("how to fit").add_argument
    search(
        "--fix",
        nargs="+",
        default=[],
        metavar="NAME[=VALUE]",
        help="parameters to leave as they are, or at a value",
    )
    most, starts = "most steps (default: 200)", "searches, all at once (default: 1)"
    search("--max-iters", type=integer(1), default=200, metavar="N", help=most)
    search("--starts", type=integer(1, 1000), default=1, metavar="N", help=starts)
    seed = "seed of where the others start (default: 0)"
    search("--seed", type=integer(0), default=0, metavar="N", help=seed)
    search(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show the search as it runs (default: on a terminal)",
    )
    reading = parser.add_argument_group("how to read it").add_argument
    add_reading_arguments(reading, ("keep", *GAP_POLICIES))
    reading(
        "--inputs",
        nargs="+",
        default=[],
        metavar="NAME_OR_NUMBER",
        help="columns of the inputs of regressions",
    )
    reading(
        "--spacing",
        choices=SPACINGS,
        default="grid",
        help="steps are those of a grid that times are on, rows whatever their "
        "times, or spans of continuous time (default: grid)",
    )
    parser.set_defaults(run=_run, command=name, lighter=LIGHTER)
    return add


def _run(args: argparse.Namespace) -> int:
    # Sums of squares of thousands of values: half of the digits are soon gone.
    with jax.enable_x64(True):
        return _in_double(args)


def _in_double(args: argparse.Namespace) -> int:
    _check_files(args)
    text, model, stored = model_of(args)
    series = read_series(args, model)
    ahead = getattr(args, "forecast", None)
    future = future_inputs(args, ahead) if ahead else None
    say(series.line)
    fitted = fitted_to(args, model, stored, series)
    status = "given" if stored else Status(int(fitted.status)).name
    files = _files(args, series, fitted, future)
    if args.save_params is not None:
        files[args.save_params] = as_json(text, fitted, series, status)
    write_files(files)
    # Here, so that importing the command line does not import rich.
    from elk_ssm.cli.series.parameters import show_fit, show_parameters

    show = show_fit if args.command == "fit" and stored is None else show_parameters
    show(fitted)
    return _report(fitted, status, list(files))


def _check_files(args: argparse.Namespace) -> None:
    check_table(args.output)
    check_figure(args.figure)
    if args.save_params is not None:
        check_output(args.save_params, ".json")
    written = [x for x in (args.output, args.figure, args.save_params) if x]
    if len({path.resolve() for path in written}) < len(written):
        raise UsageError("two outputs have the same name.")
    if args.figure is not None:
        needed("matplotlib", "--figure", "elk-ssm[plots]")
    if args.command == "fit":
        for flag in ("output", "future"):
            if getattr(args, flag) is not None and args.forecast is None:
                raise UsageError(f"--{flag} is for a forecast: say --forecast N.")
        if args.forecast is not None and args.output is None and args.figure is None:
            raise UsageError("--forecast goes to a file: say --output or --figure.")
    elif args.output is None and args.figure is None:
        raise UsageError(f"{args.command} writes a file: say --output or --figure.")


def _files(
    args: argparse.Namespace, series: Series, fitted: Any, future: Any
) -> dict[Path, bytes]:
    """Return what is to be written, by its place."""
    wanted = args.output is not None or args.figure is not None
    if not wanted:
        return {}
    if args.command == "fit" and args.forecast is not None:
        result = forecast(series, fitted, args.forecast, future, args.level)
    elif args.command in ("fit", "smooth"):
        result = smoothed(series, fitted, args.level)
    else:
        result = decomposed(series, fitted, args.level)
    files = {}
    if args.output is not None:
        files[args.output] = result.columns.as_bytes(args.output.suffix)
    if args.figure is not None:
        from elk_ssm.cli.series.figures import as_picture

        files[args.figure] = as_picture(result, args.figure.suffix)
    return files


def _report(fitted: Any, status: str, files: list[Path]) -> int:
    searched = "parameters as given"
    if status != "given":
        count = int(fitted.num_iters)
        searched = f"{status} after {count} step{'' if count == 1 else 's'}"
    wrote = f"; wrote {', '.join(map(str, files))}" if files else ""
    say(f"{searched}, log likelihood {float(fitted.log_likelihood):,.3f}{wrote}")
    if status in ("given", "converged"):
        return 0
    complain(f"not converged: {fitted.message.replace('max_iters', '--max-iters')}")
    return 1
