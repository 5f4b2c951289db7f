"""Linear-Gaussian algebra: affine scans, Kalman filters and smoothers."""
