"""Pictures of the two recordings: latent path, band, and independent answers."""

from pathlib import Path
from typing import Any

import numpy as np


def draw(case: Any, paths: dict[str, Any], folder: Path) -> Path:
    """Write `folder/<recording>.png`, legible in greyscale."""
    import matplotlib

    matplotlib.use("Agg")
    picture = _volatility if case.name == "S&P 500" else _spikes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{'volatility' if picture is _volatility else 'spikes'}.png"
    picture(np.asarray(case.values)[:, 0], paths).savefig(path, dpi=150)
    return path


def _panels(height: float) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    return plt.subplots(2, 1, figsize=(9, height), layout="constrained")


def _band(axis: Any, time: Any, path: Any, scale: Any, label: str) -> None:
    low, high = path.band()
    axis.fill_between(
        time, scale(low), scale(high), color="0.8", lw=0, label="95 % band"
    )
    axis.plot(time, scale(path.mean), "k-", lw=1.2, label=label)


def _volatility(y: np.ndarray, paths: dict[str, Any]) -> Any:
    figure, (whole, crisis) = _panels(6.5)
    days = np.arange(len(y))

    def percent(h: Any) -> Any:
        return np.exp(np.asarray(h) / 2)

    whole.plot(days, np.abs(y), ".", color="0.55", ms=2, label="|return|")
    _band(whole, days, paths["ours"], percent, "daily volatility (mode)")
    worst = int(np.argmax(np.abs(y)))
    near = slice(max(0, worst - 150), worst + 150)
    zoomed = {
        k: p._replace(mean=p.mean[near], deviation=p.deviation[near])
        for k, p in paths.items()
    }
    crisis.plot(days[near], np.abs(y)[near], ".", color="0.55", ms=3)
    _band(crisis, days[near], zoomed["ours"], percent, "mode, learned parameters")
    if "NUTS" in zoomed:
        truth = zoomed["NUTS"]
        for bound in truth.band():
            crisis.plot(days[near], percent(bound), "k:", lw=0.9)
        label = "NUTS: mean (dashed), 95 % (dotted)"
        crisis.plot(days[near], percent(truth.mean), "k--", lw=1.2, label=label)
    extended = percent(zoomed["dynamax EKS"].mean)
    crisis.plot(days[near], extended, "k-.", lw=0.8, label="EKS on log squares")
    whole.set(title="S&P 500: latent volatility", ylabel="percent a day")
    crisis.set(
        xlabel="trading day", ylabel="percent a day", title="around the largest move"
    )
    for axis in (whole, crisis):
        axis.set_yscale("log")
        axis.set_ylim(0.1, 60)
        axis.legend(loc="upper left", ncols=2, fontsize=8)
    return figure


def _spikes(y: np.ndarray, paths: dict[str, Any], width: float = 0.01) -> Any:
    figure, (counts, rate) = _panels(5.5)
    seconds = width * (np.arange(len(y)) + 0.5)

    def hertz(z: Any) -> Any:
        return np.exp(np.asarray(z)) / width

    counts.bar(seconds, y, width, color="0.4")
    counts.set(ylabel="spikes in 10 ms", title="grasshopper receptor: counts and rate")
    _band(rate, seconds, paths["ours"], hertz, "mode, learned parameters")
    if "NUTS" in paths:
        rate.plot(seconds, hertz(paths["NUTS"].mean), "k--", label="NUTS mean (dashed)")
        for bound in paths["NUTS"].band():
            rate.plot(seconds, hertz(bound), "k:", lw=0.9)
    extended = hertz(paths["dynamax EKS"].mean)
    rate.plot(seconds, extended, "k-.", lw=0.8, label="EKS on square roots")
    rate.set(xlabel="seconds", ylabel="spikes a second")
    rate.legend(loc="upper right", ncols=2, fontsize=8)
    return figure
