"""A file as a series for a model: columns that are observed, and those of inputs."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.reading import Recording, fill_gaps, read_recording, reading_of
from elk_ssm.cli.series.grid import Grid, grid_of


@dataclass(frozen=True)
class Series:
    """What a model is fitted to.

    Attributes:
        path: the file.
        names: of the observed columns.
        values: `(T, E)`, NaN where missing.
        inputs: `(T, U)`, for regressions, or `None`.
        grid: the steps.
        line: what was read, in words.
    """

    path: Path
    names: tuple[str, ...]
    values: np.ndarray
    inputs: np.ndarray | None
    grid: Grid
    line: str


def read_series(args: argparse.Namespace, model: Any) -> Series:
    """Read the series that a model is for.

    Raises:
        UsageError: the file, its columns or its times do not fit.
    """
    _check_inputs(args, model.num_inputs)
    recording = _read(args, args.data, (*args.column, *args.inputs))
    observed = recording.values.shape[1] - len(args.inputs)
    if observed != model.emission_dim:
        names = ", ".join(recording.names[:20])
        raise UsageError(
            f"{args.data}: the model is of {_columns(model.emission_dim)}, and there "
            f"{'is' if observed == 1 else 'are'} {observed}: {names}; choose with "
            "--column."
        )
    time, count = recording.time, len(recording.values)
    grid = grid_of(time, count, recording.time_name, args.spacing)
    values = grid.spread(recording.values)
    inputs = values[:, observed:] if args.inputs else None
    _check_complete(args, recording, inputs)
    absent = len(values) - count
    note = f", {absent:,} step{'s' if absent > 1 else ''} without a row"
    line = recording.line() + (note if absent else "")
    columns = recording.names[:observed]
    return Series(args.data, columns, values[:, :observed], inputs, grid, line)


def future_inputs(args: argparse.Namespace, steps: int) -> np.ndarray | None:
    """Return the inputs of the steps to forecast, `(steps, U)`."""
    if not args.inputs:
        return None
    if args.future is None:
        raise UsageError(
            "a forecast with inputs needs those of the steps to come: --future FILE."
        )
    recording = _read(args, args.future, tuple(args.inputs))
    values = recording.values[:steps]
    if len(values) < steps:
        raise UsageError(
            f"{args.future}: {steps} steps are to be forecast, and it has "
            f"{len(values)} rows."
        )
    if np.isnan(values).any():
        row, column = (int(i) for i in np.argwhere(np.isnan(values))[0])
        raise UsageError(f"{recording.where(row, column)}: an input is missing.")
    return values


def _read(args: argparse.Namespace, path: Path, columns: tuple[str, ...]) -> Recording:
    reading = replace(reading_of(args), columns=columns)
    return fill_gaps(read_recording(path, reading), args.missing)


def _check_inputs(args: argparse.Namespace, wanted: int) -> None:
    if args.inputs and not args.column:
        raise UsageError("--inputs needs --column, to tell the two apart.")
    if len(args.inputs) != wanted:
        raise UsageError(
            f"the regressions of the model take {_columns(wanted)} of inputs, and "
            f"--inputs names {len(args.inputs)}; say --column and --inputs."
        )
    if args.future is not None and not args.inputs:
        raise UsageError("--future is for models with --inputs.")


def _check_complete(
    args: argparse.Namespace, recording: Recording, inputs: np.ndarray | None
) -> None:
    if inputs is None:
        return
    own = recording.values[:, -inputs.shape[1] :]
    for row, column in np.argwhere(np.isnan(own))[:1]:
        place = recording.values.shape[1] - inputs.shape[1] + int(column)
        raise UsageError(
            f"{recording.where(int(row), place)}: an input is missing; only the "
            "series may have gaps."
        )
    if np.isnan(inputs).any():
        raise UsageError(
            f"{args.data}: a step has no row, so no input; --spacing rows takes each "
            "row for a step."
        )


def _columns(count: int) -> str:
    return f"{count} column{'' if count == 1 else 's'}"
