"""The help text of a config: every key once, with the comment of its declaration."""

from __future__ import annotations

import inspect

from experiments import base
from launch.run import config, describe, keys

SOURCE = """
class A:
    one: int = 1  # behind, with a "# hash"
    two: int = 2  # behind,
    # and below
    # above three
    three: int = 3
    four: str = (
        "# no comment"
    )  # after brackets
    five: int = 5

    # apart

    six: int = 6
def f(config):
    config.a.b = 1  # attribute
    one = 7  # not the first
"""


def test_comments_behind_below_and_above() -> None:
    got = describe.comments(SOURCE.replace("    # above", "    seven: int = 7  # x\n    # above"))
    assert got == {
        "one": 'behind, with a "# hash"',
        "two": "behind, and below",
        "seven": "x",
        "three": "above three",
        "four": "after brackets",
        "five": "",
        "six": "",
        "config.a.b": "attribute",
    }


def test_every_key_has_a_line_with_value_and_comment(toy: str) -> None:
    got = config.load(toy, ["sample.prompt=a b", "optimizer.learning_rate=3e-4"])
    text = describe.describe(got)
    lines = {line.split("=")[0].strip(): line for line in text.splitlines() if "--config" in line}
    assert lines.keys() == {f"--config.{name}" for name in keys.flatten(got)}
    assert len(lines) == text.count("--config.")
    steps = " ".join(lines["--config.train.steps"].split())
    assert steps == "--config.train.steps=50 updates of the parameters (default: 1000)"
    assert lines["--config.model.features"].endswith("hidden units of each layer, first to last")
    assert lines["--config.model.gated"].endswith("gated=false")
    assert lines["--config.model.kind"].endswith("what joins the layers")
    assert "--config.sample.prompt='a b'" in text
    assert "(default: 0.001)" in lines["--config.optimizer.learning_rate"]


def test_sections_name_their_file(toy: str) -> None:
    text = describe.describe(config.load(toy))
    assert "\nmodel: nn/families/toy_net.py: A toy network. It is never built.\n" in text
    assert "\noptimizer\n" in text
    assert text.index("--config.data.prefetch") < text.index("--config.data.noise")


def test_every_key_of_base_has_a_comment() -> None:
    notes = describe.comments(inspect.getsource(base))
    assert [name for name in keys.base_keys() if not notes[f"config.{name}"]] == []
