"""Every data set, by discovery: what it gives is what its specification says."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import datasets

from launch.data.loader import Loader
from launch.data.source import SPLITS, Source, available, open_split

KEYS = {
    "classify": {"inputs", "labels"},
    "contrast": {"inputs", "tokens", "labels", "choices"},
    "regress": {"inputs", "targets"},
    "next_token": {"inputs", "targets", "segments", "positions", "mask"},
    "sequence_to_sequence": {"inputs", "decoder_inputs", "targets", "mask"},
}
LENGTHS = {"tones": 4}  # positions, where what a data set holds says how many
# What only some data sets of a task have.
OPTIONAL = {"input_segments", "segments", "positions"}
TABLES = {"iris": 3, "wine": 3, "breast_cancer": 2, "diabetes": 0, "digits": 10}
SYNTHETIC = ("random_tokens", "copy", "reverse", "teacher", "random_images")
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in (*TABLES, "python_source")),
    *(("synthetic", {"task": task, "examples": 50}) for task in SYNTHETIC),
    ("digits", {"flatten": True}),
    ("digits", {"image_size": 16, "scaling": "standard", "pad": 1, "cutout": 3, "mixup": 0.2}),
    ("digits", {"flatten": True, "pad": 2}),
    ("digit_words", {"scaling": "standard"}),
    ("python_source", {}),
    ("reversal", {"shortest": 4, "examples": 64}),
    ("tones", {"words": 1, "examples": 64}),
]


def test_every_data_set_is_here() -> None:
    assert {name for name, _ in CASES} | {"tfds"} == set(available())


@pytest.mark.parametrize("name", available())
def test_the_docstring_says_what_it_is(name: str) -> None:
    module = importlib.import_module(f"launch.data.{name}")
    for word in ("size", "split", "source", "licence"):
        assert word in (module.__doc__ or "").lower(), word
    allowed = ("int", "float", "bool", "str", "tuple[int, ...]", "tuple[str, ...]")
    for field in dataclasses.fields(module.Config):
        assert str(field.type).removesuffix(" | None") in allowed
        assert field.default is not dataclasses.MISSING


def opened(name: str, options: dict[str, Any], split: str, directory: Path) -> Source:
    return open_split(name, options, split, LENGTHS[name] if name in LENGTHS else 32, directory)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_examples_are_as_specified(name: str, options: dict[str, Any], directory: Path) -> None:
    sources = {split: opened(name, options, split, directory) for split in SPLITS}
    for split, source in sources.items():
        spec = source.spec
        assert spec.name == name
        assert source.split == split
        loader = Loader(source, 8, 0, True)
        for batch in (loader.batch(0), next(loader.epoch())):
            assert KEYS[spec.task] | {"mask"} <= batch.keys()
            assert batch["inputs"].shape == (8, *spec.input_shape)
            check_values(spec.task, spec.num_outputs, batch)
        example = source[len(source) - 1]
        assert set(example) - OPTIONAL == KEYS[spec.task] - OPTIONAL
        again = opened(name, options, split, directory)
        for key, array in again[len(source) - 1].items():
            np.testing.assert_array_equal(array, example[key])
        fingerprint = source.fingerprint()
        assert json.loads(json.dumps(fingerprint)) == fingerprint
        assert fingerprint["options"] == dataclasses.asdict(source.options)
        with pytest.raises(IndexError):
            source[len(source)]
    assert sources["train"].spec == sources["test"].spec
    assert len({source[0]["inputs"].tobytes() for source in sources.values()}) == 3


def check_values(task: str, outputs: int, batch: dict[str, np.ndarray]) -> None:
    assert batch["mask"].dtype == np.float32
    tokens = task in ("next_token", "sequence_to_sequence")
    assert batch["mask"].shape == (batch["targets"].shape if tokens else (8,))
    for key in ("labels", "segments", "positions"):
        assert key not in batch or batch[key].dtype == np.int32
    if tokens:
        given = "inputs" if task == "next_token" else "decoder_inputs"
        for key in (given, "targets"):
            assert batch[key].dtype == np.int32
            assert 0 <= batch[key].min() <= batch[key].max() < outputs
        return
    assert batch["inputs"].dtype == np.float32
    assert np.isfinite(batch["inputs"]).all()
    if task == "regress":
        assert batch["targets"].shape == (8, outputs)
        assert batch["targets"].dtype == np.float32
    else:
        assert 0 <= batch["labels"].min() <= batch["labels"].max() < outputs


def test_augmentation_keeps_the_form(directory: Path) -> None:
    plain = opened("digits", {"flatten": True}, "train", directory)
    shifted = opened("digits", {"flatten": True, "pad": 2}, "train", directory)
    original, moved = Loader(plain, 64, 0, True).batch(0), Loader(shifted, 64, 0, True).batch(0)
    np.testing.assert_array_equal(original["labels"], moved["labels"])
    assert moved["inputs"].shape == (64, 64)
    changed = (original["inputs"] != moved["inputs"]).any(axis=1)
    assert 48 < changed.sum() < 64  # one shift in 25 is none
    epochs = [next(Loader(source, 64, 0, True).epoch()) for source in (plain, shifted)]
    np.testing.assert_array_equal(epochs[0]["inputs"], epochs[1]["inputs"])


@pytest.mark.parametrize("name", TABLES)
def test_the_splits_share_out_the_table(name: str, directory: Path) -> None:
    raw = {"standardize": False} if name != "digits" else {"flatten": True}
    parts = [opened(name, raw, split, directory) for split in SPLITS]
    further = {"scaled": False} if name == "diabetes" else {}
    features, targets = getattr(datasets, f"load_{name}")(return_X_y=True, **further)
    if name == "digits":
        features = features / 16
    expected = np.column_stack([features, targets]).astype(np.float32)
    rows = np.concatenate(
        [np.column_stack(list(part.read(range(len(part))).values())) for part in parts]
    )
    order = [np.lexsort(table.T) for table in (expected, rows)]
    np.testing.assert_allclose(rows[order[1]], expected[order[0]], rtol=1e-6)
    if TABLES[name]:  # each class in proportion
        whole = np.bincount(targets) / len(targets)
        for part in parts:
            counts = np.bincount(part.read(range(len(part)))["labels"], minlength=TABLES[name])
            assert np.abs(counts - whole * len(part)).max() <= 1


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "diabetes"])
def test_features_are_standardised_on_the_train_split(name: str, directory: Path) -> None:
    train = opened(name, {}, "train", directory)
    arrays = train.read(range(len(train)))
    for key in ("inputs",) if TABLES[name] else ("inputs", "targets"):
        np.testing.assert_allclose(arrays[key].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(arrays[key].std(0), 1, atol=1e-5)
    raw = [opened(name, {"standardize": False}, split, directory) for split in ("train", "test")]
    test = opened(name, {}, "test", directory)
    mean, std = raw[0].read(range(len(train)))["inputs"].mean(0), 0
    std = raw[0].read(range(len(train)))["inputs"].std(0)
    expected = (raw[1].read(range(len(test)))["inputs"] - mean) / std
    np.testing.assert_allclose(test.read(range(len(test)))["inputs"], expected, atol=1e-4)


def test_digits_are_pictures_in_zero_to_one(directory: Path) -> None:
    sizes = [len(opened("digits", {}, split, directory)) for split in SPLITS]
    assert sizes == [1297, 200, 300]
    train = opened("digits", {}, "train", directory).read(range(1297))["inputs"]
    assert train.min() == 0
    assert train.max() == 1
    standard = opened("digits", {"scaling": "standard"}, "train", directory)
    pixels = standard.read(range(1297))["inputs"]
    spread = pixels.std(0)
    assert (np.isclose(spread, 1, atol=1e-4) | (spread == 0)).all()
    mean, std = train.mean(0), np.where(train.std(0) > 0, train.std(0), 1)
    raw = opened("digits", {}, "test", directory).read(range(300))["inputs"]
    scaled = opened("digits", {"scaling": "standard"}, "test", directory).read(range(300))["inputs"]
    np.testing.assert_allclose(scaled, (raw - mean) / std, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "split", "message"),
    [
        ("digit", {}, "train", "unknown data set 'digit': choose from .*; nearest: 'digits'"),
        ("iris", {"standardise": True}, "train", "unknown option of .*; nearest: 'standardize'"),
        ("iris", {}, "valid", "unknown split of data set iris 'valid'.*nearest: 'validation'"),
        ("digits", {}, "tests", "unknown split of data set digits 'tests'.*nearest: 'test'"),
        ("digits", {"scaling": "standart"}, "train", "data.scaling.*nearest: 'standard'"),
        ("digits", {"image_size": 4}, "train", "image_size is 4: .* 8 and 1024 .*nearest: 8"),
        ("digits", {"mixup": -1.0}, "train", "data.mixup is -1.0: .* at least 0"),
        ("digits", {"mixup": float("nan")}, "train", "data.mixup is nan: .* at least 0"),
        ("synthetic", {"task": "revers"}, "train", "unknown data.task .*nearest: 'reverse'"),
        ("synthetic", {"examples": 0}, "train", "data.examples is 0: .* at least 1"),
        ("synthetic", {}, "dev", "unknown split of data set synthetic 'dev'"),
        ("python_source", {}, "trian", "unknown split .*nearest: 'train'"),
        ("tfds", {"dataset": "x", "task": "clasify"}, "train", "nearest: 'classify'"),
        ("tfds", {"dataset": "x", "mean": "a"}, "train", "data.mean is 'a': it must be one number"),
        ("tfds", {"dataset": "x", "mean": "0,1"}, "train", "data.mean is '0,1': .* or 3 with"),
        ("tfds", {"dataset": "x", "std": "0"}, "train", "data.std is '0': every value .* above 0"),
        ("tfds", {"dataset": "x", "channels": 2}, "train", "data.channels is 2: choose from 1, 3"),
    ],
)
def test_wrong_options_are_one_clear_line(
    name: str, options: dict[str, Any], split: str, message: str, directory: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        open_split(name, options, split, 32, directory)
    assert "\n" not in str(error.value)


def test_rows_need_a_length(directory: Path) -> None:
    for name in ("python_source", "synthetic"):
        with pytest.raises(ValueError, match="data.sequence_length is 0: it must be at least 1"):
            open_split(name, {}, "train", 0, directory)
