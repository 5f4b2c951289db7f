"""Nonlinear recurrences evaluated as Kalman inference, parallel in time, in JAX.

Example:
    >>> import jax.numpy as jnp
    >>> import elk_ssm as elk
    >>> def f(x, u):
    ...     return jnp.tanh(0.5 * x + u)
    >>> sol = elk.evaluate(f, jnp.zeros(3), jnp.ones((100, 3)))
    >>> elk.Status(int(sol.status)).name
    'converged'
"""

# isort: split
# First: from here on an interrupt of the command line is heard.
from elk_ssm import _start  # noqa: F401

# isort: split
from elk_ssm import models, plotting
from elk_ssm.diagnosis import Diagnosis, diagnose
from elk_ssm.draws import Sample, sample
from elk_ssm.evaluation import evaluate, iterates, sequential
from elk_ssm.expectation_maximization import EMFit, lgssm_em
from elk_ssm.fitted.decomposing import Decomposition, decompose
from elk_ssm.fitted.errors_ahead import Innovations, diagnostics, innovations
from elk_ssm.fitted.forecasting import Forecast, forecast
from elk_ssm.fitted.posterior import ParameterDraws, sample_posterior
from elk_ssm.fitted.series import Observed
from elk_ssm.fitted.summarising import Summary, summary
from elk_ssm.fitted.whiteness import Diagnostics
from elk_ssm.fitting import Fit, fit
from elk_ssm.forcing import Forced, forced
from elk_ssm.interop.chain import Chains
from elk_ssm.kalman.filtering import lgssm_filter
from elk_ssm.kalman.forecasting import lgssm_predict
from elk_ssm.kalman.initial import Diffuse, Stationary
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.likelihood import lgssm_log_likelihood
from elk_ssm.kalman.sampling import lgssm_sample
from elk_ssm.kalman.smoothing import lgssm_smoother
from elk_ssm.linalg.structure import (
    BlockDiagonal,
    Dense,
    Diagonal,
    LowRank,
    ScaledIdentity,
)
from elk_ssm.linearizing import linearize
from elk_ssm.lyapunov import LyapunovSpectrum, lyapunov_spectrum
from elk_ssm.markov import chains
from elk_ssm.methods import auto, deer, elk, jacobi, picard, quasi_deer, quasi_elk
from elk_ssm.nssm.model import NonlinearSSM
from elk_ssm.scanning import scan
from elk_ssm.sequential_scanning import sequential_scan
from elk_ssm.smoothing import Smoothed, extended_smoother, log_prob, smooth
from elk_ssm.solution import History, Solution, Status, raise_if_failed
from elk_ssm.solve.anderson import Anderson
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.gate import Gate
from elk_ssm.solve.method import Method
from elk_ssm.solve.plan import Plan, PlanKind
from elk_ssm.surrogate.block_jacobian import BlockDiagonalJacobian
from elk_ssm.surrogate.jacobians import (
    DenseJacobian,
    DiagonalJacobian,
    IdentityJacobian,
    StochasticDiagonal,
    UserJacobian,
    ZeroJacobian,
)
from elk_ssm.surrogate.linearization import Linearization
from elk_ssm.surrogate.noise import (
    Annealed,
    Constant,
    GainRatio,
    PerStep,
    ResidualProportional,
)
from elk_ssm.surrogate.policy import NoisePolicy
from elk_ssm.surrogate.surrogate import Posterior, Surrogate
from elk_ssm.surrogate.tamed import Clipped, Scaled
from elk_ssm.sweep import NoiseSweep, sweep_noise

__version__ = "0.1.0"

__all__ = [
    "LGSSM",
    "Anderson",
    "Annealed",
    "Auto",
    "BlockDiagonal",
    "BlockDiagonalJacobian",
    "Chains",
    "Clipped",
    "Constant",
    "Decomposition",
    "Dense",
    "DenseJacobian",
    "Diagnosis",
    "Diagnostics",
    "Diagonal",
    "DiagonalJacobian",
    "Diffuse",
    "EMFit",
    "Fit",
    "Forced",
    "Forecast",
    "GainRatio",
    "Gate",
    "History",
    "IdentityJacobian",
    "Innovations",
    "Linearization",
    "LowRank",
    "LyapunovSpectrum",
    "Method",
    "NoisePolicy",
    "NoiseSweep",
    "NonlinearSSM",
    "Observed",
    "ParameterDraws",
    "PerStep",
    "Plan",
    "PlanKind",
    "Posterior",
    "ResidualProportional",
    "Sample",
    "Scaled",
    "ScaledIdentity",
    "Smoothed",
    "Solution",
    "Stationary",
    "Status",
    "StochasticDiagonal",
    "Summary",
    "Surrogate",
    "UserJacobian",
    "ZeroJacobian",
    "auto",
    "chains",
    "decompose",
    "deer",
    "diagnose",
    "diagnostics",
    "elk",
    "evaluate",
    "extended_smoother",
    "fit",
    "forced",
    "forecast",
    "innovations",
    "iterates",
    "jacobi",
    "lgssm_em",
    "lgssm_filter",
    "lgssm_log_likelihood",
    "lgssm_predict",
    "lgssm_sample",
    "lgssm_smoother",
    "linearize",
    "log_prob",
    "lyapunov_spectrum",
    "models",
    "picard",
    "plotting",
    "quasi_deer",
    "quasi_elk",
    "raise_if_failed",
    "sample",
    "sample_posterior",
    "scan",
    "sequential",
    "sequential_scan",
    "smooth",
    "summary",
    "sweep_noise",
]
