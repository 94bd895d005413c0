"""Faults on purpose, for tests: what the environment variable FAULT asks for, nothing by default.

The variable, and the two calls of the loop:

    FAULT="kill@17"            SIGKILL at the start of step 17
    FAULT="sigterm@8,nan@5-6"  several, and ranges of steps
    FAULT="hang@3"             step 3 never starts

    faults = Faults.from_environment()
    for step in ...:
        faults.at(step)
        batch = faults.poison(step, batch)
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

VARIABLE = "FAULT"
KINDS = ("kill", "sigterm", "hang", "nan")
_SPEC = re.compile(r"([a-z]+)@(\d+)(?:-(\d+))?")


class Faults:
    """The faults of a spec such as "kill@17,nan@5-6".

    Raises ValueError for a fault that is not known.
    """

    def __init__(self, spec: str = "") -> None:
        self._steps: dict[str, list[range]] = {kind: [] for kind in KINDS}
        for part in filter(None, (part.strip() for part in spec.split(","))):
            match = _SPEC.fullmatch(part)
            if not match or match[1] not in KINDS:
                raise ValueError(
                    f"{VARIABLE}={part!r}: must be KIND@STEP or KIND@FIRST-LAST with a kind of "
                    f"{', '.join(KINDS)}; nearest: 'kill@1'"
                )
            first, last = int(match[2]), int(match[3] or match[2])
            self._steps[match[1]].append(range(first, last + 1))

    @classmethod
    def from_environment(cls) -> Faults:
        return cls(os.environ.get(VARIABLE, ""))

    def at(self, step: int) -> None:
        """What is to happen at the start of `step`."""
        if self._due("sigterm", step):
            os.kill(os.getpid(), signal.SIGTERM)
        if self._due("kill", step):
            os.kill(os.getpid(), signal.SIGKILL)
        while self._due("hang", step):
            time.sleep(1)

    def poison(self, step: int, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch with NaN in every float array at a "nan" step: loss and gradient are NaN."""
        if not self._due("nan", step):
            return batch
        return {
            name: np.full_like(x, np.nan) if np.issubdtype(x.dtype, np.floating) else x
            for name, x in batch.items()
        }

    def _due(self, kind: str, step: int) -> bool:
        return any(step in steps for steps in self._steps[kind])
