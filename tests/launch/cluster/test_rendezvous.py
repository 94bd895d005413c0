"""Processes that meet, or say who is missing."""

from __future__ import annotations

import concurrent.futures
import socket
import threading
import time

import pytest

from launch.cluster.rendezvous import meet


@pytest.fixture
def place() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def all_meet(place: str, counts: dict[int, int], timeout: float = 20) -> dict[int, str]:
    """What each process index is told, "" for a meeting."""

    def one(index: int) -> str:
        try:
            meet(place, counts[index], index, timeout)
        except ValueError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(counts)) as pool:
        return dict(zip(counts, pool.map(one, counts), strict=True))


def test_all_come_in_any_order(place: str) -> None:
    assert all_meet(place, {3: 4, 0: 4, 2: 4, 1: 4}) == dict.fromkeys((3, 0, 2, 1), "")
    host, _, port = place.rpartition(":")
    socket.create_server((host, int(port))).close()  # free for JAX at once


def test_a_late_coordinator_is_waited_for(place: str) -> None:
    told: list[str] = []

    def come() -> None:
        meet(place, 2, 1, 20)
        told.append("go")

    thread = threading.Thread(target=come)
    thread.start()
    time.sleep(0.5)
    meet(place, 2, 0, 20)
    thread.join()
    assert told == ["go"]


def test_who_is_missing_is_named_to_all(place: str) -> None:
    told = all_meet(place, {0: 4, 2: 4}, timeout=1)
    text = f"process 1, 3 of 4 did not come to {place} within 1 s; start all of them"
    assert all(answer.startswith(text) for answer in told.values())


def test_no_coordinator(place: str) -> None:
    with pytest.raises(ValueError, match=r"process 1 found no process 0 at .* within 0\.5 s"):
        meet(place, 2, 1, 0.5)


def test_what_does_not_fit_is_told_to_all(place: str) -> None:
    told = all_meet(place, {0: 2, 1: 3})
    assert set(told.values()) == {"process 1 was told of 3 processes and process 0 of 2"}


def test_strangers_are_sent_away(place: str) -> None:
    host, _, port = place.rpartition(":")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, place, 2, 0, 20)
        for line in (b"GET / HTTP/1.1\r\n\r\n", b"tessera x y\n", b"other 1 2\n"):
            connection = None
            while connection is None:
                try:
                    connection = socket.create_connection((host, int(port)))
                except OSError:
                    time.sleep(0.05)
            with connection:
                connection.sendall(line)
                assert connection.recv(10) in (b"",)
        second = pool.submit(meet, place, 2, 1, 20)
        assert first.result() is None and second.result() is None


def test_a_port_in_use(place: str) -> None:
    port = int(place.rpartition(":")[2])
    with (
        socket.create_server(("", port), family=socket.AF_INET),
        pytest.raises(ValueError, match="process 0 cannot listen there .*choose another port"),
    ):
        meet(place, 2, 0, 1)
