"""Counting reads the text of programs, so that nothing here needs a GPU's compiler."""

import jax
import jax.numpy as jnp
import pytest
from benchmarks.gpu_budgets import Ceiling
from benchmarks.gpu_program import Compiled, Counts, count

from benchmarks import gpu_budgets, gpu_cells, gpu_counts, gpu_page, harness, hlo

# Two kernels; a loop of 8 rounds with one; passes, of unknown number: a trial loop of
# two, a conditional of one or of three, and a call of one; and a failure loop of two.
TEXT = """HloModule jit_f, is_scheduled=true

%fused (p: f32[8], q: s32[]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %q = s32[] parameter(1)
  %s = f32[2]{0} dynamic-slice(%p, %q), dynamic_slice_sizes={2}
  ROOT %u = f32[8]{0} dynamic-update-slice(%p, %s, %q)
}

%one (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %y = f32[8]{0} fusion(%x, %i), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[8]{0}) tuple(%i, %y)
}

%two (t.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t.1 = (s32[], f32[8]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %x.1 = f32[8]{0} get-tuple-element(%t.1), index=1
  %a = f32[8]{0} copy(%x.1)
  %b = f32[8]{0} fusion(%a, %i.1), kind=kLoop, calls=%fused
  ROOT %r.1 = (s32[], f32[8]{0}) tuple(%i.1, %b)
}

%asked (t.2: (s32[], f32[8])) -> pred[] {
  %t.2 = (s32[], f32[8]{0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%t.2), index=0
  ROOT %less = pred[] compare(%i.2, %i.2), direction=LT
}

%three (t.3: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t.3 = (s32[], f32[8]{0}) parameter(0)
  ROOT %w = (s32[], /*index=1*/f32[8]{0}) while(%t.3), condition=%asked, body=%one, \
metadata={op_name="jit(f)/passes/while/body/cond/while"}, \
backend_config={"known_trip_count":{"n":"3"}}
}

%pass (t.4: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t.4 = (s32[], f32[8]{0}) parameter(0)
  %tried = (s32[], f32[8]{0}) while(%t.4), condition=%asked, body=%two, \
metadata={op_name="jit(f)/passes/while/body/trial/while"}
  %yes = pred[] parameter(1)
  %if = (s32[], f32[8]{0}) conditional(%yes, %tried, %tried), \
true_computation=%three, false_computation=%one, \
metadata={op_name="jit(f)/passes/while/body/damping/cond"}
  ROOT %go = (s32[], f32[8]{0}) call(%if), to_apply=%one
}

ENTRY %main (x.9: f32[8]) -> f32[8] {
  %x.9 = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %first = f32[8]{0} custom-call(%x.9), custom_call_target="__cublas$gemm"
  %begin = (s32[], f32[8]{0}) tuple(%zero, %first)
  %known = (s32[], f32[8]{0}) while(%begin), condition=%asked, body=%one, \
backend_config={"known_trip_count":{"n":"8"}}
  %solve = (s32[], f32[8]{0}) while(%known), condition=%asked, body=%pass, \
metadata={op_name="jit(f)/transpose(jvp(passes))/while"}
  %fail = (s32[], f32[8]{0}) while(%solve), condition=%asked, body=%two, \
metadata={op_name="jit(f)/failure/while"}
  %done = f32[8]{0} get-tuple-element(%fail), index=1
  ROOT %last = f32[8]{0} copy(%done)
}
"""
PROGRAM = Compiled(TEXT, temporary_bytes=64, seconds=2.0)
GOOD = {"passes": 4, "trial": 1, "failure": 0}


def test_unnamed_loops_run_once_and_outermost_ones_as_asked():
    # A pass: a trial of two and two looks, three in the branch, one called.
    a_pass = (2 + 2) + 3 + 1
    for passes in (1, 5):
        failing = 2 * passes + (passes + 1)
        expected = 2 + 8 + passes * a_pass + (passes + 1) + failing
        assert count(PROGRAM, passes=passes).launches == expected


def test_named_loops_run_so_often_in_the_whole_run():
    found = count(PROGRAM, rounds=GOOD)
    passes = 4 * (3 + 1) + 5
    # A loop looks once more than it runs, and also where it never does.
    trial = 1 * 2 + (1 + 4)
    assert found.launches == 2 + 8 + passes + trial + 1
    assert found.syncs == 5 + (1 + 4) + 1 + 4
    assert (found.temporary_bytes, found.seconds) == (64, 2.0)


@pytest.mark.parametrize(("branches", "most"), [("dear", 3), ("cheap", 1)])
def test_one_branch_counts_and_asks_the_host_either_way(branches, most):
    found = count(PROGRAM, rounds=GOOD, branches=branches)
    dear = count(PROGRAM, rounds=GOOD)
    assert dear.launches - found.launches == 4 * (3 - most)
    assert dear.syncs == found.syncs


def test_a_named_conditional_takes_its_dearer_branch_so_often():
    dear = count(PROGRAM, rounds=GOOD)
    for often in (0, 1, 4, 9):
        found = count(PROGRAM, rounds=GOOD | {"damping": often})
        assert dear.launches - found.launches == 2 * (4 - min(often, 4))


def test_two_names_on_one_loop_are_refused():
    with pytest.raises(ValueError, match=r"solve .*'jit', 'passes'"):
        count(PROGRAM, rounds={"passes": 1, "jit": 1})


