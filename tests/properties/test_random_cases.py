"""Random cases of every promise that `benchmarks.fuzz` counts; what fails is shrunk.

By default some forty cases of a few compiled programs each, the same ones every time;
with `HYPOTHESIS_PROFILE=long` a thousand of all programs, drawn anew.
"""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from hypothesis import given

from benchmarks import (
    fuzz,
    fuzz_linear,
    fuzz_nonlinear,
    fuzz_patchwork,
    fuzz_recurrences,
    harness,
    search,
)

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
METHODS = ("auto", "newton, gated", "quasi_elk, gain ratio", "short blocks, short")
FEW = [p for p in fuzz_recurrences.PROGRAMS if p.method in METHODS]
GRADIENTS = fuzz_recurrences.gradient_programs()


def examine(kind, case):
    found = fuzz.KINDS[kind].check(case)
    assert not found.failures, "\n".join([*found.failures, found.script])


@given(fuzz_recurrences.cases(None if LONG else FEW))
def test_recurrences(case):
    examine("recurrences", case)


@given(fuzz_recurrences.cases(GRADIENTS if LONG else GRADIENTS[1:3]))
def test_gradients(case):
    examine("gradients", case)


@given(fuzz_linear.cases() if LONG else fuzz_linear.cases(few=True))
def test_linear_models(case):
    examine("linear models", case)


@given(fuzz_nonlinear.cases() if LONG else fuzz_nonlinear.cases(few=True))
def test_nonlinear_models(case):
    examine("nonlinear models", case)


def linear_case():
    return fuzz_linear.Case(
        "proper", fuzz_linear.WAYS[0], "float64", 3, "stable", "full", "full", "some",
        0, (False, False, True), 7,
    )  # fmt: skip


def nonlinear_case():
    return fuzz_nonlinear.Case("gaussian", 0, "sine", "linear", 0.9, 0.1, True, 0.0, 3)


def test_an_extended_smoother_that_diverges_is_no_guess():
    """Once the guess was taken as it was, and states were NaN."""
    case = fuzz_nonlinear.Case(
        "gaussian", 1, "well", "square", 0.9, 0.01, True, 0.0, 46804
    )
    found = fuzz_nonlinear.check(case)
    assert not found.failures
    assert found.ended == "converged"


def test_a_wrong_posterior_is_seen(monkeypatch):
    run = fuzz_linear.run
    assert not fuzz_linear.check(linear_case()).failures
    for place in range(3):

        def wrong(*args, place=place):
            found = list(run(*args))
            found[place] = found[place] * (1 + 1e-8)
            return found

        monkeypatch.setattr(fuzz_linear, "run", wrong)
        verdict = fuzz_linear.check(linear_case())
        assert len(verdict.failures) == 1
        assert "off by" in verdict.failures[0]


def test_states_that_are_no_mode_are_seen(monkeypatch):
    smoother = fuzz_nonlinear._smoother
    assert not fuzz_nonlinear.check(nonlinear_case()).failures

    def moved(kind, way):
        def run(p, y):
            found, value = smoother(kind, way)(p, y)
            return found._replace(means=found.means + 1e-3), value

        return run

    monkeypatch.setattr(fuzz_nonlinear, "_smoother", moved)
    fell = " ".join(fuzz_nonlinear.check(nonlinear_case()).failures)
    assert "gradient" in fell
    assert "SciPy" in fell
    assert "log posterior" in fell


def test_a_wrong_gradient_is_seen(monkeypatch):
    program = GRADIENTS[1]
    choices = {name: values[0] for name, values in fuzz_patchwork.OPTIONS.items()}
    choices |= {"parts": ["tanh", "linear"], "units": [0, 3], "seed": 1}
    draw = fuzz_patchwork.compose(2, program.length, choices)
    case = search.Case(program, "patchwork", draw, 1e-12, 1.0, 0.0, 1)
    assert fuzz_recurrences.check_gradient(case).ended == "converged"
    assert not fuzz_recurrences.check_gradient(case).failures
    right = fuzz_recurrences._through_evaluate

    def wrong(program):
        def run(*args):
            (p, x0, inputs), status = right(program)(*args)
            return (p, x0 * (1 + 1e-6), inputs), status

        return run

    monkeypatch.setattr(fuzz_recurrences, "_through_evaluate", wrong)
    verdict = fuzz_recurrences.check_gradient(case)
    assert len(verdict.failures) == 1
    assert "jax.lax.scan" in verdict.script


