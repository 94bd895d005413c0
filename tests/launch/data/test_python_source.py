"""The library's own text: exactly its bytes, split by file."""

from __future__ import annotations

import itertools
import os
import platform
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from launch.data import python_source
from launch.data.loader import Loader
from launch.data.python_source import Config, library_files, split_of
from launch.data.source import SPLITS


def test_the_splits_are_the_files_byte_for_byte(directory: Path) -> None:
    root = Path(sysconfig.get_path("stdlib"))
    files = dict(library_files(root, tests=False))
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py"} <= files.keys()
    assert not {"site-packages", "test", "lib2to3"} & {name.split("/")[0] for name in files}
    assert list(files) == sorted(files)
    sizes = {}
    for split in SPLITS:
        stream = python_source.stream(Config(), split, directory)
        texts = [text for name, text in files.items() if split_of(name) == split and text]
        assert stream.tokens.tobytes() == b"".join(texts)
        assert len(stream.starts) == len(texts)
        sizes[split] = len(stream.tokens)
    whole = sum(sizes.values())
    assert 5e6 < whole < 15e6
    assert 0.8 < sizes["train"] / whole < 0.95
    assert min(sizes.values()) > 0.03 * whole


def test_the_version_names_the_python(directory: Path) -> None:
    source = python_source.open_source(
        Config(), split="test", sequence_length=64, directory=directory
    )
    assert source.spec.version.endswith(f"+python{platform.python_version()}")
    assert source.spec.num_outputs == 256
    assert source.fingerprint()["content"] == source.stream.digest


@pytest.mark.parametrize("batches", [None, 3])
def test_the_bigram_baseline_is_of_the_very_targets_of_an_epoch(
    directory: Path, batches: int | None
) -> None:
    source = python_source.open_source(
        Config(), split="validation", sequence_length=500, directory=directory
    )
    counts = np.zeros((256, 256))
    stream = python_source.stream(Config(), "train", directory)
    inside = stream.continues()
    np.add.at(counts, (stream.tokens[:-1][inside], stream.tokens[1:][inside]), 1)
    bits = -np.log2((counts + 1) / (counts + 1).sum(1, keepdims=True))
    total = asked = 0.0
    for batch in itertools.islice(Loader(source, 64, 0, False).epoch(), batches):
        total += (bits[batch["inputs"], batch["targets"]] * batch["mask"]).sum()
        asked += batch["mask"].sum()
    targets = None if batches is None else batches * 64 * 500
    measured = python_source.bigram_bits_per_byte("validation", None, directory, targets)
    assert measured == pytest.approx(total / asked, rel=1e-9)
    assert 2.5 < measured < 4.5


def test_files_are_chosen_by_name_and_unreadable_ones_left_out(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a/y.txt", "test/t.py", "a/idle_test/u.py", "lib2to3/l.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() + b"\xff")
    os.symlink(tmp_path / "nowhere", tmp_path / "broken.py")
    (tmp_path / "_sysconfigdata_x.py").write_text("paths")
    plain = dict(library_files(tmp_path, tests=False))
    assert list(plain) == ["a/z.py", "b.py"]
    assert plain["b.py"] == b"b.py\xff"
    assert list(dict(library_files(tmp_path, tests=True))) == [
        "a/idle_test/u.py",
        "a/z.py",
        "b.py",
        "test/t.py",
    ]


def test_bytes_that_are_no_text_survive_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    content = bytes(range(256)) * 3
    for number in range(40):
        (library / f"m{number}.py").write_bytes(content)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library))
    for split in SPLITS:
        stream = python_source.stream(Config(), split, tmp_path / "data")
        assert stream.tokens.tobytes() == content * len(stream.starts)
        assert len(stream.starts)
