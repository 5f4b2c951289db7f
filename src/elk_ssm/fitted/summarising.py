r"""A fit as a table: parameters, how good it is, whether it has converged.

    z = estimate / standard error,    interval = v(x +- 1.96 standard errors / v'(x))

with v(x) the parameter as a function of an unconstrained one, so that an interval of a
variance is of positive numbers: see `models.errors`. A parameter that is fixed, or at
its boundary, has none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from elk_ssm._types import Array
from elk_ssm.fitted.errors_ahead import diagnostics
from elk_ssm.fitted.whiteness import Diagnostics
from elk_ssm.models.errors import interval
from elk_ssm.models.fit import ModelFit
from elk_ssm.solution import Status

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

WIDTH = 80
_NORMAL = 1.959963984540054


@dataclass(frozen=True)
class Row:
    """One parameter, as numbers; `note` says why it has no standard error."""

    name: str
    estimate: float
    standard_error: float
    z: float
    lower: float
    upper: float
    note: str


@dataclass(frozen=True)
class Summary:
    """What there is to say about a fit; `print`, `str` and rich show it as a table.

    Attributes:
        rows: The parameters, one for each number.
        facts: What else there is, in words, by name.
        tests: Of the innovations.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.array([1.0, 1.4, 0.7, 2.2, 2.6, 1.9, 3.4, 3.1])
        >>> found = elk.summary(elk.fit(elk.models.local_level(), y))
        >>> [row.name for row in found.rows], found.facts["status"]
        (['level.variance', 'noise.variance'], 'converged')
    """

    rows: tuple[Row, ...]
    facts: dict[str, str]
    tests: Diagnostics

    def __str__(self) -> str:
        """Return the table as text of 80 columns."""
        from rich.console import Console

        console = Console(width=WIDTH, color_system=None, record=False)
        with console.capture() as captured:
            console.print(self)
        lines = captured.get().splitlines()
        return "\n".join(line.rstrip() for line in lines)

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> "RenderResult":
        """Yield the tables."""
        yield _facts_table(self.facts)
        yield _parameter_table(self.rows)
        yield _test_table(self.tests)


def summary(fitted: ModelFit) -> Summary:
    """Return a table of a fit: parameters and their errors, criteria, tests.

    Args:
        fitted: What `elk_ssm.fit` returned for one series.

    Raises:
        TypeError: That is no fit of a model of `elk_ssm.models`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.array([1.0, 1.4, 0.7, 2.2, 2.6, 1.9, 3.4, 3.1])
        >>> text = str(elk.summary(elk.fit(elk.models.local_level(), y)))
        >>> "noise.variance" in text, max(map(len, text.splitlines())) <= 80
        (True, True)
    """
    if not isinstance(fitted, ModelFit):
        raise TypeError(
            "summary takes what elk.fit returned for a model of elk.models; got "
            f"{type(fitted).__name__}."
        )
    facts = {
        "components": " + ".join(c.name for c in fitted.model.components),
        "status": Status(int(fitted.status)).name.replace("_", " "),
        "observations": f"{int(fitted.num_observations)} of {fitted.emissions.size}",
        "log likelihood": f"{float(fitted.log_likelihood):.4f}",
        "AIC": f"{float(fitted.aic):.4f}",
        "BIC": f"{float(fitted.bic):.4f}",
    }
    if float(fitted.log_prior):
        facts["log prior"] = f"{float(fitted.log_prior):.4f}"
    if not bool(fitted.converged):
        facts["advice"] = fitted.message
    return Summary(tuple(_rows(fitted)), facts, diagnostics(fitted))


def _rows(fitted: ModelFit) -> Iterator[Row]:
    free, specs = set(fitted.model.free), fitted.model.specs
    for name, value in fitted.parameters.items():
        none = np.full(np.shape(value), np.nan)
        errors: Any = fitted.standard_errors.get(name, none)
        ends: Any = (none, none)
        if np.isfinite(errors).any():
            ends = interval(specs[name].bijection, value, errors, _NORMAL)
        values, errors, *ends = (np.atleast_1d(x) for x in (value, errors, *ends))
        bound = np.atleast_1d(fitted.at_boundary.get(name, none == 0))
        for i, numbers in enumerate(zip(values, errors, *ends)):
            label = name if len(values) == 1 else f"{name}[{i}]"
            note = "fixed" if name not in free else "at boundary" if bound[i] else ""
            one, error, lower, upper = map(float, numbers)
            z = one / error if error > 0 else np.nan
            yield Row(label, one, error, z, lower, upper, note)


def _facts_table(facts: dict[str, str]) -> "Table":
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, text in facts.items():
        table.add_row(name, text)
    return table


def _parameter_table(rows: tuple[Row, ...]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    table.add_column("parameter", overflow="fold")
    for name in ("estimate", "std. error", "z"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("95 % interval", justify="right", overflow="fold")
    for row in rows:
        if row.note:
            table.add_row(row.name, _short(row.estimate), row.note, "", "")
            continue
        error, z = _short(row.standard_error), f"{row.z:.2f}"
        interval = f"{_short(row.lower)} {_short(row.upper)}"
        if not np.isfinite(row.standard_error):
            error, z, interval = "none", "", ""
        table.add_row(row.name, _short(row.estimate), error, z, interval)
    return table


def _test_table(tests: Diagnostics) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    table.add_column("test of the innovations", overflow="fold")
    table.add_column("statistic", justify="right")
    table.add_column("p", justify="right")
    lags = len(tests.serial_correlation.statistic)
    last = tests.serial_correlation
    shown: dict[str, tuple[Array, Array | None]] = {
        f"Ljung-Box, {lags} lags": (last.statistic[-1], last.p_value[-1]),
        "Jarque-Bera normality": tests.normality,
        "heteroskedasticity H": tests.heteroskedasticity,
        "skewness": (tests.skewness, None),
        "kurtosis": (tests.kurtosis, None),
    }
    for name, (statistic, p_value) in shown.items():
        table.add_row(name, _numbers(statistic), _numbers(p_value))
    return table


def _numbers(values: Array | None) -> str:
    """Return one number, or those of several emissions, as one cell."""
    if values is None:
        return ""
    return " ".join(f"{float(x):.3f}" for x in np.atleast_1d(np.asarray(values)))


def _short(value: Any) -> str:
    return f"{float(value):.4g}"
