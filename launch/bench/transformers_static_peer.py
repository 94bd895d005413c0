"""The transformers peer with a cache that has room for the whole text from the start."""

from __future__ import annotations

from launch.bench import transformers_peer
from launch.bench.job import Job
from launch.bench.workloads import Text

device = transformers_peer.device


def generate(size: Text, where: str) -> Job:
    """A whole greedy generation after prompts of `length` tokens."""
    return transformers_peer.generate(size, where, cache="static")
