"""Draw the pictures of measured pages from `benchmarks/results/*.json`.

A picture is drawn when the site is built, as its tables are filled in then: measuring
again changes both. Each function takes axes and the rows of its page.
"""

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from mkdocs.structure.files import File

from benchmarks import harness

_RC = {"font.size": 9, "svg.hashsalt": "elk_ssm", "svg.fonttype": "none"}


def convergence(ax: Any, rows: Any) -> None:
    """Iterations of every method on every problem, cut off at T."""
    suite = rows["suite"]
    names = list(dict.fromkeys(row["problem"] for row in suite))
    for method in dict.fromkeys(row["method"] for row in suite):
        found = {r["problem"]: r["iterations"] for r in suite if r["method"] == method}
        ax.plot([found[n] for n in names], names, "o", label=method, alpha=0.7)
    ax.axvline(rows["length"], color="gray", linewidth=0.8)
    ax.set(xscale="log", xlabel=f"iterations (grey: T = {rows['length']:,})")
    ax.invert_yaxis()


def gradients(ax: Any, rows: Any) -> None:
    """Time of value and gradient over that of `lax.scan`."""
    for candidate in dict.fromkeys(row["candidate"] for row in rows):
        found = [r for r in rows if r["candidate"] == candidate]
        cells = [f"D = {r['D']}, T = {r['T']:,}" for r in found]
        ax.plot([r["time over scan"] for r in found], cells, "o", label=candidate)
    ax.axvline(1, color="gray", linewidth=0.8)
    ax.set(xscale="log", xlabel="time of value and gradient over that of lax.scan")


def kalman(ax: Any, rows: Any) -> None:
    """Run time of the smoothers by length, at D = 4."""
    four = [r for r in rows["smoothers"] if r["D"] == 4 and "run_ms" in r]
    for candidate in dict.fromkeys(row["candidate"] for row in four):
        found = [(r["T"], r["run_ms"]) for r in four if r["candidate"] == candidate]
        ax.plot(*zip(*sorted(found)), "o-", label=candidate)
    ax.set(xscale="log", yscale="log", xlabel="T, steps", ylabel="run time, ms")
    ax.set_title("smoothers, D = E = 4", loc="left", fontsize=9)


def lyapunov(ax: Any, rows: Any) -> None:
    """Our largest exponent against the published one."""
    ours = [r["largest"] for r in rows]
    for column in ("published", "first of the published spectrum"):
        ax.plot([r[column] for r in rows], ours, "o", label=column)
    ends = [min(ours), max(ours)]
    ax.plot(ends, ends, color="gray", linewidth=0.8, label="the same")
    ax.set(xlabel="published exponent, per unit of time")
    ax.set(ylabel="ours, per unit of time", xscale="symlog", yscale="symlog")


def prediction(ax: Any, rows: Any) -> None:
    """Measured passes against predicted ones."""
    for method in rows[0]["predicted"]:
        found = [(r["predicted"][method], r["measured"][method]) for r in rows]
        ax.plot(*zip(*found), "o", label=method, alpha=0.7)
    ax.plot([1, 1000], [1, 1000], color="gray", linewidth=0.8, label="the same")
    ax.set(xscale="log", yscale="log", xlabel="passes, predicted", ylabel="measured")


def forcing(ax: Any, rows: Any) -> None:
    """Iterations of DEER over the strength of the pull."""
    alphas = [name for name in rows[0] if name.replace(".", "").isdigit()]
    for row in rows:
        passes = [int(row[alpha]["deer"].rstrip("*")) for alpha in alphas]
        ax.plot([float(alpha) for alpha in alphas], passes, "o-", label=row["problem"])
    ax.set(xscale="log", yscale="log", xlabel="alpha", ylabel="iterations of DEER")


def structured(ax: Any, rows: Any) -> None:
    """Iterations with diagonals, blocks and dense Jacobians."""
    for column in ("diagonal", "blocks", "dense"):
        found = [(r[column], r["problem"]) for r in rows if r.get(column)]
        ax.plot(*zip(*found), "o", label=column)
    ax.set(xscale="log", xlabel="iterations")


FIGURES: dict[str, Callable[[Any, Any], None]] = {
    "convergence": convergence,
    "forcing": forcing,
    "gradients": gradients,
    "kalman": kalman,
    "lyapunov": lyapunov,
    "prediction": prediction,
    "structured": structured,
}


def picture(page: str) -> str:
    """Draw the picture of a page, as the text of an SVG file."""
    with matplotlib.rc_context(_RC):
        tall = 5.5 if page == "convergence" else 3.8
        figure = Figure(figsize=(8, tall), layout="constrained")
        ax = figure.subplots()
        stored = harness.read(page)
        FIGURES[page](ax, stored.get("rows", stored))
        ax.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize=8)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures to the files of the site."""
    for page in FIGURES:
        uri = f"figures/{page}.svg"
        files.append(File.generated(config, uri, content=picture(page)))
    return files
