"""Metrics: a line per measurement, no step twice, none lost."""

from __future__ import annotations

import io
import json
import math
import struct
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from launch.run.meter import Meter, memory_bytes
from launch.run.metrics import Progress, Writer, duration, line, read, short


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_has_step_time_split_and_plain_names(tmp_path: Path) -> None:
    writer = Writer(tmp_path, tensorboard=False)
    values = {"loss": jnp.float32(2.5), "accuracy": np.float64(0.25), "skipped": 3}
    writer.write(7, "validation", values)
    (found,) = lines_of(tmp_path)  # without close: a killed run leaves its lines
    assert list(found) == ["step", "time", "split", "loss", "accuracy", "skipped"]
    assert found["time"] > 1.7e9
    assert {**found, "time": 0} == {
        **dict(step=7, time=0, split="validation"),
        **dict(loss=2.5, accuracy=0.25, skipped=3.0),
    }
    writer.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, jnp.float32("nan")])
def test_what_is_not_finite_is_null(tmp_path: Path, value: float) -> None:
    writer = Writer(tmp_path, tensorboard=False)
    writer.write(1, "train", {"loss": value})
    writer.close()
    assert '"loss": null' in (tmp_path / "metrics.jsonl").read_text()
    assert read(tmp_path / "metrics.jsonl")[0]["loss"] is None


def test_bad_split_and_reserved_names(tmp_path: Path) -> None:
    writer = Writer(tmp_path, tensorboard=False)
    with pytest.raises(ValueError, match="split 'valid': choose from train, validation, test"):
        writer.write(1, "valid", {})
    with pytest.raises(ValueError, match="a metric cannot be called 'time'"):
        writer.write(1, "train", {"time": 1.0})
    writer.close()


def test_going_on_leaves_no_step_twice(tmp_path: Path) -> None:
    first = Writer(tmp_path, tensorboard=False)
    for step in (1, 2, 3, 4):
        first.write(step, "train", {"loss": step})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "time": 1.0, "spl')  # cut short by a kill
    second = Writer(tmp_path, tensorboard=False)
    second.truncate(2)
    for step in (3, 4, 5):
        second.write(step, "train", {"loss": 10 * step})
    second.close()
    found = [(entry["step"], entry["loss"]) for entry in lines_of(tmp_path)]
    assert found == [(1, 1), (2, 2), (3, 30), (4, 40), (5, 50)]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_torn_line_never_joins_the_next(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    writer = Writer(tmp_path, tensorboard=False)
    writer.write(2, "train", {"loss": 1.0})
    writer.close()
    assert [entry["step"] for entry in lines_of(tmp_path)] == [1, 2]


def test_only_process_0_writes(tmp_path: Path) -> None:
    writer = Writer(tmp_path, tensorboard=True, process_index=1)
    writer.write(1, "train", {"loss": 1.0})
    writer.truncate(0)
    writer.close()
    assert not list(tmp_path.iterdir())


def records(directory: Path) -> list[bytes]:
    """The records of all TFRecord files of a directory, in the order of their names."""
    found = []
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(data[12 : 12 + length])
            data = data[16 + length :]
    return found


def test_tensorboard_events_without_tensorflow(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    for start in (1, 3):
        writer = Writer(tmp_path)
        writer.truncate(start - 1)
        for step in range(start, 4):
            writer.write(step, "train", {"loss": step + start / 10})
        writer.close()
    events = [Event.FromString(record) for record in records(tmp_path / "events")]
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert [(step, tag) for step, tag, _ in scalars] == [(s, "train/loss") for s in (1, 2, 3, 3)]
    np.testing.assert_allclose([value for _, _, value in scalars], [1.1, 2.1, 3.1, 3.3], rtol=1e-6)
    purges = [e.step for e in events if e.session_log.status == SessionLog.START]
    assert purges == [1, 3]
    assert "tensorflow" not in sys.modules


def test_wandb_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"metrics\.wandb=true needs the package wandb"):
        Writer(tmp_path, tensorboard=False, wandb="tessera")


def test_wandb_gets_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list = []

    class Run:
        def log(self, values: dict, step: int) -> None:
            calls.append((step, values))

        def finish(self) -> None:
            calls.append("finish")

    class Module:
        @staticmethod
        def init(**options: object) -> Run:
            calls.append((options["project"], options["id"], options["config"]))
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Module)
    run = tmp_path / "my_run"
    run.mkdir()
    writer = Writer(run, tensorboard=False, wandb="tessera", config={"seed": 1})
    writer.write(3, "test", {"loss": 0.5})
    writer.close()
    assert calls == [("tessera", "my_run", {"seed": 1}), (3, {"test/loss": 0.5}), "finish"]


