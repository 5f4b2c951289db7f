"""The page `docs/speed.md` and its figure, from the stored results."""

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


def write() -> None:
    """Write the page and the figure."""
    stored = harness.read("speed")
    draw(stored["rows"])
    harness.document("speed", page(stored, gpu_section()))


def page(stored: dict[str, Any], gpu: list[str]) -> str:
    """The page; what loses comes first."""
    rows = stored["rows"]
    return "\n".join(
        [
            "# When does this pay?",
            "",
            "Written by `python -m benchmarks.speed`, numbers in "
            "`benchmarks/results/speed.json`.",
            harness.machine_line(stored["hardware"]),
            "Candidates of a cell take turns; medians; compile time apart. The cell is "
            "a GRU with flax's default initialisation, written in two ways: six "
            "products (split gates, as in flax.linen) or two (fused gates, as in "
            "flax.nnx and equinox). XLA compiles the two very differently inside a "
            "scan, so every speed-up is given over the best scan, unrolled by 1 or 4, "
            "of the same writing, and over the best of all.",
            "",
            *_losing(rows),
            *_winning(rows),
            *_rest(rows),
            "## On a GPU",
            "",
            *gpu,
        ]
    )


def _losing(rows: dict[str, list[Row]]) -> list[str]:
    behind = [
        row
        for row in rows["default"]
        if row["candidate"].startswith("auto") and row["over any scan"] < 1
    ]
    return [
        "## Where it does not",
        "",
        "**Short sequences on a CPU.** Every step of all blocks has a fixed cost. "
        "Below 2,000 steps (D <= 8) or 4,000 (above) `auto` is a plain scan. "
        "Blocks over the best scan of the same writing, also where `auto` declines:",
        "",
        harness.table(
            rows["break_even"], ["D", "T", "C", "split gates", "fused gates"]
        ),
        "",
        "**Recurrences that do not forget their past, on a CPU.** Nothing is faster "
        "there than one step after the other, which is what `auto` does after a short "
        "probe; [its price](convergence.md) is measured on the whole suite.",
        "",
        "**Wide cells that XLA compiles well, on a CPU.** A fused GRU of 16 units or "
        "more fills the vector unit by itself; two passes over blocks then gain "
        "little or lose. The cells of the grid in which `auto` is behind the best of "
        "all scans:",
        "",
        harness.table(behind, ["D", "T", "candidate", "over any scan", "over its scan"])
        if behind
        else "none.",
        "",
        "**Batches on a CPU.** `lax.scan` under `vmap` fills the vector unit by itself "
        "and blocks add work. `auto` knows: from 9 sequences (5 for D > 8) on it is "
        "the scan, a smaller batch is evaluated in blocks one sequence after the "
        "other. Speed-ups over the same scan under `vmap`; the third candidate is "
        "blocks at any price:",
        "",
        harness.table(
            rows["batches"], ["D", "B", "T", "candidate", "run_ms", "speed-up"]
        ),
        "",
        "**The published methods (C = 1) on a CPU**, run to convergence, as multiples "
        "of the scan's time:",
        "",
        harness.table(
            rows["methods"],
            ["D", "T", "candidate", "run_ms", "over the scan", "temp_mb", "error"],
        ),
        "",
    ]


def _winning(rows: dict[str, list[Row]]) -> list[str]:
    columns = ["D", "T", "candidate", "run_ms", "over its scan", "over any scan"]
    return [
        "## The default against the best scan",
        "",
        f"![Speed-up of the default over the best scan]({FIGURE})",
        "",
        harness.table(rows["default"], [*columns, "compile_s", "temp_mb", "error"]),
        "",
        "`flax.linen.RNN` has weights of its own, so no error is given.",
        "",
    ]


def _rest(rows: dict[str, list[Row]]) -> list[str]:
    return [
        "## One iteration against the published one",
        "",
        "At C = 1, the whole pass with its stopping test, against the restatement of "
        "the published iteration in `benchmarks/published.py` (associative scans, "
        "diagonal of the dense Jacobian, generic and scalar parallel Kalman filters).",
        "",
        harness.table(rows["iterations"], list(rows["iterations"][0])),
        "",
        "## Compilation",
        "",
        "Tracing and compiling, median of three, nothing cached.",
        "",
        harness.table(rows["compile"], list(rows["compile"][0])),
        "",
        "## Long recurrences",
        "",
        '`keep="last"` and `keep="boundaries"` keep one state a block. A GRU, the '
        "memory of the whole process, the inputs included:",
        "",
        harness.table(rows["long"], list(rows["long"][0])),
        "",
    ]


def gpu_section() -> list[str]:
    """Tables of `results/gpu.json`, or that there is none."""
    if not (harness.RESULTS / "gpu.json").exists():
        return [NOT_MEASURED]
    stored = harness.read("gpu")
    rows = stored["rows"]
    columns = ["candidate", "run_ms", "speed-up", "compile_s", "error"]
    return [
        harness.machine_line(stored["hardware"]),
        "",
        harness.table(rows["check"], list(rows["check"][0])),
        "",
        harness.table(rows["gru"], ["D", "T", *columns]),
        "",
        harness.table(rows["argru"], ["problem", "T", *columns]),
        "",
        harness.table(
            rows["affine"], ["D", "T", "candidate", "run_ms", "over the floor"]
        ),
    ]


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
