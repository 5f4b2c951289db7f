"""Pictures of `benchmarks.paper`, drawn from its rows into `docs/figures`.

Methods differ by line and marker as well as by shade, so that they are told apart
without colour: dashes are diagonal Jacobians, grey is damped, the thick line is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.harness import Row

_RC = {"font.size": 9, "svg.hashsalt": "elk_ssm", "svg.fonttype": "none"}
V100_MB = 16_000  # what the authors' `mem_exp.py` aims at


def style(name: str) -> dict[str, Any]:
    """How a method is drawn."""
    ours = name.startswith("ours")
    quasi, damped = "quasi" in name, "elk" in name.lower()
    drawn: dict[str, Any] = {
        "color": "0.55" if damped else "black",
        "linestyle": "--" if quasi else "-",
        "marker": "s" if quasi else "o",
        "linewidth": 1.2,
    }
    if "no reset" in name:
        drawn |= {"linestyle": ":", "marker": "x"}
    if name.startswith("sequential"):
        drawn |= {"linestyle": ":", "marker": ".", "color": "0.35"}
    if ours:
        drawn |= {"color": "tab:blue", "marker": "D", "linewidth": 1.6}
    if name.startswith(("ours: default", "ours: Newton")):
        drawn |= {"linewidth": 3.0, "marker": "*"}
    return drawn | {"markersize": 4, "label": name}


def _by_name(rows: list[Row], key: str) -> dict[str, list[Row]]:
    names = dict.fromkeys(row[key] for row in rows)
    return {name: [row for row in rows if row[key] == name] for name in names}


def _plot(ax: Any, rows: list[Row], x: str, y: str) -> None:
    for name, found in _by_name(rows, "candidate").items():
        points = [(r[x], r[y]) for r in found if not isinstance(r[y], str)]
        if points:
            ax.plot(*zip(*sorted(points)), **style(name))
    ax.set(xscale="log", yscale="log")


def cost(figure: Figure, parts: dict[str, Any]) -> None:
    """Figures 2 and 6: time over T, memory over D and over T."""
    axes = figure.subplots(2, 2)
    sizes = sorted({row["D"] for row in parts["time"]})
    for ax, size in zip(axes[0], (sizes[0], sizes[-1])):
        _plot(ax, [r for r in parts["time"] if r["D"] == size], "T", "run_ms")
        ax.set(xlabel="T, steps", ylabel="run time on a CPU, ms")
        ax.set_title(f"time, D = {size}, one sequence", loc="left", fontsize=9)
    many = [row for row in parts["memory"] if row["B"] > 1] or parts["memory"]
    shortest, size = min(r["T"] for r in many), _most_lengths(many)
    over_size = [row for row in many if row["T"] == shortest]
    over_length = [row for row in many if row["D"] == size]
    batch = many[0]["B"]
    for ax, rows, x in ((axes[1][0], over_size, "D"), (axes[1][1], over_length, "T")):
        _plot(ax, rows, x, "temp_mb")
        ax.axhline(V100_MB, color="0.7", linewidth=0.8)
        ax.annotate("16 GB", (0.02, V100_MB), xycoords=("axes fraction", "data"))
        ax.set(ylabel="temporary memory, MB")
    axes[1][0].set(xlabel="state size D")
    axes[1][0].set_xticks(_sizes(over_size), [str(size) for size in _sizes(over_size)])
    axes[1][0].set_xticks([], minor=True)
    at = f"memory, T = {shortest:,}, batch of {batch}"
    axes[1][0].set_title(at, loc="left", fontsize=9)
    axes[1][1].set(xlabel="T, steps")
    at = f"memory, D = {size}, batch of {batch}"
    axes[1][1].set_title(at, loc="left", fontsize=9)
    _legend(figure, axes[0][0])


def _most_lengths(rows: list[Row]) -> int:
    lengths = {size: {r["T"] for r in rows if r["D"] == size} for size in _sizes(rows)}
    return max(lengths, key=lambda size: len(lengths[size]))


def _sizes(rows: list[Row]) -> list[int]:
    return sorted({row["D"] for row in rows})


def _curves(ax: Any, rows: list[Row], what: str, text: str) -> None:
    for row in rows:
        if "curve" in row:
            curve = row["curve"]
            kept = [v if v is not None else float("nan") for v in curve[what]]
            every = max(len(kept) // 12, 1)
            ax.plot(curve["iteration"], kept, markevery=every, **style(row["method"]))
    ax.axvline(rows[0]["T"], color="0.7", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlabel="iterations (grey line: T)", ylabel=text)


def argru(figure: Figure, parts: dict[str, Any]) -> None:
    """Figure 4: mean absolute deviation by iteration."""
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, (name, rows) in zip(
        (left, right), _by_name(parts["argru"], "problem").items()
    ):
        _curves(ax, rows, "MAD", "mean absolute deviation")
        ax.set_title(f"{name}, T = {rows[0]['T']:,}", loc="left", fontsize=9)
        ax.set_ylim(1e-5, 1e4)
    _legend(figure, right)


def lorenz(figure: Figure, parts: dict[str, Any]) -> None:
    """Figure 8, bottom: with and without damping."""
    left, right = figure.subplots(1, 2)
    _curves(left, parts["lorenz"], "MAD", "mean absolute deviation")
    left.set_title(
        "Lorenz-96: undamped wanders, damped arrives", loc="left", fontsize=9
    )
    left.set_ylim(1e-5, 1e12)
    _curves(right, parts["lorenz"], "largest", "largest error of an iterate")
    right.set_title("a gap: the iterate is not finite", loc="left", fontsize=9)
    _legend(figure, left)


def sensitivity(figure: Figure, parts: dict[str, Any]) -> None:
    """Figures 7 and 8, top: iterations by the constant noise."""
    axes = figure.subplots(1, 2)
    for ax, (problem, rows) in zip(axes, parts["sensitivity"].items()):
        for name, found in _by_name(rows, "method").items():
            points = [(r["s^2"], r["median iterations"]) for r in found]
            ax.plot(*zip(*points), **style(name))
        limit = rows[0]["limit"]
        ax.axhline(limit, color="0.7", linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel="constant noise s$^2$")
        ax.set(ylabel=f"iterations (grey line: gave up, {limit:,})")
        ax.set_title(problem, loc="left", fontsize=9)
    _legend(figure, axes[0])


def agreement(figure: Figure, parts: dict[str, Any]) -> None:
    """Figure 5: the last outputs of the first unit, one over the other."""
    ax, rows = figure.subplots(), parts["agreement"]
    steps = [
        rows[0]["T"] - len(rows[0]["last"]) + 1 + i for i in range(len(rows[0]["last"]))
    ]
    for row in rows:
        found = style(row["candidate"]) | {"markevery": 10}
        worst = f"{row['largest difference']:.0e}"
        found["label"] = f"{row['candidate']}: off by {worst} at most"
        ax.plot(steps, row["last"], **found)
    ax.set(xlabel="time step", ylabel="first unit of the GRU")
    _legend(figure, ax, columns=2)


def _legend(figure: Figure, ax: Any, columns: int = 3) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=8
    )


FIGURES: dict[str, tuple[Callable[[Figure, dict[str, Any]], None], float, set[str]]] = {
    "paper_cost": (cost, 6.0, {"time", "memory"}),
    "paper_argru": (argru, 3.8, {"argru"}),
    "paper_lorenz": (lorenz, 3.8, {"lorenz"}),
    "paper_sensitivity": (sensitivity, 3.6, {"sensitivity"}),
    "paper_agreement": (agreement, 3.4, {"agreement"}),
}


def draw(parts: dict[str, Any]) -> None:
    """Write the pictures whose parts have been measured."""
    folder = harness.DOCS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, tall, needs) in FIGURES.items():
        if needs <= parts.keys():
            with rc_context(_RC):
                figure = Figure(figsize=(8, tall), layout="constrained")
                make(figure, parts)
                for ax in figure.axes:
                    ax.grid(alpha=0.3)
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
