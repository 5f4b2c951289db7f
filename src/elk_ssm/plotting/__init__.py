"""Pictures of an evaluation: how it converged, what its surrogate believed, and why.

    residuals       largest residual over iterations, one curve a method
    noise_sweep     iterations over the noise s^2
    gate            exact prefix and states set back, over iterations
    bands           iterates of one state dimension with their bands, from arrays
    iterates        the same, from posteriors of the surrogate
    error_map       error over time and iteration, with the exact prefix
    diagnosis       growth of perturbations over time

and of a fitted series:

    forecast        the series and what is expected of it, with a band
    components      every component with its band
    diagnostics     standardised innovations against white noise

Every function takes `ax` (or `axes`, where it draws several pictures), draws on it and
returns it; without one it makes a figure. Curves differ by line style and marker, not
only by colour, so that a print in grey stays legible. matplotlib is imported when a
function is called: `import elk_ssm` works without it.
"""

from elk_ssm.plotting.convergence import gate, noise_sweep, residuals
from elk_ssm.plotting.growth import diagnosis
from elk_ssm.plotting.series import components, forecast
from elk_ssm.plotting.trajectories import bands, error_map, iterates
from elk_ssm.plotting.whiteness import diagnostics

__all__ = [
    "bands",
    "components",
    "diagnosis",
    "diagnostics",
    "error_map",
    "forecast",
    "gate",
    "iterates",
    "noise_sweep",
    "residuals",
]