def test_loops_are_reported_from_the_inside():
    loops = count(PROGRAM, rounds=GOOD).loops
    assert [(loop.depth, loop.rounds) for loop in loops] == [
        (0, 8), (1, None), (1, 3), (0, None)
    ]  # fmt: skip
    assert loops[0].launches == 8


def test_bytes_are_what_is_read_and_written_and_no_more():
    program = hlo.parse(TEXT)
    shapes = {"x": "f32[8]{0}", "i": "s32[]", "x.1": "f32[8]{0}"}
    ops = {op.name: op for ops in program.computations.values() for op in ops}
    # Two of eight read, two written in place, and the index.
    assert hlo.moved(ops["y"], shapes, program) == 8 + 8 + 4
    assert hlo.moved(ops["a"], shapes, program) == 32 + 32


@pytest.mark.parametrize(
    ("shape", "bytes_"),
    [
        ("f32[]", 4),
        ("(bf16[2,3]{1,0}, pred[5])", 17),
        ("c64[2]", 16),
        ("f8e4m3fn[3]", 3),
    ],
)
def test_sizes_of_shapes(shape, bytes_):
    assert hlo.size(shape) == bytes_


def test_the_model_adds_launches_syncs_and_bytes():
    assert Counts(1_000, 100, 2.5e9).modelled_ms == pytest.approx(2 + 1.5 + 1)


def on_cpu(function, *args):
    return Compiled(jax.jit(function).lower(*args).compile().as_text())


def test_loops_of_a_program_compiled_here_bear_their_scopes():
    def solve(x):
        def body(carry):
            step, x = carry
            return step + 1, jax.lax.fori_loop(0, 7, lambda _, x: jnp.sin(x), x)

        with jax.named_scope("passes"):
            return jax.lax.while_loop(lambda c: c[0] < x.sum(), body, (0, x))[1]

    program = on_cpu(solve, jnp.ones(5))
    one, two, three = (count(program, rounds={"passes": n}) for n in (1, 2, 3))
    assert three.launches - two.launches == two.launches - one.launches >= 7
    assert (one.syncs, three.syncs) == (2, 4)
    assert any(loop.rounds == 7 for loop in one.loops)


def test_a_solve_bears_the_scopes_that_its_cells_name():
    run, arguments = gpu_cells.ours("GRU", "quasi_deer", 2, 50).build()

    def loss(*arguments):
        return jnp.sum(run(*arguments))

    program = hlo.parse(on_cpu(jax.grad(loss), *arguments).text)
    loops = [op for ops in program.computations.values() for op in ops]
    loops = [op for op in loops if op.kind == "while" and op.trip_count is None]
    assert {"rounds", "passes", "trial", "failure"} <= set().union(
        *(op.names for op in loops)
    )
    for op in loops:
        assert op.names & {"rounds", "passes", "failure"}, op.name


def row(program="default", **numbers):
    found = {"problem": "GRU", "program": program, "D": 32, "T": gpu_cells.LONG}
    most = {"launches": 10, "syncs": 2, "GB moved": 0.5, "temporary MB": 1.0}
    return found | most | {"model ms": 1.0, "compile s": 4.0} | numbers


def test_what_is_above_its_ceiling_is_named_and_what_is_on_it_is_not():
    ceiling = Ceiling(("GRU", "default", 32, gpu_cells.LONG), 2, 10, 2, 0.5, 1.0)
    assert gpu_budgets.overruns(ceiling, row()) == []
    (line,) = gpu_budgets.overruns(ceiling, row(launches=11))
    assert line.startswith("GRU, default, D = 32")
    assert "11 launches, above its ceiling of 10" in line


def test_every_budget_and_ceiling_is_of_a_cell():
    cells = {cell.key for cell in gpu_cells.CELLS}
    for budget in gpu_budgets.BUDGETS:
        assert {budget.key, budget.other or budget.key} <= cells
    assert {ceiling.key for ceiling in gpu_budgets.CEILINGS} <= cells


def test_budgets_are_judged_worst_first_beside_the_published():
    rows = [row(launches=800), row("published quasi_deer", launches=290)]
    found = gpu_budgets.judged(rows)
    assert [line["what"] for line in found][:2] == ["launches", "model ms"]
    assert (found[0]["measured"], found[0]["of the other"]) == (800, 290)
    assert found[-1]["what"] == "GB moved"


def test_a_gradient_is_counted_beyond_its_forward_pass():
    rows = [row(launches=7), row(launches=30, problem="GRU, gradient")]
    gpu_budgets.add_beyond(rows)
    assert rows[1][gpu_budgets.BEYOND] == 23
    assert gpu_budgets.BEYOND not in rows[0]


def test_without_the_compiler_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu_counts, "can_compile", lambda: False)
    assert gpu_counts.main([]) == 2
    assert "constraints-gpu.txt" in capsys.readouterr().out


def test_the_page_has_the_stored_numbers():
    stored = harness.read(gpu_page.STORED)
    places = gpu_page.places(stored)
    for program in stored["rows"]["programs"]:
        assert f"| {program['program']} | {program['D']} |" in places["programs"]
    assert places["budgets"].count("\n") == len(stored["rows"]["budgets"]) + 1


def test_the_passes_of_a_gradient_are_those_of_a_run_here():
    cell = gpu_cells.gradient_of(gpu_cells.ours("GRU", "default", 4, 64))
    passes = cell.passes_here()
    assert passes.sweeps > 0
    assert passes.short + passes.iterated > 0
