"""A queue of fake runs as a process of its own, to be killed: `fake_queue.py DIR CELLS SLOTS`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launch.sweeping import cells, executor
from launch.sweeping.store import Store

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def run(directory: Path, numbers: list[int], slots: int = 1, **options: object) -> int:
    """Run the cells with these seeds."""
    values = [{"seed": number} for number in numbers]
    made = cells.resolve_cells("digits_mlp", [], values)
    store = Store(directory)
    store.add(made)
    how = executor.Options([dict(os.environ)] * slots, WORKER, **options)  # type: ignore[arg-type]
    return executor.Queue(store, made, how).run()


if __name__ == "__main__":
    raise SystemExit(run(Path(sys.argv[1]), list(range(int(sys.argv[2]))), int(sys.argv[3])))
