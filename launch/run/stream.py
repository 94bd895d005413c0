"""Completions on the terminal while they are made."""

from __future__ import annotations

from collections.abc import Sequence

from launch.run.text import Stream, Tokenizer

RULE = "-" * 40  # after each completion


class Printer:
    """Prints rows one after another: the first that is not done as it grows.

    Those after it are made at the same time; what there is of one is printed when its turn comes.
    """

    def __init__(
        self, prompts: Sequence[str], tokens: Sequence[Sequence[int]], tokenizer: Tokenizer
    ):
        self._prompts = list(prompts)
        self._streams = [Stream(tokenizer, row) for row in tokens]
        self._row = 0
        print(self._prompts[0], end="", flush=True)

    def __call__(self, rows: list[list[int]], done: list[bool]) -> None:
        """rows: the new tokens of each so far; done: which of them are whole."""
        while self._row < len(rows):
            last = done[self._row]
            print(self._streams[self._row].push(rows[self._row], last), end="", flush=True)
            if not last:
                return
            self._row += 1
            print(f"\n{RULE}")
            if self._row < len(rows):
                print(self._prompts[self._row], end="", flush=True)
