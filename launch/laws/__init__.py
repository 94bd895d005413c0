"""Scaling-law studies: what to run, what it costs, what the results say."""
