"""Times beside counts: the fit and what is said of it. The times here are made up."""

import pytest
from benchmarks.gpu_program import BYTES_PER_MS, LAUNCH_US, SYNC_US

from benchmarks import gpu, gpu_cells, gpu_times

COUNTS = ((500_005, 0, 2.7), (9_901, 9, 29.6), (292, 12, 6.3), (954, 330, 0.3))


def rows(launch, sync):
    """Rows whose times are those of a model with these costs, in us."""
    names = ("lax.scan", "default", "published quasi_deer", "quasi_deer")
    found = []
    for name, (launches, syncs, gigabytes) in zip(names, COUNTS):
        row = {"problem": "GRU", "program": name, "D": 32, "T": 100_000}
        row |= {"launches": launches, "syncs": syncs, "GB moved": gigabytes}
        moving = 1e9 * gigabytes / BYTES_PER_MS
        found.append(
            row | {"run ms": (launches * launch + syncs * sync) / 1e3 + moving}
        )
    return found


def test_the_costs_that_made_the_times_are_found():
    made = rows(1.3, 22.0)
    fitted = gpu_times.fit(made, BYTES_PER_MS)
    assert fitted["launch us"] == pytest.approx(1.3, rel=1e-6)
    assert fitted["sync us"] == pytest.approx(22.0, rel=1e-6)
    assert fitted["relative error"] < 1e-6
    assert all(row["fitted ms"] == pytest.approx(row["run ms"]) for row in made)


def test_no_cost_is_negative():
    # Fewer launches that take longer: what is left is explained by synchronisations.
    made = rows(0.0, 30.0)
    for row in made:
        row["run ms"] *= 1 + 1 / row["launches"] ** 0.5
    fitted = gpu_times.fit(made, BYTES_PER_MS)
    assert fitted["launch us"] >= 0
    assert fitted["sync us"] >= 0
    flat = [row | {"run ms": 1e-6} for row in made]
    assert gpu_times.fit(flat, BYTES_PER_MS)["launch us"] == 0


def test_advice_names_what_beats_the_default_and_what_the_model_has_wrong():
    made = rows(LAUNCH_US, 10 * SYNC_US)
    told = gpu_times.advice(made, gpu_times.fit(made, BYTES_PER_MS))
    assert len(told) == 2
    assert "GRU, D = 32, T = 100,000: the default takes" in told[0]
    assert "published quasi_deer takes; the default should win" in told[0]
    assert "15 sync us; here it is 150" in told[1]


def test_a_default_that_wins_is_kept():
    made = rows(LAUNCH_US, SYNC_US)[:2]
    assert gpu_times.advice(made, gpu_times.fit(made, BYTES_PER_MS)) == []


def test_blocks_and_affine_scans_that_win_are_named():
    def timed(**times):
        place = {"D": 8, "T": 100}
        return [place | {"candidate": n, "run_ms": ms} for n, ms in times.items()]

    affine = timed(copy=1.0, ours=3.0, theirs=1.0)
    affine[2]["candidate"] = "lax.associative_scan"
    told = gpu.advice({"gru": timed(auto=3.0, deer=1.0), "affine": affine})
    assert told == [
        "Affine scan, D = 8: `lax.associative_scan` is faster.",
        "GRU, D = 8, T = 100: deer is 3 times as fast as the default.",
    ]


def test_a_cell_is_timed_and_counted_on_any_device():
    row = gpu_times.timed(gpu_cells.by_scan("GRU", 2, 20))
    assert row["run ms"] > 0
    assert row["launches"] >= 20
    assert row["over the model"] == row["run ms"] / row["model ms"]


def test_what_needs_a_gpu_is_skipped_with_a_line(capsys):
    assert list(gpu_times.cudnn_lstm(2, 3)) == []
    assert "needs a GPU" in capsys.readouterr().out
