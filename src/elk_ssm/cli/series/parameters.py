"""The parameters of a fit as a table.

A terminal too narrow for the table gets a line for each parameter.
"""

import sys
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

import elk_ssm as elk
from elk_ssm.cli.output import to_standard_output
from elk_ssm.fitted.summarising import WIDTH

HEADINGS = ("parameter", "value", "std. error", "")
BOUNDARY = "at its boundary"


def show_fit(fitted: Any, console: Console | None = None) -> None:
    """Print all there is to say about a fit, or what a narrow terminal has room for."""
    console = console or Console(file=sys.stdout)
    if console.width < WIDTH:
        show_parameters(fitted, console)
        return
    with to_standard_output():
        console.print(elk.summary(fitted))


def show_parameters(fitted: Any, console: Console | None = None) -> None:
    """Print every parameter with its standard error."""
    console = console or Console(file=sys.stdout)
    rows = _rows(fitted)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in HEADINGS:
        right: Any = "right" if heading in HEADINGS[1:3] else "left"
        table.add_column(heading, justify=right, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    boundless = console.options.update(width=1_000)
    with to_standard_output():
        if Measurement.get(console, boundless, table).maximum <= console.width:
            console.print(table)
            return
        for name, value, error, note in rows:
            parts = [f"{name} {value}", f"std. error {error}" if error else "", note]
            console.print(", ".join(filter(None, parts)), highlight=False)


def _rows(fitted: Any) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, value in fitted.parameters.items():
        values = np.asarray(value, float)
        nothing = np.full(values.shape, np.nan)
        errors = np.asarray(fitted.standard_errors.get(name, nothing), float)
        none = np.zeros(values.shape, bool)
        bound = np.asarray(fitted.at_boundary.get(name, none))
        for index in np.ndindex(values.shape):
            number = "".join(f"[{i}]" for i in index)
            error = f"{errors[index]:.4g}" if np.isfinite(errors[index]) else ""
            note = BOUNDARY if bound[index] else ""
            if name not in fitted.model.free:
                note = "fixed"
            rows.append((name + number, f"{values[index]:.6g}", error, note))
    return rows
