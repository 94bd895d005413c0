"""Catalogue data sets: read as they are prepared, and clear about what is missing."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.data import catalogue, prepare
from launch.data.loader import Loader
from launch.data.source import Source, open_split

PICTURES = 12
TEXTS = [b"first text", b"", "zweiter Text \xe4".encode(), b"third"]


def picture(index: int) -> np.ndarray:
    """Height and width differ; the whole of it has one colour, but for a black left edge."""
    height, width = 20 + index % 3, 30 + index % 5
    array = np.full((height, width, 3), (10 * index, 255 - 10 * index, 128), np.uint8)
    array[:, :4] = 0
    return array


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def build(root: Path, name: str, rows: dict[str, list[Any]], **features: Any) -> Path:
    return prepare.build(
        root,
        name,
        "1.0.0",
        features=lambda: features,
        splits=lambda: rows,
        description="For tests.",
        homepage="https://example.org",
        licence="CC0-1.0",
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("catalogue")
    pictures = [{"photo": png(picture(i)), "kind": i % 4} for i in range(PICTURES)]
    build(
        root,
        "pictures",
        {"train": pictures, "test": pictures[:5]},
        photo=tfds.features.Image(),
        kind=tfds.features.ClassLabel(num_classes=4),
    )
    texts = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]
    build(root, "texts", {"train": texts}, text=tfds.features.Text(), id=np.int64)
    lists = [{"tokens": list(range(i, i + 3))} for i in (5, 300)]
    build(
        root,
        "lists",
        {"train": lists},
        tokens=tfds.features.Sequence(np.int64),
    )
    return root


IMAGES = {
    "dataset": "pictures",
    "image_key": "photo",
    "label_key": "kind",
    "image_size": 8,
    "validation_split": "train[50%:]",
    "mean": "0.5",
    "std": "0.25",
}


def opened(root: Path, split: str = "train", length: int = 6, **options: Any) -> Source:
    return open_split("tfds", options, split, length, root)


def test_pictures_are_cut_in_the_middle_and_normalised(root: Path) -> None:
    for split, first, count in (("validation", 6, 6), ("test", 0, 5)):
        source = opened(root, split, **IMAGES)
        assert len(source) == count
        assert source.spec.input_shape == (8, 8, 3)
        assert source.spec.num_outputs == 4
        assert (source.spec.name, source.spec.version) == ("pictures", "1.0.0")
        for place in range(count):
            example = source[place]
            assert example["inputs"].shape == (8, 8, 3)
            assert example["inputs"].dtype == np.float32
            colour = picture(first + place)[10, 15].astype(np.float32) / 255
            expected = np.broadcast_to((colour - 0.5) / 0.25, (8, 8, 3))
            np.testing.assert_allclose(example["inputs"], expected, atol=1e-5)
            assert example["labels"] == (first + place) % 4
            assert example["labels"].dtype == np.int32


def test_the_centre_crop_takes_its_fraction(root: Path) -> None:
    whole = opened(root, "test", **IMAGES, crop_fraction=1.0, channels=1)
    assert whole[0]["inputs"].shape == (8, 8, 1)
    # picture 0 is 30 wide and 20 high: the square begins at column 5, right of the black edge
    assert np.ptp(whole[0]["inputs"]) < 1e-6


def test_training_pictures_are_cut_at_random_and_reproducibly(root: Path) -> None:
    source = opened(root, **IMAGES)
    loaders = [Loader(source, 12, 0, True, prefetch=prefetch) for prefetch in (0, 4)]
    batches = [next(loader.iterate(3)) for loader in loaders]
    for key in batches[0]:
        np.testing.assert_array_equal(batches[0][key], batches[1][key])
    assert batches[0]["inputs"].shape == (12, 8, 8, 3)
    other = loaders[0].batch(4)
    order = np.argsort(batches[0]["labels"], kind="stable")
    assert (batches[0]["inputs"][order] != other["inputs"]).any()
    dark = np.isclose(batches[0]["inputs"][..., 2], -2.0, atol=1e-3).any(axis=2).any(axis=1)
    assert 0 < dark.sum() < 12  # some crops hold the black edge
    centre = opened(root, **IMAGES, train_crop="centre", flip=False)
    assert not centre.augments
    assert opened(root, **IMAGES, train_crop="centre", flip=True).augments
    assert opened(root, **IMAGES, train_crop="resized", flip=False).augments
    evaluated = next(Loader(source, 12, 0, True).epoch())
    np.testing.assert_array_equal(evaluated["inputs"], centre.read(range(12))["inputs"])


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    rows = [{"photo": png(picture(i)), "kind": 0} for i in range(4)]
    rows[2] = {"photo": png(picture(2))[:40], "kind": 0}
    features = {"photo": tfds.features.Image(), "kind": tfds.features.ClassLabel(num_classes=4)}
    build(tmp_path, "pictures", {"train": rows}, **features)
    source = opened(tmp_path, **IMAGES)
    for batches in (Loader(source, 4, 0, True).iterate(), Loader(source, 4, 0, False).epoch()):
        with pytest.raises(RuntimeError, match="data set pictures, split train: record 2 cannot"):
            next(batches)


TEXT = {"dataset": "texts", "task": "next_token", "validation_split": "train[:1]"}


def test_texts_become_rows_of_bytes(root: Path) -> None:
    source = opened(root, **TEXT)
    assert source.spec.task == "next_token"
    assert source.spec.num_outputs == 256
    whole = b"".join(TEXTS)
    rows = source.read(range(len(source)))
    tokens = rows["inputs"][rows["segments"] > 0]
    assert bytes(tokens.astype(np.uint8)) == whole[:-1]
    assert rows["mask"].sum() == len(whole) - 3
    assert len(opened(root, "validation", 100, **TEXT)) == 1
    kept = list((root / "packed").iterdir())
    assert len([path for path in kept if not path.name.startswith(".")]) == 2
    assert opened(root, **TEXT).fingerprint() == source.fingerprint()


def test_lists_of_integers_become_rows(root: Path) -> None:
    options = {"dataset": "lists", "task": "next_token", "text_key": "tokens", "vocabulary": 400}
    row = opened(root, **options)[0]
    assert row["inputs"].tolist() == [5, 6, 7, 300, 301, 0]
    assert row["mask"].tolist() == [1, 1, 0, 1, 1, 0]
    with pytest.raises(ValueError, match="document 1 has token 302: tokens must be .* = 255"):
        opened(root, **{**options, "vocabulary": 256})


def test_a_read_only_directory_keeps_its_stream_elsewhere(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure = prepare.ensure

    def refuse(final: Path, fill: Any) -> Path:
        if root in final.parents:
            raise PermissionError("read-only")
        return ensure(final, fill)

    monkeypatch.setattr(prepare, "ensure", refuse)
    monkeypatch.setenv("TESSERA_DATA_DIR", str(tmp_path))
    assert len(opened(root, **{**TEXT, "train_split": "train[:2]"})) == 2
    assert (tmp_path / "packed").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**IMAGES, "image_key": "foto"}, "unknown data.image_key 'foto'.*nearest: 'photo'"),
        ({**IMAGES, "image_key": "kind"}, "image_key is 'kind', a ClassLabel.*nearest: photo"),
        ({**IMAGES, "label_key": "photo"}, "label_key is 'photo', a Image.*nearest: kind"),
        ({**IMAGES, "train_split": "trian"}, "unknown data.train_split 'trian'.*'train'"),
        ({**IMAGES, "train_split": "train[:0]"}, r"train_split is 'train\[:0\]': it has no ex"),
        ({**IMAGES, "train_split": "train[x]"}, r"data.train_split is 'train\[x\]': "),
        ({**IMAGES, "dataset": ""}, "data.dataset is '': it must be a TFDS name such as"),
        ({**IMAGES, "dataset": "../x"}, "data.dataset is '../x': it must be a TFDS name such as"),
        ({"dataset": "texts", "task": "next_token", "text_key": "tex"}, "nearest: 'text'"),
        ({"dataset": "texts", "task": "next_token", "vocabulary": 1}, "vocabulary is 1: .*least 2"),
    ],
)
def test_wrong_options_are_one_clear_line(
    root: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        opened(root, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mnist", "c4/en", "mnist:3.0.1", "picturse", "pictures:2.0.0"])
def test_what_is_not_there_comes_with_the_command_that_makes_it(root: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        opened(root, **{**IMAGES, "dataset": name})
    line = str(error.value)
    assert "\n" not in line
    command = catalogue.command(name, root)
    assert line.endswith(f"to prepare it: {command}")
    assert f"tfds.builder('{name}', data_dir='{root}', file_format='array_record')" in command
    assert ("nearest: 'pictures" in line) == name.startswith("pictur")


def test_another_file_format_is_refused_with_the_command(root: Path, tmp_path: Path) -> None:
    copied = tmp_path / "pictures" / "1.0.0"
    copied.mkdir(parents=True)
    for file in (root / "pictures" / "1.0.0").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    info = json.loads((copied / "dataset_info.json").read_text())
    (copied / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(FileNotFoundError, match="as tfrecord, which cannot be read at random"):
        opened(tmp_path, **IMAGES)


def test_the_newest_version_and_the_only_configuration_are_found(tmp_path: Path) -> None:
    for place in ("a/1.9.0", "a/1.10.0", "b/x/1.0.0", "c/x/1.0.0", "c/y/1.0.0", "a/.2.0.0.new-x"):
        os.makedirs(tmp_path / place)
        (tmp_path / place / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    assert catalogue.find(tmp_path, "a") == tmp_path / "a" / "1.10.0"
    assert catalogue.find(tmp_path, "a:1.9.0") == tmp_path / "a" / "1.9.0"
    assert catalogue.find(tmp_path, "b") == tmp_path / "b" / "x" / "1.0.0"
    assert catalogue.find(tmp_path, "c/y") == tmp_path / "c" / "y" / "1.0.0"
    with pytest.raises(ValueError, match="unknown configuration .* 'c': choose from c/x, c/y"):
        catalogue.find(tmp_path, "c")
    with pytest.raises(FileNotFoundError, match="nearest: 'a"):
        catalogue.find(tmp_path, "a:2.0.0")
