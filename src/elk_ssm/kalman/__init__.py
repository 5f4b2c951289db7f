"""Kalman algebra: affine scans, filters, smoothers and linear-Gaussian models."""
