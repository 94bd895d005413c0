"""Read ahead with threads, in order, and never wait for ever."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
_GRACE = 5.0  # seconds that closing waits for reads that are under way


def read_ahead(
    read: Callable[[int], T], keys: Iterable[int], depth: int, timeout: float, what: str
) -> Generator[T, None, None]:
    """Yield `read(key)` for each key, in order, with `depth` reads under way, a thread each.

    The threads are daemons and end when the iterator is exhausted, closed or dropped, so a read
    that hangs can hold up neither the loop nor the exit of the program. An error in `read` is
    raised where its result would have come. `depth` 0 reads in the caller's thread.

    Raises TimeoutError, naming `what` and the key, when a result takes over `timeout` seconds.
    """
    if depth <= 0:
        yield from map(read, keys)
        return
    tasks: queue.SimpleQueue[tuple[int, concurrent.futures.Future[T]] | None] = queue.SimpleQueue()
    threads = [
        threading.Thread(target=_work, args=(read, tasks), daemon=True, name=f"read-ahead-{i}")
        for i in range(depth)
    ]
    for thread in threads:
        thread.start()
    waiting: collections.deque[tuple[int, concurrent.futures.Future[T]]] = collections.deque()
    rest = iter(keys)

    def submit(count: int) -> None:
        for key in itertools.islice(rest, count):
            waiting.append((key, concurrent.futures.Future()))
            tasks.put(waiting[-1])

    grace = _GRACE
    try:
        submit(depth)
        while waiting:
            key, future = waiting.popleft()
            done, _ = concurrent.futures.wait([future], timeout)
            if not done:
                grace = 0.0
                raise TimeoutError(f"{what} {key} did not arrive within {timeout:g} s")
            submit(1)  # before the consumer goes to work, so that reading goes on meanwhile
            yield future.result()
    finally:
        for _, future in waiting:
            future.cancel()
        for _ in threads:
            tasks.put(None)
        deadline = time.monotonic() + grace
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _work(
    read: Callable[[int], T],
    tasks: queue.SimpleQueue[tuple[int, concurrent.futures.Future[T]] | None],
) -> None:
    """Serve `tasks` until None comes."""
    while (task := tasks.get()) is not None:
        key, future = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(read(key))
        except BaseException as error:  # handed to the consumer, who raises it
            future.set_exception(error)
        del task, future