def test_every_part_of_the_patchwork_is_taken():
    """In NumPy, part by part, with inputs that tell them apart."""
    h, z, u = 0.3, -1.9, 0.4
    expected = {
        "linear": z, "tanh": np.tanh(z), "relu": 0, "kink": 1.9, "clip": -1,
        "dead zone": -0.9, "sine": np.sin(z), "modulo": 1.5, "floor": -2, "step": -0.4,
        "counter": 1.3, "record": 0.4, "resetting": 0.8,
    }  # fmt: skip
    assert tuple(expected) == fuzz_patchwork.PARTS
    never = jnp.asarray([fuzz_patchwork.NEVER])
    for place, value in enumerate(expected.values()):
        p = {"A": jnp.eye(1), "b": jnp.asarray([z - 2 * h - u]), "V": jnp.eye(1)}
        p |= {"c": 0.0, "k": jnp.asarray([float(place)]), "l": never}
        p["s"] = jnp.asarray([4.0])
        found = fuzz_patchwork.patchwork(p, jnp.asarray([1.2]), jnp.asarray([u, 2.0]))
        np.testing.assert_allclose(found, [4 * value], atol=1e-5)
        p["l"] = jnp.asarray([0.2])
        kept = fuzz_patchwork.patchwork(p, jnp.asarray([1.2]), jnp.asarray([u, 2.0]))
        np.testing.assert_allclose(kept, [1.2], atol=1e-6)


def test_what_fails_is_counted_and_shown_with_a_script_that_runs(monkeypatch, capsys):
    def fails(case):
        text = fuzz_linear.SCRIPT.format(case=linear_case())
        return fuzz_recurrences.Verdict(3.0, ["means: off by 1"], "proper", text)

    kind = fuzz.KINDS["linear models"]._replace(check=fails)
    monkeypatch.setitem(fuzz.KINDS, "linear models", kind)
    assert fuzz.main(["--small", "--cases", "3", "--kinds", "linear models"]) == 1
    page = capsys.readouterr().out
    assert "40 cases, 40 failed" in page
    text = page.split("means: off by 1")[0]
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=harness.ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_same_seed_draws_the_same_cases(monkeypatch):
    seen = []

    def note(case):
        seen.append(case)
        return fuzz_recurrences.Verdict(0.0, [], "noted", "")

    kind = fuzz.KINDS["nonlinear models"]._replace(check=note)
    monkeypatch.setitem(fuzz.KINDS, "nonlinear models", kind)
    for seed in (1, 1, 2):
        row = fuzz.run("nonlinear models", 30, seed)
        assert row["cases"] == 30
        assert row["failures"] == 0
    assert seen[:30] == seen[30:60]
    assert seen[30:60] != seen[60:]


def test_programs_are_few_and_meet_every_method():
    drawn = {p.method for p in fuzz_recurrences.PROGRAMS}
    assert len(drawn) == len(fuzz_recurrences.PROGRAMS) < 50
    assert {"elk, smoother", "jacobi, blocks", "newton, gated"} < drawn
    for field in ("dtype", "keep", "length", "dimension"):
        assert len({getattr(p, field) for p in fuzz_recurrences.PROGRAMS}) > 1
    assert np.isclose(sum(kind.share for kind in fuzz.KINDS.values()), 1)


def test_what_is_known_exactly_takes_no_part_in_later_constraints():
    """Once rounding was conditioned on, and later rows grew by F every step."""
    for way in fuzz_linear.WAYS[:2]:
        case = fuzz_linear.Case(
            "singular", way, "float64", 4, "unstable", "rank one", "exact", "first", 0,
            (False, False, True), 5707863,
        )  # fmt: skip
        found = fuzz_linear.check(case)
        assert not found.failures
        assert found.ended == "singular"


def test_noise_far_above_that_of_an_emission_is_too_delicate_in_single_precision():
    """The square root keeps the first state apart, and holds noise as a covariance."""
    case = fuzz_linear.Case(
        "diffuse", fuzz_linear.WAYS[2], "float32", 2, "unstable", "mixed scales",
        "mixed scales", "first", -2, (True, True, True), 0,
    )  # fmt: skip
    right = fuzz_linear.truth(case, fuzz_linear.squared(fuzz_linear.numbers(case)))
    single, double = (
        fuzz_linear.held(one, fuzz_linear.squared(fuzz_linear.numbers(case)), right)
        for one in (case, case._replace(dtype="float64"))
    )
    assert single.lost > 100
    assert double.lost < 1e-3
    assert fuzz_linear.check(case).ended == "too delicate"


def test_an_end_at_which_rounding_is_more_than_a_deviation_has_not_converged():
    """From an extended smoother that ran away to 1e21; once it was called converged."""
    case = fuzz_nonlinear.Case(
        "gaussian", 1, "well", "exponential", 0.5, 1.0, False, 5.0, 833
    )
    assert fuzz_nonlinear.check(case).ended == "precision_limit"
    assert fuzz_nonlinear.check(case._replace(way=0)).ended == "converged"


def test_a_diffuse_likelihood_is_right_to_the_rounding_of_its_terms():
    """Its terms are larger than itself where an emission is nearly exact."""
    case = fuzz_linear.Case(
        "diffuse", fuzz_linear.WAYS[2], "float64", 2, "nilpotent", "full",
        "nearly exact", "some", 4, (False, False, True), 11925709,
    )  # fmt: skip
    examine("linear models", case)
