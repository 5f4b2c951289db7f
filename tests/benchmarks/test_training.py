"""Training in parallel is training: same losses, same batches, resumable."""

import jax
import numpy as np
import pytest

import elk_ssm as elk
from benchmarks import data_io, training

pytest.importorskip("flax.linen")

CONFIG = training.Config(state_size=4, batch_size=6, steps=50)


@pytest.fixture(scope="module")
def data():
    """Return part of the watch data: every 20th step of some recordings, float64."""
    pytest.importorskip("seglearn")
    found = data_io.load_watch()
    train, _ = data_io.split_by_group(found, [8, 9, 10])
    (train,) = data_io.standardize(train)
    coarse = [x[:2000:20] for x in train.series]
    return data_io.pad(train._replace(series=coarse), dtype=np.float64)


@pytest.fixture(scope="module")
def sequential_losses(data):
    with jax.enable_x64(True):
        return training.train(CONFIG, data, 7, training.sequential).losses


METHODS = {
    "auto": elk.auto(block_size=8, strategy="forgetful"),
    "quasi_deer": elk.quasi_deer(),
    "blocks": elk.deer(block_size=10),
}


@pytest.mark.parametrize("method", METHODS)
def test_loss_curves_agree_over_fifty_steps(data, sequential_losses, method, x64):
    evaluator = training.parallel(METHODS[method])
    losses = training.train(CONFIG, data, 7, evaluator).losses
    np.testing.assert_allclose(losses, sequential_losses, rtol=1e-6)
    assert float(losses[-10:].mean()) < 0.9 * float(losses[:10].mean())


def test_padding_never_changes_a_result(data, x64):
    """Neither the padding's values nor its length reach loss or gradient."""
    batch = training.batch_at(data, CONFIG, 0)
    batch = batch._replace(inputs=batch.inputs[:, :90])
    batch = batch._replace(lengths=np.minimum(batch.lengths, 60 + np.arange(6)))
    params = training.init_params(CONFIG, 6, 7, np.float64)
    valid = np.arange(90) < batch.lengths[:, None]
    noisy = np.where(valid[..., None], batch.inputs, 1e3)
    longer = np.concatenate([batch.inputs, np.full_like(batch.inputs, -5.0)], axis=1)
    evaluator = training.parallel(elk.quasi_deer())

    @jax.jit
    def run(inputs):
        changed = batch._replace(inputs=inputs)
        return jax.value_and_grad(training.loss_of)(params, changed, evaluator)

    expected = run(batch.inputs)
    for inputs in (noisy, longer):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11),
            run(inputs),
            expected,
        )


def test_batches_depend_on_seed_and_step_alone(data):
    rows = [training.batch_at(data, CONFIG, k).inputs for k in (3, 3, 4)]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_an_interrupted_run_continues_where_it_stopped(data, tmp_path):
    pytest.importorskip("orbax.checkpoint")
    config = training.Config(state_size=4, batch_size=4, steps=12)
    small = data_io.Batch(*(x[:8] for x in data))
    small = small._replace(inputs=small.inputs[:, :30].astype(np.float32))
    small = small._replace(lengths=np.full(8, 30, np.int32))
    evaluator = training.parallel()
    whole = training.train(config, small, 7, evaluator)
    folder = tmp_path / "run"
    options = {"checkpoints": folder, "every": 4}
    part = training.train(config, small, 7, evaluator, stop_after=6, **options)
    assert int(part.step) == 6
    resumed = training.train(config, small, 7, evaluator, **options)
    assert int(resumed.step) == 12
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    again = training.train(config, small, 7, evaluator, **options)
    np.testing.assert_array_equal(again.losses, whole.losses)


def test_a_set_that_aeon_ships_trains_the_same(x64):
    """ACSF1 at its full length, T = 1,460: the parallel losses are the sequential."""
    try:
        paths = data_io.find_aeon("ACSF1")
    except FileNotFoundError:
        pytest.skip("aeon's data files are not installed; `make test` installs them")
    (train,) = data_io.standardize(data_io.read_ts(paths[0]))
    classes = len(train.classes)
    data = data_io.pad(train.take(range(16)), dtype=np.float64)
    assert (data.inputs.shape[1], classes) == (1460, 10)
    config = training.Config(state_size=4, batch_size=4, steps=4)
    losses = [
        training.train(config, data, classes, evaluator).losses
        for evaluator in (
            training.sequential,
            training.parallel(elk.auto(block_size=64, strategy="forgetful")),
        )
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
