"""Cases of a test, of which the dear ones that differ little from others are slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def but_slow(cases: Iterable[str], *slow: str) -> list[Any]:
    """For `parametrize`: all cases by name, those of `slow` marked so."""
    found: Collection[str] = list(cases)
    if missing := set(slow) - set(found):
        raise ValueError(f"no cases {sorted(missing)} among {sorted(found)}")
    marked = pytest.mark.slow
    return [pytest.param(name, marks=marked) if name in slow else name for name in found]
