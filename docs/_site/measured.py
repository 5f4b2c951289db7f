"""Fill the places of a page with what `benchmarks/results/*.json` says.

`{{ name }}` is one of the numbers below; `{{ page.name }}` is a table, a number or the
machine of `docs/<page>.md`, given by `places` in the module of its benchmark. So no
page says what its benchmark no longer gives. The build is started in the root of the
repository as `python -m mkdocs`, which finds `benchmarks`.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from statistics import median
from typing import Any

from benchmarks import harness

PAGES = {
    name: name
    for name in (
        "activity",
        "chains",
        "convergence",
        "differential_equations",
        "dynamax_objects",
        "gradients",
        "kalman",
        "series",
        "sharding",
        "structured",
    )
} | {"speed": "speed_page", "accelerators": "gpu_page"}
PAGES |= {"forcing": "forced", "prediction": "predictions", "lyapunov": "lyapunov"}
PAGES |= {"trust": "fuzz", "which_algorithm": "paper_page"}
_PLACE = re.compile(r"\{\{\s*([\w.]+)\s*\}\}")


def stored_as(page: str) -> str:
    """Name of the results of a page, its own unless its module says otherwise."""
    module = import_module(f"benchmarks.{PAGES[page]}")
    return getattr(module, "STORED", page)


@cache
def places(page: str) -> dict[str, str]:
    """All that a measured page has places for."""
    module = import_module(f"benchmarks.{PAGES[page]}")
    stored = harness.read(stored_as(page))
    machine = {"machine": harness.machine_line(stored["hardware"])}
    return machine | module.places(stored)


def _cost() -> list[float]:
    return [
        row["auto over scan"] for row in harness.read("convergence")["rows"]["cost"]
    ]


def _gradients(candidate: str, column: str) -> list[float]:
    rows = harness.read("gradients")["rows"]
    return [row[column] for row in rows if row["candidate"] == candidate]


def _depths(prefix: str) -> list[float]:
    rows = harness.read("convergence")["rows"]["suite"]
    name = "auto (accelerator)"
    found = (r for r in rows if r["method"] == name and r["problem"].startswith(prefix))
    return [row["depth over T"] for row in found]


def _passes() -> list[int]:
    rows = harness.read("convergence")["rows"]["argru"]
    return [r["iterations"] for r in rows if r["method"] == "auto (accelerator)"]


def _counts(method: str) -> dict[str, Any]:
    return harness.read("published_counts")["argru"]["here"][method]


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


def value(name: str) -> str:
    """What fills a place; an unknown name is an error."""
    page, dot, place = name.partition(".")
    return places(page)[place] if dot else VALUES[name]()


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the places of a page."""
    return _PLACE.sub(lambda found: value(found[1]), markdown)