VALUES = dict(
    loss=2.34567,
    learning_rate=1e-3,
    tokens_per_second=12345.0,
    step_time=0.081,
    mfu=0.412,
    memory_bytes=3 * 2**29,
)


def test_the_line() -> None:
    assert line(120, 1000, VALUES) == (
        "step 120/1000  loss 2.3457  lr 1.00e-03  12.3k tokens/s  81 ms/step  mfu 41.2%  "
        "mem 1.50 GiB  eta 1:11"
    )
    assert line(1, 9, {"loss": math.nan}) == "step 1/9  loss nan"
    assert line(9, 9, {"step_time": 1.0}) == "step 9/9  1e+03 ms/step"
    assert [short(x) for x in (0.5, 999, 1234567, 2e9, 3e15)] == [
        *("0.5", "999", "1.23M", "2G", "3e+03T")
    ]
    assert [duration(x) for x in (42, 4000)] == ["0:42", "1:06:40"]


def test_a_pipe_gets_a_line_now_and_then() -> None:
    stream = io.StringIO()
    progress = Progress(total=10, every=4, stream=stream)
    for step in range(1, 11):
        progress.update(step, {})
    progress.say("done")
    progress.close()
    assert stream.getvalue().splitlines() == [*(f"step {n}/10" for n in (1, 5, 9, 10)), "done"]


def test_a_terminal_gets_one_line_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    progress = Progress(total=3, stream=stream)
    progress.update(1, VALUES)
    progress.update(2, {})
    progress.say("validation loss 1.0")
    progress.update(3, {})
    progress.close()
    progress.close()
    shown = stream.getvalue()
    assert shown.count("\n") == 3 and shown.count("\r\x1b[K") == 3
    assert max(len(part) for part in shown.replace("\r\x1b[K", "\n").split("\n")) <= 39
    assert shown.endswith("\nvalidation loss 1.0\n\r\x1b[Kstep 3/3\n")


def test_quiet_says_nothing() -> None:
    stream = Terminal()
    progress = Progress(total=3, stream=stream, quiet=True)
    progress.update(1, {})
    progress.say("x")
    assert stream.getvalue() == ""


def test_meter_counts_steps_and_not_what_is_apart() -> None:
    now = [0.0]
    meter = Meter(examples=8, tokens=800, flops=1e9, peak=1e11, clock=lambda: now[0])
    assert meter.measure(1) == {}  # the first step compiles
    now[0] = 1.0
    with meter.apart():
        now[0] = 6.0
    now[0] = 7.0
    found = meter.measure(5)
    assert found.pop("memory_bytes") > 1e6
    assert found == {
        "step_time": 0.5,
        "examples_per_second": 16,
        "tokens_per_second": 1600,
        "mfu": 1e9 / 0.5 / 1e11,
    }
    assert meter.measure(5) == {}


def test_no_mfu_where_the_peak_is_unknown() -> None:
    now = [0.0]
    meter = Meter(examples=8, flops=1e9, peak=None, clock=lambda: now[0])
    meter.start(0)
    now[0] = 1.0
    assert set(meter.measure(1)) == {"step_time", "examples_per_second", "memory_bytes"}
    assert memory_bytes() > 1e7
