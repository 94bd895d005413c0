"""What a reference computed once, kept in git: inputs, outputs, gradients, and their origin.

A record is two files, `tests/golden/peers/NAME.safetensors` and `NAME.json`, of 200 KB at most.
Its name is TOPIC.VARIANT. `tests/peers/TOPIC.py` makes it with the reference, and
`tests/parity/TOPIC.py` computes the same with our code, without the reference installed. Files in a
reference's published format, which our loaders read, go into the folder `tests/golden/peers/NAME`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parent / "golden" / "peers"
LIMIT = 200_000  # bytes of one file

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Record:
    """inputs: what both sides start from; outputs: what the reference made of it;
    about: JSON that says which reference, which version, which options."""

    inputs: Arrays
    outputs: Arrays
    about: Mapping[str, Any]


def names() -> list[str]:
    """The records that are stored."""
    return sorted(path.stem for path in GOLDEN.glob("*.json"))


def folder(name: str) -> Path:
    """Where files in a published format lie."""
    return GOLDEN / name


def save(name: str, record: Record) -> None:
    """Write both files; raises ValueError when one would be larger than the limit."""
    sides = {"in": record.inputs, "out": record.outputs}
    arrays = {
        f"{side}/{key}": np.asarray(x, order="C")
        for side, group in sides.items()
        for key, x in group.items()
    }
    size = sum(x.nbytes for x in arrays.values())
    if size > LIMIT:
        raise ValueError(f"record {name}: {size} bytes of arrays; at most {LIMIT}: make it smaller")
    GOLDEN.mkdir(parents=True, exist_ok=True)
    save_file(arrays, GOLDEN / f"{name}.safetensors")
    text = json.dumps(record.about, indent=1, sort_keys=True) + "\n"
    (GOLDEN / f"{name}.json").write_text(text, encoding="utf-8")


def load(name: str) -> Record:
    """The record of that name; raises FileNotFoundError with the command that makes it."""
    path = GOLDEN / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: record it with `python -m tests.peers.record {name}`")
    arrays = load_file(path)
    sides: dict[str, dict[str, np.ndarray]] = {"in": {}, "out": {}}
    for key, x in arrays.items():
        side, _, rest = key.partition("/")
        sides[side][rest] = x
    about = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return Record(sides["in"], sides["out"], about)


def errors(got: Arrays, expected: Arrays) -> dict[str, float]:
    """Largest difference of each array, relative to its largest element; inf for NaN or a shape.

    Of gradients, "grad/...", to 1 % of the largest of all of them where that is more: the gradient
    of a key bias is zero but for rounding, by the symmetry of the softmax.
    """
    found = {}
    largest = {k: float(np.abs(x).max(initial=0.0)) for k, x in expected.items() if is_gradient(k)}
    floor = 1e-2 * max(largest.values(), default=0.0)
    for key, theirs in expected.items():
        ours = np.asarray(got[key])
        if ours.shape != theirs.shape or not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
            found[key] = float("inf")
            continue
        there = np.isfinite(theirs)
        if not np.array_equal(ours[~there], theirs[~there], equal_nan=True):
            found[key] = float("inf")
            continue
        a, b = ours[there].astype(np.float64), theirs[there].astype(np.float64)
        worst = float(np.abs(a - b).max(initial=0.0))
        scale = max(float(np.abs(b).max(initial=0.0)), floor if is_gradient(key) else 0.0)
        found[key] = worst / scale if scale else worst
    return found


def is_gradient(name: str) -> bool:
    return name.startswith("grad/")


def compare(got: Arrays, expected: Arrays, tolerance: float | Mapping[str, float]) -> None:
    """Fail, naming every array that is further off than allowed, missing, or too many.

    tolerance: of `errors`; or one per array, by the longest matching beginning of its name ("" is
      the rest).
    """
    missing, extra = expected.keys() - got.keys(), got.keys() - expected.keys()
    assert not missing and not extra, f"missing {sorted(missing)}, too many {sorted(extra)}"
    limits = {"": tolerance} if isinstance(tolerance, float) else tolerance

    def limit(key: str) -> float:
        return limits[max((p for p in limits if key.startswith(p)), key=len)]

    wrong = {key: e for key, e in errors(got, expected).items() if not e <= limit(key)}
    lines = [
        f"{key}: error {e:.2e} of its scale, allowed {limit(key):.0e}" for key, e in wrong.items()
    ]
    assert not wrong, "\n".join(lines)


def check(name: str, record: Record, slack: float = 1.0) -> None:
    """Compute with our code what the record holds, and compare.

    slack: factor on the tolerances, for draws that are worse conditioned than what is recorded.
    """
    topic, _, variant = name.partition(".")
    parity = importlib.import_module(f"tests.parity.{topic}")
    limits = parity.tolerance(variant)
    limits = {"": limits} if isinstance(limits, float) else limits
    got = parity.compute(variant, record)
    compare(got, record.outputs, {key: slack * limit for key, limit in limits.items()})
