"""After the fit: forecasts, components, residuals and posteriors of a fitted model."""
