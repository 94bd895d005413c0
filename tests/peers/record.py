"""Record what the references compute: `python -m tests.peers.record NAME|TOPIC|all`.

Every other module here but the tests is a topic. It has `VARIANTS`, and `record(variant, seed)`,
which returns a `golden_store.Record`; `tests/parity/TOPIC.py` has `compute(variant, record)`, the
same outputs by our code, and `tolerance(variant)`. A topic is one new file in each.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from nn import names as naming
from tests import golden_store
from tests.peers import packages  # noqa: F401  before any topic imports its references

NOT_TOPICS = {"conftest", "files", "packages", "record"}


def topics() -> list[str]:
    files = Path(__file__).parent.glob("*.py")
    return sorted(
        p.stem for p in files if p.stem not in NOT_TOPICS and not p.stem.startswith("test_")
    )


def names() -> list[str]:
    """TOPIC.VARIANT of everything that can be recorded."""
    return [
        f"{topic}.{variant}"
        for topic in topics()
        for variant in importlib.import_module(f"tests.peers.{topic}").VARIANTS
    ]


def make(name: str, seed: int) -> golden_store.Record:
    """The record, not saved."""
    topic, _, variant = name.partition(".")
    return importlib.import_module(f"tests.peers.{topic}").record(variant, seed)


def main(arguments: list[str]) -> int:
    """Exit code: 0, or 2 after one line on what was wrong."""
    known = names()
    if len(arguments) != 1:
        print("usage: python -m tests.peers.record NAME|TOPIC|all", file=sys.stderr)
        return 2
    wanted = [n for n in known if arguments[0] in (n, n.partition(".")[0], "all")]
    if not wanted:
        print(naming.unknown("record", arguments[0], [*topics(), *known]), file=sys.stderr)
        return 2
    for name in wanted:
        record = make(name, seed=0)
        golden_store.save(name, record)
        size = (golden_store.GOLDEN / f"{name}.safetensors").stat().st_size
        print(f"{name}: {len(record.outputs)} arrays, {size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
