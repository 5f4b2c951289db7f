"""The tables of `docs/speed.md` and its figure, from the stored results."""

from __future__ import annotations

from typing import Any

from benchmarks import harness
from benchmarks.harness import Row

FIGURE = "figures/speed.png"
STYLES = {"split": ("o-", "black"), "fused": ("s--", "0.45")}
NOT_MEASURED = (
    "Not measured: no accelerator was at hand. `python -m benchmarks.gpu` is ready for "
    "one; it needs jax and numpy only, checks the results against float64 first, and "
    "writes `benchmarks/results/gpu.json`, from which this section is then filled in."
)


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/speed.md` has places for."""
    rows = stored["rows"]
    behind = [
        row
        for row in rows["default"]
        if row["candidate"].startswith("auto") and row["over any scan"] < 1
    ]
    chosen = {
        "break_even": "D, T, C, split gates, fused gates",
        "batches": "D, B, T, candidate, run_ms, speed-up",
        "methods": "D, T, candidate, run_ms, over the scan, temp_mb, error",
        "default": "D, T, candidate, run_ms, over its scan, over any scan, "
        "compile_s, temp_mb, error",
    }
    columns = {name: words.split(", ") for name, words in chosen.items()}
    columns |= {k: list(rows[k][0]) for k in ("iterations", "compile", "long")}
    tables = {name: harness.table(rows[name], words) for name, words in columns.items()}
    short = ["D", "T", "candidate", "over any scan", "over its scan"]
    tables["behind"] = harness.table(behind, short) if behind else "none."
    first = harness.read("first_result")["rows"]
    tables["first_result"] = harness.table(first, list(first[0]))
    return tables | {"gpu": gpu_section()}


def gpu_section() -> str:
    """Tables of `results/gpu.json`, or that there is none."""
    if not (harness.RESULTS / "gpu.json").exists():
        return NOT_MEASURED
    stored = harness.read("gpu")
    rows = stored["rows"]
    columns = ["candidate", "run_ms", "speed-up", "compile_s", "error"]
    affine = ["D", "T", "candidate", "run_ms", "over the floor"]
    return "\n\n".join(
        [
            harness.machine_line(stored["hardware"]),
            harness.table(rows["check"], list(rows["check"][0])),
            harness.table(rows["gru"], ["D", "T", *columns]),
            harness.table(rows["argru"], ["problem", "T", *columns]),
            harness.table(rows["affine"], affine),
        ]
    )


def draw(rows: dict[str, list[Row]]) -> None:
    """Speed-up over the best scan of the same writing: by D, and by T."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    longest = max(row["T"] for row in rows["default"])
    for writing, (style, color) in STYLES.items():
        name = f"auto, {writing} gates"
        by_size = [
            (row["D"], row["over its scan"])
            for row in rows["default"]
            if row["candidate"] == name and row["T"] == longest
        ]
        axes[0].plot(*zip(*by_size), style, color=color, label=f"{writing} gates")
        for size, width in ((4, 1.0), (16, 2.2)):
            by_length = [
                (row["T"], row[f"{writing} gates"])
                for row in rows["break_even"]
                if row["D"] == size
            ]
            label = f"{writing} gates, D = {size}"
            axes[1].plot(*zip(*by_length), style, color=color, lw=width, label=label)
    axes[0].set(xlabel="state size D", title=f"T = {longest:,} steps")
    axes[1].set(xlabel="sequence length T (steps)", title="where blocks begin to pay")
    for ax in axes:
        ax.axhline(1, color="black", lw=0.8, ls=":")
        ax.set(xscale="log", yscale="log", ylabel="speed-up over the best scan")
        ax.yaxis.set_major_formatter("{x:g}x")
        ax.yaxis.set_minor_formatter("")
        ax.set_yticks([0.5, 1, 2, 4, 8])
        ax.legend(fontsize=7)
    sizes = sorted({row["D"] for row in rows["default"]})
    axes[0].set_xticks(sizes, [str(size) for size in sizes])
    axes[0].set_xticks([], minor=True)
    path = harness.DOCS / FIGURE
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
