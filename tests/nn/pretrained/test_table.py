"""What all tables share: the contract of a format, leaves that are read slice by slice, names."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from launch.run import resolve
from nn import pretrained
from nn.pretrained import llama, resnet
from nn.pretrained.table import Row, Table, dense, flatten, nest, prefix, read, renamed
from tests import golden_store
from tests.parity.decoders import file_of, format_of

RECORDS = ("decoders.gpt2", "decoders.llama", "decoders.mixtral", "resnets.bottleneck")
RNG = np.random.default_rng(0)


class Counted(Mapping[str, np.ndarray]):
    """Tensors that note whose values are asked for; shapes are free."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors, self.asked = tensors, list[str]()

    def __getitem__(self, name: str) -> np.ndarray:
        self.asked.append(name)
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.mark.parametrize("model_type", sorted(pretrained.formats()))
def test_a_format_exports_what_the_contract_says(model_type: str) -> None:
    found = pretrained.find(model_type)
    assert model_type in found.MODEL_TYPES
    assert found.FAMILY in resolve.available("model")
    family = resolve.module("model", found.FAMILY)
    for preset in family.PRESETS.values():
        try:
            raw = found.config_to(preset)
        except ValueError:
            continue
        assert raw["model_type"] == found.MODEL_TYPES[0]
        assert found.config_to(found.config_from(raw)) == raw
        assert list(found.table(preset).sizes()) == list(found.table(preset, None).sizes())
        break
    else:
        pytest.fail(f"no preset of {found.FAMILY} can be written as {model_type}")
    assert inspect.getdoc(found)


def test_unknown_model_types_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown model_type 'lama': .*gpt2.*; nearest: 'llama'"):
        pretrained.find("lama")


@pytest.mark.parametrize("name", RECORDS)
def test_any_slice_of_any_leaf_is_read(name: str) -> None:
    record = golden_store.load(name)
    found, file = format_of(record), file_of(record)
    config = found.config_from(record.about["config"])
    whole = flatten(pretrained.to_ours(found, file, config))
    leaves = found.table(config, file).leaves(file)
    assert leaves.keys() == whole.keys()
    for path, leaf in leaves.items():
        x = whole[path]
        assert leaf.shape == x.shape
        cuts = [sorted(RNG.integers(0, n + 1, 2)) for n in x.shape]
        index = tuple(slice(int(a), max(int(b), int(a) + 1)) for a, b in cuts)
        index = tuple(slice(min(s.start, n - 1), s.stop) for s, n in zip(index, x.shape))  # noqa: B905
        np.testing.assert_array_equal(leaf.read(index), x[index], err_msg=path, strict=True)
        half = leaf.read(index, np.float16)
        np.testing.assert_array_equal(half, x[index].astype(np.float16), strict=True)
        assert half.flags.c_contiguous


def test_a_slice_asks_for_its_own_tensors_only() -> None:
    record = golden_store.load("decoders.mixtral")
    tensors = Counted(file_of(record))
    config = format_of(record).config_from(record.about["config"])
    leaf = format_of(record).table(config).leaves(tensors)["blocks/moe/up_kernel"]
    tensors.asked.clear()
    leaf.read((slice(1, 2), slice(2, 4)))
    experts = "model.layers.1.block_sparse_moe.experts"
    assert tensors.asked == [f"{experts}.2.w3.weight", f"{experts}.3.w3.weight"]


def test_what_is_sliced_off_is_a_view() -> None:
    """So that of a tensor mapped from disk it is never read."""
    (row,) = dense("x", "ours", (6, 3, 2), 1)
    tensor = np.zeros(row.file_shape)
    assert all(np.shares_memory(part, tensor) for part in row.split(tensor))
    fused = Row("x", ("q", "k"), (6, 3, 2), (6, 6))
    tensor = np.zeros(fused.file_shape)
    assert all(np.shares_memory(part, tensor) for part in fused.split(tensor))


def test_rows_of_some_layers_and_of_another_depth() -> None:
    rows = (
        Row("encoder.{}.x", ("encoder/x",), (2,), layers=range(2)),
        Row("decoder.{}.x", ("decoder/x",), (2,)),
        Row("decoder.{}.y", ("decoder/y",), (2,), layers=(1, 2)),
    )
    table = Table(rows, layers=3)
    names = [*(f"encoder.{i}.x" for i in range(2)), *(f"decoder.{i}.x" for i in range(3))]
    names += ["decoder.1.y", "decoder.2.y"]
    file = {name: np.full(2, i) for i, name in enumerate(names)}
    ours = flatten(table.to_ours(file))
    assert {path: x[:, 0].tolist() for path, x in ours.items()} == {
        "encoder/x": [0, 1],
        "decoder/x": [2, 3, 4],
        "decoder/y": [5, 6],
    }
    again = table.from_ours(nest(ours))
    assert list(again) == names
    assert all(np.array_equal(again[name], file[name]) for name in names)


LEGACY = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"^bert\.", ""))


def test_older_names() -> None:
    row = Row("LayerNorm.weight", ("norm/scale",), (3,))
    table = Table((row,), 0, legacy=LEGACY)
    for name in ("LayerNorm.weight", "LayerNorm.gamma", "bert.LayerNorm.gamma"):
        np.testing.assert_array_equal(
            table.to_ours({name: np.ones(3)})["norm"]["scale"], np.ones(3)
        )
    both = ("LayerNorm.gamma", "LayerNorm.weight")
    with pytest.raises(
        ValueError, match="tensors 'LayerNorm.gamma' and 'LayerNorm.weight' are both"
    ):
        renamed(both, LEGACY)
    assert prefix(None, "bert.") == prefix(["bert.x", "y"], "bert.") == "bert."
    assert prefix(["x"], "bert.") == ""


def test_constants_are_written_and_never_read() -> None:
    record = golden_store.load("resnets.bottleneck")
    config = resnet.config_from(record.about["config"])
    table = resnet.table(config)
    counts = {name for name, (_, leaf) in table.sizes().items() if not leaf}
    assert counts == {n for n in table.sizes() if n.endswith(".num_batches_tracked")} != set()
    file = file_of(record) | {name: np.full((), 7) for name in counts}
    saved = pretrained.from_ours(resnet, pretrained.to_ours(resnet, file, config), config)
    assert {int(saved[name]) for name in counts} == {0}


def test_several_model_types_in_one_file() -> None:
    raw = {"model_type": "yi"}
    assert read(raw, llama.DEFAULTS, ("llama", "yi"))["hidden_size"] == 4096
    with pytest.raises(ValueError, match="unknown model_type 'yi': choose from llama, mistral"):
        read(raw, llama.DEFAULTS, ("llama", "mistral"))


def test_leaves_that_do_not_fit_are_named() -> None:
    table = Table((Row("x", ("ours",), (3,)),), 0)
    with pytest.raises(ValueError, match="missing parameter 'ours'; nearest: 'our'"):
        table.check({"our": np.zeros(3)})
    with pytest.raises(ValueError, match=r"'ours' has shape \(4,\); the config makes it \(3,\)"):
        table.check({"ours": np.zeros(4)})
    with pytest.raises(ValueError, match="num_experts=0"):
        wrong = dataclasses.replace(llama.config_from({}), num_experts=0)
        pretrained.find("mixtral").table(wrong)
