"""Timing ours against the peers, each in a process of its own (see `launch.benchmark`)."""
