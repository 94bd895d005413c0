"""Look a name up in a table, and say what was meant when it is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option most like `name`, or None when nothing resembles it."""
    matches = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(kind: str, name: str, options: Iterable[str]) -> ValueError:
    """The error for a `name` not among `options`: names the value, the list and the nearest."""
    options = sorted(options)
    guess = nearest(name, options)
    hint = f"; nearest: {guess!r}" if guess else ""
    return ValueError(f"unknown {kind} {name!r}: choose from {', '.join(options)}{hint}")


def lookup(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """`options[name]`; raises ValueError (see `unknown`) when the name is not there."""
    if name not in options:
        raise unknown(kind, name, options)
    return options[name]


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of a number that is nearest to the one that was wanted."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), d))
