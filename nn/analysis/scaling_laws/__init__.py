"""Scaling laws: fits, intervals, forecasts (numpy and scipy in float64; no accelerator is touched)."""
