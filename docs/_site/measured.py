"""Fill `{{ name }}` on a page with a number of `benchmarks/results/*.json`.

So that no page quotes a number that its benchmark no longer gives.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
_PLACE = re.compile(r"\{\{ *(\w+) *\}\}")


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _cost() -> list[float]:
    return [row["auto over scan"] for row in _read("convergence")["rows"]["cost"]]


def _gradients(candidate: str, column: str) -> list[float]:
    rows = _read("gradients")["rows"]
    return [row[column] for row in rows if row["candidate"] == candidate]


def _depths(prefix: str) -> list[float]:
    rows = _read("convergence")["rows"]["suite"]
    name = "auto (accelerator)"
    found = (r for r in rows if r["method"] == name and r["problem"].startswith(prefix))
    return [row["depth over T"] for row in found]


def _passes() -> list[int]:
    rows = _read("convergence")["rows"]["argru"]
    return [r["iterations"] for r in rows if r["method"] == "auto (accelerator)"]


def _counts(method: str) -> dict[str, Any]:
    return _read("published_counts")["argru"]["here"][method]


def _span(numbers: list, digits: str) -> str:
    return f"{min(numbers):{digits}} to {max(numbers):{digits}}"


VALUES: dict[str, Callable[[], str]] = {
    "cost_median": lambda: f"{median(_cost()):.2f}",
    "cost_range": lambda: _span(_cost(), ".2f"),
    "gradient_range": lambda: _span(_gradients("auto", "time over scan"), ".2f"),
    "gradient_median": lambda: f"{median(_gradients('auto', 'time over scan')):.2f}",
    "gradient_error": lambda: f"{max(_gradients('quasi_deer', 'error')):.0e}",
    "published_gradient_error": lambda: _span(
        _gradients("quasi-DEER, published backward", "error"), ".2f"
    ),
    "chaotic_depth": lambda: f"{max(_depths('chaotic')):.1f}",
    "gru_depth": lambda: f"{median(_depths('gru')):.1f}",
    "argru_passes": lambda: _span(_passes(), "d"),
    "argru_elk_range": lambda: " to ".join(map(str, _counts("elk")["range"])),
    "argru_deer_range": lambda: " to ".join(map(str, _counts("deer")["range"])),
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the places of a page; an unknown name is an error."""
    return _PLACE.sub(lambda found: VALUES[found[1]](), markdown)
