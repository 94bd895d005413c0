"""All processes meet before JAX joins them, so that one that does not come is an error.

JAX itself ends the process with SIGABRT when it waits in vain. The protocol, on the port that JAX
uses next: each process sends `tessera INDEX COUNT` to process 0, which answers `go` to all once
all have come, or with a line that says what is wrong.
"""

from __future__ import annotations

import socket
import time

_GREETING = "tessera"
_MAX_LINE = 300  # bytes
_PATIENCE = 5.0  # seconds for a line from one who has connected


def meet(coordinator: str, count: int, index: int, timeout: float) -> None:
    """Return when `count` processes have come to `coordinator`, HOST:PORT.

    Raises ValueError, naming who is missing or what does not fit, after `timeout` seconds.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    if index == 0:
        _wait_for_all(coordinator, int(port), count, timeout, deadline)
    else:
        _report_to(coordinator, (host.strip("[]"), int(port)), count, index, timeout, deadline)


def _wait_for_all(coordinator: str, port: int, count: int, timeout: float, deadline: float) -> None:
    came: dict[int, socket.socket] = {}
    try:
        with _server(coordinator, port) as server:
            while len(came) < count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    missing = ", ".join(str(i) for i in range(1, count) if i not in came)
                    problem = (
                        f"process {missing} of {count} did not come to {coordinator} within "
                        f"{timeout:g} s; start all of them, or pass --num_processes=1"
                    )
                    break
                problem = _check_in(connection, count, came)
                if problem:
                    break
            else:
                problem = ""
        _answer_all(came, problem or "go")
        if problem:
            raise ValueError(problem)
    finally:
        for connection in came.values():
            connection.close()


def _server(coordinator: str, port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise ValueError(
            f"--coordinator={coordinator}: process 0 cannot listen there ({error.strerror}); "
            "choose another port"
        ) from error


def _check_in(connection: socket.socket, count: int, came: dict[int, socket.socket]) -> str:
    """Note who has come; returns what is wrong, "" if nothing. Strangers are sent away."""
    words = _read_line(connection).split()
    if len(words) != 3 or words[0] != _GREETING or not (words[1] + words[2]).isdecimal():
        connection.close()
        return ""
    index, theirs = int(words[1]), int(words[2])
    problem = ""
    if theirs != count:
        problem = f"process {index} was told of {theirs} processes and process 0 of {count}"
    elif index in came or not 0 < index < count:
        problem = f"two processes were told to be process {index}"
    came[index if not problem else -1] = connection
    return problem


def _answer_all(came: dict[int, socket.socket], line: str) -> None:
    for connection in came.values():
        try:
            connection.sendall(f"{line}\n".encode())
            connection.shutdown(socket.SHUT_WR)
            _read_line(connection)  # until it has closed, so that the port is free at once
        except OSError:
            continue  # JAX will notice who is gone


def _report_to(
    coordinator: str,
    place: tuple[str, int],
    count: int,
    index: int,
    timeout: float,
    deadline: float,
) -> None:
    refused = "it did not answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(place, timeout=left) as connection:
                connection.sendall(f"{_GREETING} {index} {count}\n".encode())
                answer = _read_line(connection, max(deadline + _PATIENCE - time.monotonic(), 1))
            if answer == "go":
                return
            if answer:
                raise ValueError(answer)
        except OSError as error:
            refused = error.strerror or str(error)
        time.sleep(min(0.2, left))
    raise ValueError(
        f"process {index} found no process 0 at {coordinator} within {timeout:g} s ({refused}); "
        "start it, or correct --coordinator"
    )


def _read_line(connection: socket.socket, patience: float = _PATIENCE) -> str:
    """The first line that comes; "" when none does."""
    deadline, data = time.monotonic() + patience, b""
    try:
        while b"\n" not in data and len(data) < _MAX_LINE:
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            more = connection.recv(_MAX_LINE)
            if not more:
                break
            data += more
    except OSError:
        return ""
    return data.split(b"\n")[0].decode(errors="replace").strip()
