"""The linear-Gaussian surrogate: linearisations, noise policies, the model."""
