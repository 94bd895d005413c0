"""Scaling laws: fits, intervals, forecasts, in float64 with numpy and scipy alone."""
