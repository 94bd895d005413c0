"""A toy file for each part of a config, so that these tests depend on no real model or data set."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FILES = {
    "nn.families.toy_net": '''
"""A toy network. It is never built."""
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 8  # units
    features: tuple[int, ...] = (4, 4)  # hidden units of each layer,
    # first to last
    rate: float = 0.5  # a probability
    gated: bool = False
    # what joins the layers
    kind: str = "plain"
    limit: int | None = None  # positions; none: no limit

    def __post_init__(self):
        if self.width % 2:
            raise ValueError(f"model.width={self.width}: must be even; nearest: {self.width + 1}")

PRESETS = {"toy-small": Config(width=2), "toy-large": Config(width=64, kind="grand")}
''',
    "nn.families.toy_other": '''
"""Another toy network."""
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    depth: int = 3  # layers
''',
    "nn.families.toy_helper": '"""Not a network: it has no such class."""\nWIDTH = 8\n',
    "nn.objectives.toy_goal": '''
"""A toy objective."""
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    smoothing: float = 0.0  # a probability
''',
    "nn.learning.toy_rule": '''
"""A toy rule."""
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    accumulate: int = 1  # parts of a batch
''',
    "launch.data.toy_set": '''
"""A toy data set."""
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    noise: float = 0.1  # standard deviation
''',
}

EXPERIMENT = '''
"""A toy experiment."""
from experiments import base

ARGUMENTS = {"small": 4, "large": 16}

def get_config(size="small"):
    config = base.get_config()
    config.model.family = "toy_net"
    config.model.width = ARGUMENTS[size]
    config.objective.name = "toy_goal"
    config.rule.name = "toy_rule"
    config.data.name = "toy_set"
    config.train.steps = 50
    return config
'''


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Adds the toy files to their packages, for one test."""
    for name, source in FILES.items():
        package, _, stem = name.rpartition(".")
        folder = tmp_path / package
        folder.mkdir(exist_ok=True)
        (folder / f"{stem}.py").write_text(source.lstrip())
        module = importlib.import_module(package)
        if str(folder) not in module.__path__:
            monkeypatch.setattr(module, "__path__", [*module.__path__, str(folder)])
    importlib.invalidate_caches()
    yield
    for name in FILES:
        package, _, stem = name.rpartition(".")
        sys.modules.pop(name, None)
        vars(sys.modules[package]).pop(stem, None)


@pytest.fixture
def write_experiment(tmp_path: Path) -> Callable[..., str]:
    """Writes an experiment file; returns its path. `extra` lines go before the last `return`."""

    def write(*extra: str, source: str = EXPERIMENT, name: str = "toy.py") -> str:
        head, _, tail = source.rpartition("    return config")
        lines = "".join(f"    {line}\n" for line in extra)
        path = tmp_path / name
        path.write_text(f"{head}{lines}    return config{tail}".lstrip() if head else source)
        return str(path)

    return write


@pytest.fixture
def toy(toys: None, write_experiment: Callable[..., str]) -> str:
    """The path of the toy experiment, with the toy files in place."""
    return write_experiment()
