"""Files as people have them, and how they are read."""

import numpy as np
import pytest

from elk_ssm.cli.errors import UsageError
from elk_ssm.cli.reading import Reading, read_recording


@pytest.fixture
def save(tmp_path):
    """Write text, bytes or an array to a file and return its path."""

    def save(content, name="data.csv"):
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return save


@pytest.fixture
def read(save):
    """Write content to a file and read it, with flags."""

    def read(content, name="data.csv", **flags):
        return read_recording(save(content, name), Reading(**flags))

    return read


@pytest.fixture
def refusal(read):
    """The one line with which content is refused."""

    def refusal(content, name="data.csv", **flags):
        with pytest.raises(UsageError) as error:
            read(content, name, **flags)
        assert "\n" not in str(error.value)
        return str(error.value)

    return refusal
