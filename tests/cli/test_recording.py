"""The recording of the demo, and one scale."""

import numpy as np
import pytest

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.recording import membrane_recording, standardize


def message(function, *args):
    with pytest.raises(UsageError) as error:
        function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestMembrane:
    def test_standardised(self):
        values = membrane_recording()
        assert values.shape == (12_000, 1)
        np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-12)

    def test_length(self):
        assert membrane_recording(5).shape == (5, 1)
        assert "has 12000 samples" in message(membrane_recording, 12_001)


def test_standardize_makes_constant_columns_zero():
    values = np.stack([np.full(7, 0.1), np.arange(7.0)], axis=1)
    got = standardize(values)
    np.testing.assert_array_equal(got[:, 0], 0)
    np.testing.assert_allclose(got[:, 1].std(), 1)
    np.testing.assert_array_equal(standardize(np.array([[3.0]])), [[0]])
