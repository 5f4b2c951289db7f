"""Chains side by side: keys, starts, thinning, statuses, derivatives, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

LENGTH = 24
FEW = {"method": elk.jacobi()}
LOOPS = {"method": elk.auto(strategy="sequential")}


def walk(key, state):
    """Metropolis on a standard normal; returns an info."""
    ours, other = jax.random.split(key)
    proposed = state["x"] + jax.random.normal(ours, state["x"].shape)
    ratio = jnp.exp(0.5 * jnp.sum(state["x"] ** 2) - 0.5 * jnp.sum(proposed**2))
    accept = jax.random.uniform(other) < ratio
    x = jnp.where(accept, proposed, state["x"])
    return {"x": x}, {"is_accepted": accept}


def loop(kernel, starts, keys):
    def one(state, keys):
        return jax.lax.scan(lambda x, key: (kernel(key, x)[0],) * 2, state, keys)[1]

    return jax.vmap(one)(starts, keys)


START = {"x": jnp.array([0.3, -0.4])}
STARTS = {"x": jnp.array([[0.3, -0.4], [1.0, 1.0], [0.0, 2.0]])}


def keys_for(key, chains=3, steps=LENGTH):
    return jax.vmap(lambda k: jax.random.split(k, steps))(jax.random.split(key, chains))


@pytest.fixture(scope="module")
def key():
    return jax.random.key(8)


@pytest.fixture(scope="module")
def expected(key):
    return loop(walk, STARTS, keys_for(key))


def test_one_key_keys_of_chains_and_keys_of_steps_typed_or_raw(key, expected, close):
    given = [jax.random.split(key, 3), keys_for(key), jax.random.key_data(key)]
    for some, how in zip(given, (FEW, FEW, LOOPS)):
        found = elk.raise_if_failed(elk.chains(walk, STARTS, some, LENGTH, **how))
        close(found.states, expected, atol=1e-5)
        assert found.info is None
        assert found.status.shape == found.num_iters.shape == (3,)


def test_one_start_is_every_chains(key, close):
    found = elk.chains(walk, START, key, LENGTH, 3, info=True, **FEW)
    same = jax.tree.map(lambda x: jnp.stack([x] * 3), START)
    close(found.states, loop(walk, same, keys_for(key)), atol=1e-5)
    moved = jnp.any(jnp.diff(found.states["x"], axis=1) != 0, axis=-1)
    np.testing.assert_array_equal(moved, found.info["is_accepted"][:, 1:])


def test_thinned_chains_are_every_kth_state_and_options_reach_evaluate(
    key, expected, close
):
    every = {"x": expected["x"][:, 3::4]}
    found = elk.chains(
        walk, STARTS, key, LENGTH // 4, thinning=4, guess=every, history=5, **FEW,
        info=lambda info: info["is_accepted"],
    )  # fmt: skip
    close(found.states, every, atol=1e-5)
    assert int(found.num_iters.max()) <= 3
    assert found.history.residual_norm.shape == (3, 5)
    assert found.info.shape == (3, LENGTH // 4, 4)


def test_the_last_states_begin_the_next_chains(key, expected, close):
    keys, half = keys_for(key), LENGTH // 2
    for how in (LOOPS, FEW):
        warm = elk.chains(walk, STARTS, keys[:, :half], half, keep="last", **how)
        close(warm.states, {"x": expected["x"][:, half - 1]}, atol=1e-5)
    found = elk.chains(walk, warm.states, keys[:, half:], half, **LOOPS)
    close(found.states, {"x": expected["x"][:, half:]}, atol=1e-5)


def logistic(rate):
    return lambda key, x: rate * x * (1 - x)


def test_a_chain_cut_off_has_its_own_status(key):
    rates, start = jnp.array([0.5, 3.99, 0.2]), jnp.asarray(0.3)
    found = elk.chains(
        logistic, start, key, 100, 3, parameters=rates, method=elk.deer(), max_iters=30
    )
    cut = int(elk.Status.max_iters_reached)
    assert found.status.tolist() == [0, cut, 0]
    assert bool(jnp.isfinite(found.states).all())
    with pytest.raises(RuntimeError, match="max_iters_reached in chains 1: "):
        elk.raise_if_failed(found)
    quiet, keys = logistic(0.2), keys_for(key, 1)
    right = loop(lambda key, x: (quiet(key, x), None), start[None], keys)
    np.testing.assert_allclose(found.states[2, :24], right[0], atol=1e-5)


@pytest.mark.parametrize("method", [elk.jacobi(), elk.auto(strategy="sequential")])
def test_a_chain_that_leaves_the_numbers_has_its_own_status(method, key):
    start = jnp.array([0.5, 2.0])
    found = elk.chains(lambda key, x: x**3, start, key, 12, method=method)
    bad = int(elk.Status.nonfinite)
    assert found.status.tolist() == [0, bad]
    step = int(found.failed_step[1])
    assert 3**step < 128 < 3 ** (step + 1)  # float32 ends at 2^128
    assert bool(jnp.all(found.states[1, step:] == found.states[1, step - 1]))
    assert bool(jnp.isfinite(found.states).all())


def test_derivatives_reach_what_the_kernel_closes_over(key):
    def mean(scale, run):
        def step(key, x):
            return 0.5 * jnp.sin(x) + scale * jax.random.normal(key), None

        return run(step).mean()

    starts = jnp.array([0.1, 0.2])
    ours = jax.grad(mean)(0.7, lambda f: elk.chains(f, starts, key, 9, **FEW).states)
    theirs = jax.grad(mean)(0.7, lambda f: loop(f, starts, keys_for(key, 2, 9)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_a_second_call_and_jit_give_the_same_without_compiling(key, compilations):
    def run():
        return elk.chains(walk, STARTS, key, LENGTH, **FEW)

    first = run()
    with compilations() as count:
        second = run()
    assert count == [0]
    jitted = jax.jit(lambda: elk.chains(walk, STARTS, key, LENGTH, **LOOPS))()
    for other in (second, jitted):
        np.testing.assert_allclose(other.states["x"], first.states["x"], atol=1e-5)


def test_a_kernel_without_derivatives(key, close):
    def step(key, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        half = jax.pure_callback(
            lambda x: np.asarray(x) / 2, shape, x, vmap_method="expand_dims"
        )
        return half + jnp.asarray(jax.random.key_data(key)[0] % 7, x.dtype), None

    starts = jnp.ones((2, 3))
    expected = loop(step, starts, keys_for(key, 2, 8))
    found = elk.chains(step, starts, key, 8)
    close(found.states, expected, atol=1e-5)
    with pytest.raises(TypeError, match="cannot be differentiated in forward mode"):
        elk.chains(step, starts, key, 8, method=elk.deer())


def test_mistakes(key):
    def run(*args, **options):
        return elk.chains(walk, *args, **options)

    with pytest.raises(ValueError, match="Pass num_chains"):
        run({"x": jnp.ones(())}, key, 5)
    with pytest.raises(ValueError, match="starts for 3 chains"):
        elk.chains(lambda k, x: x[:2] * jnp.ones(2), STARTS["x"], key, 5, 2)
    with pytest.raises(ValueError, match="leave num_chains out"):
        run(STARTS, key, 5, 3)
    with pytest.raises(ValueError, match="num_chains must be at least 1"):
        run(START, key, 5, 0)
    with pytest.raises(ValueError, match="key must be one PRNG key, 3 of them"):
        run(STARTS, jax.random.split(key), 5)
    with pytest.raises(ValueError, match="use thinning=k"):
        run(STARTS, key, 5, keep="boundaries")
    with pytest.raises(ValueError, match="There is no info"):
        run(STARTS, key, 5, keep="last", info=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'length'"):
        run(STARTS, key, 5, length=5)
    with pytest.raises(TypeError, match="function of one chain's parameters"):
        elk.chains(3, START, key, 5, 2, parameters=jnp.ones(2))
    with pytest.raises(ValueError, match="parameters needs a leading axis of 2"):
        elk.chains(logistic, jnp.asarray(0.3), key, 5, 2, parameters=jnp.ones(3))
    with pytest.raises(TypeError, match="must keep structure, shapes and dtypes"):
        elk.chains(lambda k, x: x[:1], jnp.ones(2), key, 5, 2)
    with pytest.raises(TypeError, match=r"info must be True, False or .*'accepted'"):
        run(STARTS, key, 5, info="accepted")


@pytest.mark.parametrize("guess", [jnp.zeros((3, 5, 2)), {"x": jnp.zeros((3, 2))}])
def test_a_guess_that_holds_no_states(guess, key):
    said = (
        r"states of the kernel, with leading axes \(chains, samples\), \{x: float32\[3"
    )
    with pytest.raises(ValueError, match=said):
        elk.chains(walk, STARTS, key, 5, guess=guess)


@pytest.mark.parametrize("given", [(jnp.full(4, 0.3), None), (jnp.asarray(0.3), 4)])
def test_parameters_without_an_axis_of_chains(given, key):
    start, count = given
    for wrong in (0.1, jnp.zeros(0), jnp.ones(3)):
        with pytest.raises(ValueError, match=r"Every leaf .* axis of 4 chains"):
            elk.chains(
                lambda p: logistic(p["rate"]), start, key, 5, count,
                parameters={"rate": wrong},
            )  # fmt: skip
    with pytest.raises(TypeError, match="Leave parameters out for a kernel step"):
        elk.chains(walk, STARTS, key, 5, parameters=jnp.ones(3))


def swapped(state, key):
    return walk(key, state)


@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize("kernel", [swapped, lambda z: -z["x"].sum(), logistic])
def test_what_is_no_kernel_is_told_how_one_is_called(kernel, count, key):
    start = STARTS if count is None else START
    with pytest.raises(TypeError, match=r"kernel must be step\(key, state\)"):
        elk.chains(kernel, start, key, 5, count)
