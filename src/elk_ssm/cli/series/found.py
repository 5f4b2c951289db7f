"""Parameters for a series: fitted, with progress, or put in from a file."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.output import shows_progress
from elk_ssm.cli.series.data import Series
from elk_ssm.cli.series.stored import Stored, read_parameters
from elk_ssm.models.checks import check_series
from elk_ssm.models.data import gaps_between
from elk_ssm.models.evidence import evidence


def model_of(args: argparse.Namespace) -> tuple[str, Any, Stored | None]:
    """Return the model as text, as an object, and the parameters given for it.

    Raises:
        UsageError: there is none, or the parameters are not those of the model.
    """
    stored = None if args.params is None else read_parameters(args.params)
    if args.model is None and stored is None:
        raise UsageError("say --model, such as --model 'trend + seasonal(12)'.")
    text = args.model or (stored.model if stored else "")
    where = "--model" if args.model else str(args.params)
    try:
        model = elk.models.parse(text)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    if stored is None:
        return text, _with_fixed(args, model), None
    for flag, given in (("--fix", args.fix), ("--starts", args.starts != 1)):
        if given:
            raise UsageError(f"{flag} is for a fit, and --params asks for none.")
    missing = set(model.parameters) ^ set(stored.parameters)
    if missing:
        raise UsageError(
            f"{args.params}: its parameters are {', '.join(stored.parameters)}, and "
            f"those of the model {', '.join(model.parameters)}."
        )
    for name, value in stored.parameters.items():
        shape = np.shape(model.parameters[name])
        if np.shape(value) != shape or not np.isfinite(value).all():
            raise UsageError(
                f"{args.params}: {name}: expected "
                f"{f'numbers of shape {shape}' if shape else 'a number'}."
            )
    try:
        return text, model.replace(**stored.parameters), stored
    except ValueError as error:
        raise UsageError(f"{args.params}: {error}") from None


def fitted_to(
    args: argparse.Namespace, model: Any, stored: Stored | None, series: Series
) -> Any:
    """Return the model fitted to a series, or with the parameters given as they are.

    Raises:
        UsageError: the series does not do for the model.
    """
    try:
        if stored is None:
            return elk.fit(
                model, series.values, series.inputs, **_options(args, series)
            )
        return _given(model, stored, series)
    except ValueError as error:
        raise UsageError(f"{args.data}: {error}") from None


def _options(args: argparse.Namespace, series: Series) -> dict[str, Any]:
    options: dict[str, Any] = {"times": series.grid.elapsed}
    shown = shows_progress(args.progress)
    options |= {"max_iters": args.max_iters, "progress": shown}
    if args.starts > 1:
        options |= {"num_starts": args.starts, "key": jax.random.key(args.seed)}
    return options


def _given(model: Any, stored: Stored, series: Series) -> elk.models.ModelFit:
    """Return what a fit would be that had ended at these parameters."""
    y = jnp.asarray(series.values)
    inputs = None if series.inputs is None else jnp.asarray(series.inputs)
    times = series.grid.elapsed
    gaps = None if times is None else gaps_between(times)
    check_series(model, y, inputs, gaps, None)
    value = jax.jit(evidence)(model, y, inputs, gaps)
    nothing = jnp.zeros((), int)
    return elk.models.ModelFit(
        model,
        stored.standard_errors,
        {},
        value,
        jnp.zeros_like(value),
        jnp.asarray(int(elk.Status.converged)),
        nothing,
        nothing,
        jnp.full_like(value, jnp.nan),
        value[None],
        jnp.sum(~jnp.isnan(y)),
        y,
        inputs,
        gaps,
        times if times is None else jnp.asarray(times),
    )


def _with_fixed(args: argparse.Namespace, model: Any) -> Any:
    for text in args.fix:
        name, equals, value = text.partition("=")
        try:
            model = model.fix(**{name: float(value)}) if equals else model.fix(name)
        except ValueError as error:
            raise UsageError(f"--fix {text}: {error}") from None
    return model
