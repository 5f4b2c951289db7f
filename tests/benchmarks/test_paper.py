"""The paper's figures: what damping does, that all end at `lax.scan`, what is said."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    harness,
    paper,
    paper_convergence,
    paper_cost,
    paper_curves,
    paper_figures,
    paper_page,
    problems,
    published,
)
from elk_ssm.cli.bench import NAMES

LENGTH = 120


@pytest.fixture(scope="module")
def flow():
    """Lorenz-96 over a little more than one unit of time."""
    return paper_curves.case(problems.make("lorenz96", LENGTH, 1))


@pytest.fixture(scope="module")
def curves(flow):
    """Every method followed to the end on Lorenz-96."""
    noises = {"elk": 3e2, "quasi_elk": 1e1}
    found = {
        method: paper_curves.follow(
            flow, method, noises.get(method, np.inf), until=1e-5
        )
        for method in published.METHODS
    }
    blocks = paper_convergence.our_method()
    passes = LENGTH // paper_convergence.BLOCK + 1
    return found | {"ours": paper_curves.follow_ours(flow, blocks, passes)}


@pytest.mark.parametrize("method", [*published.METHODS, "ours"])
def test_every_method_ends_at_the_trajectory_of_lax_scan(flow, curves, method):
    # Chaos: the rounding of float32 grows, and states are of the size of 10.
    found = curves[method].states
    np.testing.assert_allclose(found, flow.problem.reference(), atol=2e-3)


@pytest.mark.parametrize("pair", [("elk", "deer"), ("quasi_elk", "quasi_deer")])
def test_damping_lowers_the_largest_error_on_the_way(flow, curves, pair):
    damped, undamped = (curves[name].largest[1:].max() for name in pair)
    size = float(jnp.max(jnp.abs(flow.reference)))
    assert damped < 3 * size  # stays about the attractor
    assert undamped > 10 * damped


def test_each_undamped_iteration_makes_one_more_step_exact(flow):
    count = 40
    found = paper_curves.follow(flow, "quasi_deer", limit=count, until=0)
    assert found.mad.size == count + 1
    error = np.abs(found.states - flow.problem.reference()).max(axis=1)
    assert error[:count].max() < 1e-3
    assert not error[-1] < 1


def test_a_curve_reaches_the_threshold_where_the_count_says(flow, curves):
    for method, noise in {"elk": 3e2, "quasi_elk": 1e1}.items():
        grid = jnp.asarray([noise])
        (count,) = paper_curves.counts(flow, method, grid, LENGTH)
        assert count == paper_curves.reached(curves[method])


def test_an_iterate_that_is_not_finite_has_reached_nothing():
    bad = jnp.asarray([[1.0], [jnp.nan]])
    mad, largest = paper_curves.errors(bad, jnp.ones((2, 1)), None)
    assert not mad < paper_curves.THRESHOLD
    assert largest == np.inf
    observed, _ = paper_curves.errors(jnp.asarray([[2.0, 9.0]]), jnp.zeros((1, 2)), 0)
    assert observed == 2.0


def test_depth_of_one_step_after_the_other_is_one():
    assert paper_curves.depth(1, 64, 64) == 1.0
    assert paper_curves.depth(3, 64) > 3 * paper_curves.depth(1, 1024)


def test_rows_say_where_nothing_was_reached_and_pictures_are_drawn(
    flow, curves, monkeypatch, tmp_path
):
    never = paper_curves.Curve(np.full(9, np.nan), np.full(9, np.inf), None)
    rows = [
        paper_convergence._row(flow, "DEER, no reset", never, "-", 1),
        paper_convergence._row(flow, "ELK", curves["elk"], 3e2, 1),
    ]
    # What is not finite must not become JSON that is none.
    rows = json.loads(json.dumps(rows, allow_nan=False))
    for column in ("largest error on the way", "error at the end"):
        assert rows[0][column] == "not finite"
        assert rows[1][column] > 0
    title, table = next(iter(paper_page.tables({"lorenz": rows}).items()))
    assert "Figure 8" in title
    assert "| not reached | - |" in table.splitlines()[2]
    monkeypatch.setattr(harness, "DOCS", tmp_path)
    paper_figures.draw({"lorenz": rows})
    drawn = [path.name for path in (tmp_path / "figures").iterdir()]
    assert drawn == ["paper_lorenz.svg"]


class TestCost:
    def test_outputs_agree_and_newton_takes_fewer_iterations(self):
        rows = paper_cost.measure_agreement(paper_cost.Cell(1, 3, 150), last=5)
        assert max(row["largest difference"] for row in rows) < 1e-4
        counts = {row["candidate"]: row["iterations"] for row in rows}
        assert counts["DEER, published"] < counts["quasi-DEER, published"]
        assert counts["ours: deer"] < counts["ours: quasi_deer"]

    def test_memory_grows_with_the_square_of_d_for_dense_jacobians_alone(
        self, monkeypatch
    ):
        names = ("DEER, published", "ours: deer", "ours: quasi_deer")
        chosen = {name: paper_cost.CANDIDATES[name] for name in names}
        monkeypatch.setattr(paper_cost, "CANDIDATES", chosen)
        cells = [paper_cost.Cell(1, size, 2_000) for size in (4, 16)]
        rows = paper_cost.measure_memory(cells)
        used = {(row["candidate"], row["D"]): row["temp_mb"] for row in rows}
        ratios = {name: used[name, 16] / used[name, 4] for name in names}
        # Four times D: 16 for D^2 with a part that grows as D, 4 for D.
        assert min(ratios["DEER, published"], ratios["ours: deer"]) > 8
        assert ratios["ours: quasi_deer"] < 6

    def test_what_is_too_large_here_is_not_run_and_said_so(self):
        cell = paper_cost.FIGURE_2[-1]
        rows = paper_cost.measure_time([cell])
        assert {row["run_ms"] for row in rows} == {"needs an accelerator"}
        assert len(rows) == len(paper_cost.CANDIDATES)
        table = paper_page.tables({"time": rows})
        assert next(iter(table.values())).count("needs an accelerator") == len(rows)

    def test_what_is_affordable_stays_so_when_it_shrinks(self):
        for cell in (*paper_cost.FIGURE_2, *paper_cost.FIGURE_6):
            half = cell._replace(length=cell.length // 2)
            for power in paper_cost.LARGEST_WORK:
                fits = paper_cost.affordable(cell, power)
                assert paper_cost.affordable(half, power) >= fits

    def test_published_times_stand_beside_the_same_size_alone(self):
        methods = ("sequential (lax.scan)", "ours: deer")
        rows = [
            {"D": 32, "T": length, "candidate": name, "run_ms": 1.0, "iterations": 1}
            for length in (65_536, 100)
            for name in methods
        ]
        beside = paper_page._vanilla(rows[:2])
        assert "| 435 |" in beside
        assert "| 84.1 |" in beside
        assert "435" not in paper_page._vanilla(rows[2:])


def test_the_command_line_knows_it_and_its_parts_fill_the_page():
    assert "paper" in NAMES
    stored = harness.read("paper")
    assert set(stored["rows"]) == set(paper.PARTS)
    page = (harness.DOCS / "which_algorithm.md").read_text()
    for name in paper_figures.FIGURES:
        assert f"figures/{name}.svg" in page
        assert (harness.DOCS / "figures" / f"{name}.svg").exists()
