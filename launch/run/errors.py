"""Exit codes, and the guard that turns bad input into one clear line."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

DONE = 0
BAD_INPUT = 2  # never retry
NON_FINITE = 3  # the loss stayed non-finite; never retry blindly
PREEMPTED = 75  # the state was saved: retry for free
LOST_PEER = 134

# What bad input can raise before the first compilation; anything else is a bug and keeps its trace.
USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, FileExistsError)


@contextlib.contextmanager
def guard_input() -> Iterator[None]:
    """Print an error of `USER_ERRORS` as one line, exit 2; TESSERA_TRACEBACK=1 adds its stack."""
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("TESSERA_TRACEBACK"):
            traceback.print_exc()
        line = " ".join(str(error).split())
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
