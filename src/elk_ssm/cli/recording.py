"""The recording of the demo, and bringing samples to one scale."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from elk_ssm.cli.errors import UsageError, file_errors, needed

Table = Float[np.ndarray, "T C"]


def membrane_recording(length: int | None = None) -> Float[np.ndarray, "T 1"]:
    """Return the intracellular recording that matplotlib ships, standardised.

    Args:
        length: how many of the 12,000 samples to keep, from the start; all by default.

    Raises:
        UsageError: if matplotlib or its file is missing, or the recording is shorter.
    """
    cbook = needed("matplotlib.cbook", "the demo", "elk-ssm[plots]")
    path = Path("membrane.dat")
    with file_errors(path, "matplotlib's sample data: cannot read"):
        path = Path(cbook.get_sample_data("membrane.dat", asfileobj=False))
        samples = np.fromfile(path, np.float32).astype(float)
    if length is not None and length > samples.size:
        raise UsageError(f"the recording has {samples.size} samples; got {length}.")
    return standardize(samples[:length, None])


def standardize(values: Table) -> Table:
    """Return each column less its mean, over its standard deviation.

    A constant column becomes zero.
    """
    centred = values - values.mean(axis=0)
    scale = centred.std(axis=0)
    # The mean of equal numbers rounds, so a constant column has a scale of about eps.
    constant = scale <= 1e-12 * np.abs(values).max(axis=0)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, scale))
