"""What a diagnostic has to say: a sentence that explains, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """`red`: do not use the number; `amber`: know this when using it. `code` is stable."""

    code: str
    severity: Literal["red", "amber"]
    message: str
