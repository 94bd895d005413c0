"""Reading ahead: in order, with an end to every wait, and nothing left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from launch.data.prefetch import read_ahead


def readers() -> int:
    return sum(thread.name.startswith("read-ahead") for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_results_come_in_order(depth: int) -> None:
    def slow_first(key: int) -> int:
        time.sleep(0.02 if key % 4 == 0 else 0)
        return key * key

    assert list(read_ahead(slow_first, range(20), depth, 5, "item")) == [i * i for i in range(20)]
    assert readers() == 0


def test_it_reads_depth_ahead_and_no_more() -> None:
    started = []
    results = read_ahead(lambda key: started.append(key), range(100), 3, 5, "item")
    next(results)
    time.sleep(0.1)
    assert sorted(started) == [0, 1, 2, 3]
    results.close()


def test_reads_overlap_with_the_consumer() -> None:
    def read(key: int) -> int:
        time.sleep(0.05)
        return key

    begin = time.monotonic()
    for _ in read_ahead(read, range(8), 4, 5, "item"):
        time.sleep(0.01)
    assert time.monotonic() - begin < 0.3  # one after the other: 0.48 s


def test_an_error_comes_in_the_place_of_its_result() -> None:
    def read(key: int) -> int:
        if key == 3:
            raise RuntimeError("record 3")
        return key

    results = read_ahead(read, range(10), 2, 5, "item")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="record 3"):
        next(results)
    assert readers() == 0


def _close(results: object) -> None:
    results.close()  # type: ignore[attr-defined]


def _drop(results: object) -> None:
    del results
    gc.collect()


@pytest.mark.parametrize("stop", [_close, _drop])
def test_threads_end_when_the_iterator_is_closed_or_dropped(stop: Callable[..., None]) -> None:
    results = [read_ahead(lambda key: key, range(10**9), 3, 5, "item")]
    next(results[0])
    assert readers() == 3
    stop(results.pop())
    assert readers() == 0


def test_a_read_that_hangs_is_an_error_that_names_it() -> None:
    release = threading.Event()

    def read(key: int) -> int:
        if key == 2:
            release.wait(20)
        return key

    results = read_ahead(read, range(10), 2, 0.2, "data set d: the batch of step")
    assert [next(results), next(results)] == [0, 1]
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"data set d: the batch of step 2 .* 0\.2 s"):
        next(results)
    assert time.monotonic() - begin < 2
    release.set()


def test_a_read_that_hangs_does_not_hold_up_the_exit() -> None:
    program = (
        "import threading\n"
        "from launch.data.prefetch import read_ahead\n"
        "next(read_ahead(lambda key: threading.Event().wait(), range(3), 2, 0.2, 'batch'))\n"
    )
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert "TimeoutError: batch 0 did not arrive within 0.2 s" in done.stderr
    assert time.monotonic() - begin < 10
