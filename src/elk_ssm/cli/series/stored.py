"""Parameters as JSON: what was fitted, and the model to put it back into."""

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elk_ssm.cli.errors import UsageError, file_errors

_KEYS = ("model", "parameters")


@dataclass(frozen=True)
class Stored:
    """Parameters of a file.

    Attributes:
        model: the model as text.
        parameters: by name.
        standard_errors: by name, NaN where there is none.
    """

    model: str
    parameters: dict[str, Any]
    standard_errors: dict[str, Any]


def as_json(model: str, fitted: Any, series: Any, status: str) -> bytes:
    """Return the parameters of a fit as JSON; NaN becomes null."""
    about = {
        "model": model,
        "parameters": _plain(fitted.parameters),
        "standard_errors": _plain(fitted.standard_errors),
        "log_likelihood": _number(fitted.log_likelihood),
        "status": status,
        "num_observations": int(fitted.num_observations),
        "columns": list(series.names),
        "version": importlib.metadata.version("elk-ssm"),
    }
    return (json.dumps(about, indent=1, allow_nan=False) + "\n").encode()


def read_parameters(path: Path) -> Stored:
    """Read what `as_json` wrote.

    Raises:
        UsageError: it is no such file.
    """
    with file_errors(path, "cannot read"):
        text = path.read_bytes()
    try:
        about = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(about, dict) or not all(key in about for key in _KEYS):
        raise UsageError(
            f"{path}: expected what --save-params writes, with {' and '.join(_KEYS)}."
        )
    if not isinstance(about["model"], str) or not isinstance(about["parameters"], dict):
        raise UsageError(f"{path}: expected a model as text and parameters by name.")
    errors = about.get("standard_errors")
    return Stored(
        about["model"],
        {k: _array(path, k, v) for k, v in about["parameters"].items()},
        {k: _array(path, k, v) for k, v in dict(errors or {}).items()},
    )


def _array(path: Path, name: str, value: Any) -> np.ndarray:
    """Return a number or nested lists of them, NaN for null."""
    try:
        return np.asarray(value, float)
    except (TypeError, ValueError):
        raise UsageError(f"{path}: {name}: expected numbers, got {value!r}.") from None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _number(value) for key, value in values.items()}


def _number(value: Any) -> Any:
    """Return an array as numbers or lists of them."""
    value = np.asarray(value, float)
    if value.ndim:
        return [_number(one) for one in value]
    return float(value) if np.isfinite(value) else None
