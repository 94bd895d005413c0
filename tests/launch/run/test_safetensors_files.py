"""Directories of safetensors: written, read in place, and refused with one clear line."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from launch.run import safetensors_files as files
from launch.run.safetensors_files import INDEX, SINGLE, Tensors
from tests.launch import published

TENSORS: dict[str, np.ndarray] = {
    "half": np.arange(15).reshape(3, 5).astype(jnp.bfloat16),  # an odd number of bytes / 4
    "single": np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4),
    "empty": np.zeros((0, 3), np.float32),
    "count": np.asarray(7, np.int64),
    "flags": np.asarray([True, False, True]),
    "eight": np.arange(4).astype(jnp.float8_e4m3fn),
}


def write(target: Path, tensors: Any = TENSORS, shard_size: int = 10**9) -> list[str]:
    sizes = {name: (x.shape, x.dtype) for name, x in TENSORS.items()}
    items = tensors.items() if isinstance(tensors, dict) else tensors
    return files.write(target, {"model_type": "x"}, sizes, items, shard_size)


@pytest.mark.parametrize("shard_size", [10**9, 40, 1])
def test_what_is_written_is_read(tmp_path: Path, shard_size: int) -> None:
    names = write(tmp_path / "new" / "here", shard_size=shard_size)
    assert published.same_bytes(Tensors(tmp_path / "new" / "here"), TENSORS)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["here"]
    assert stat.S_IMODE((tmp_path / "new" / "here").stat().st_mode) & 0o500 == 0o500
    expected = {10**9: 1, 40: 3, 1: 6}[shard_size]
    assert len(names) == expected
    assert (tmp_path / "new" / "here" / INDEX).exists() == (expected > 1)
    if expected > 1:
        index = json.loads((tmp_path / "new" / "here" / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in TENSORS.values())
        assert index["weight_map"].keys() == TENSORS.keys()
        assert names[0] == f"model-00001-of-{expected:05}.safetensors"


def test_the_package_reads_what_we_write_and_the_reverse(tmp_path: Path) -> None:
    write(tmp_path / "ours")
    with safe_open(tmp_path / "ours" / SINGLE, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        for name in ("half", "single", "count", "flags", "empty"):
            np.testing.assert_array_equal(file.get_tensor(name), TENSORS[name], strict=True)
    (tmp_path / "theirs").mkdir()
    plain = {n: x for n, x in TENSORS.items() if n != "eight"}
    save_file(plain, tmp_path / "theirs" / SINGLE)
    assert published.same_bytes(Tensors(tmp_path / "theirs"), plain)


def test_wide_elements_are_aligned(tmp_path: Path) -> None:
    write(tmp_path / "x")
    for place in Tensors(tmp_path / "x").places.values():
        assert place.offset % place.dtype.itemsize == 0


def test_a_tensor_is_mapped_and_not_copied(tmp_path: Path) -> None:
    write(tmp_path / "x")
    tensors = Tensors(tmp_path / "x")
    assert isinstance(tensors["single"].base, np.memmap)
    assert not tensors["single"].flags.writeable


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Any:
        yield "half", TENSORS["half"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new", failing())
    wrong = TENSORS | {"single": np.zeros((2, 4), np.float64)}
    with pytest.raises(ValueError, match="tensor 'single', float32.*: got 'single', float64"):
        write(tmp_path / "new", wrong)
    assert list(tmp_path.iterdir()) == []


def test_only_empty_places_are_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    with pytest.raises(FileExistsError, match="is not empty: name a directory that is not there"):
        write(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file; name a directory"):
        write(tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("10k", 10_000), ("77", 77)]
)
def test_sizes(text: str, size: int) -> None:
    assert files.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "0", "-1GB", "5GiB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="--shard-size=.*: must be bytes.*nearest: 5GB"):
        files.parse_size(text)


def test_no_directory_and_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such directory"):
        Tensors(tmp_path / "nowhere")
    (tmp_path / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"neither model.* \(it holds adapter.safetensors\)"
    ):
        Tensors(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt"])
def test_pickles_are_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    (tmp_path / name).chmod(0)
    with pytest.raises(ValueError, match=f"holds {name} and no safetensors: a pickle can run any"):
        Tensors(tmp_path)


@pytest.mark.parametrize("keep", [-1, 100, 9, 0])
def test_files_cut_short(tmp_path: Path, keep: int) -> None:
    write(tmp_path / "x")
    path = tmp_path / "x" / SINGLE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or cut short: .*; nearest"):
        Tensors(tmp_path / "x")


def change_index(directory: Path, **changes: Any) -> None:
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"] |= changes
    (directory / INDEX).write_text(json.dumps(index))


def test_indices_that_lie(tmp_path: Path) -> None:
    directory = tmp_path / "x"
    names = write(directory, shard_size=40)
    change_index(directory, other=names[0])
    with pytest.raises(ValueError, match="tensor 'other' is not in model-00001-of-00003"):
        Tensors(directory)
    change_index(directory, other="../x/model.safetensors")
    with pytest.raises(ValueError, match="'../x/model.safetensors' is no name of a file beside it"):
        Tensors(directory)
    (directory / names[1]).unlink()
    change_index(directory, other=names[0])
    with pytest.raises(
        FileNotFoundError, match="model-00002-of-00003.safetensors is missing, which"
    ):
        Tensors(directory)
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ("{}", "has no weight_map"),
    ):
        (directory / INDEX).write_text(text)
        with pytest.raises(ValueError, match=message):
            Tensors(directory)


def test_dtypes_that_numpy_does_not_have(tmp_path: Path) -> None:
    write(tmp_path / "x")
    path = tmp_path / "x" / SINGLE
    path.write_bytes(path.read_bytes().replace(b'"F8_E4M3"', b'"F8_E8M0"'))
    with pytest.raises(ValueError, match="'eight' is of dtype F8_E8M0, .* choose from F64, F32"):
        Tensors(tmp_path / "x")
