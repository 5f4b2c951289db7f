"""Nonlinear state-space models: densities, expansions, iterated smoothing."""
