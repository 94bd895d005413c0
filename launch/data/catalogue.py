"""Find prepared TFDS data sets on disk, and say what is meant when one is not there."""

from __future__ import annotations

import difflib
import functools
import json
import re
from pathlib import Path
from typing import Any

from launch.data.source import unknown

_INFO = "dataset_info.json"
_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")


def prepared(root: Path) -> dict[str, Path]:
    """ "name[/config]:version" -> directory of every data set under `root`."""
    found = {}
    for depth in ("*/*", "*/*/*"):
        for info in sorted(root.glob(f"{depth}/{_INFO}")):
            parts = info.parent.relative_to(root).parts
            if not any(part.startswith(".") for part in parts):
                found["/".join(parts[:-1]) + ":" + parts[-1]] = info.parent
    return found


def find(root: Path, dataset: str) -> Path:
    """The directory of `dataset` under `root`, in the newest version unless it names one.

    Raises ValueError for what cannot be a name, FileNotFoundError for what is not there or not in
    a format that can be read at random; both say what to do.
    """
    match = _NAME.fullmatch(dataset)
    if not match:
        raise ValueError(
            f"data.dataset is {dataset!r}: it must be a TFDS name such as 'imagenet2012', "
            "'c4/en' or 'mnist:3.0.1'"
        )
    there = prepared(root)
    candidates = [key for key in there if _fits(key, match)]
    if not candidates:
        names = sorted({key.split(":")[0] for key in there} | {key.split("/")[0] for key in there})
        near = difflib.get_close_matches(dataset, [*there, *names], n=1, cutoff=0.5)
        hint = f"; nearest: {near[0]!r}" if near else ""
        raise FileNotFoundError(
            f"data set {dataset!r} is not under {root}{hint}; to prepare it: "
            f"{command(dataset, root)}"
        )
    configs = {key.split(":")[0] for key in candidates}
    if len(configs) > 1:
        raise unknown("configuration of data.dataset", dataset, configs)
    newest = max(candidates, key=_version)
    stored = json.loads((there[newest] / _INFO).read_text())
    stored = {"fileFormat": "tfrecord", "alternativeFileFormats": [], **stored}
    if "array_record" not in (stored["fileFormat"], *stored["alternativeFileFormats"]):
        raise FileNotFoundError(
            f"data set {dataset!r} is under {root} as {stored['fileFormat']}, which cannot be read "
            f"at random; to prepare it as array_record elsewhere: "
            f"{command(dataset, root / 'array_record')}"
        )
    return there[newest]


def command(dataset: str, root: Path) -> str:
    """What to run, where TensorFlow Datasets can download, to have `dataset` under `root`."""
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{dataset}', data_dir='{root}', file_format='array_record')"
        '.download_and_prepare()"'
    )


@functools.cache
def _builder(path: Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(str(path))


def features(path: Path) -> Any:
    """The features of an example, by name."""
    return _builder(path).info.features


def identity(path: Path) -> tuple[str, str]:
    """Name with configuration, and version."""
    info = _builder(path).info
    return info.full_name.rsplit("/", 1)[0], str(info.version)


def check_feature(path: Path, key: str, kinds: str | tuple[str, ...], option: str) -> None:
    """ValueError unless feature `key` is there and of one of these kinds."""
    there = features(path)
    if key not in there:
        raise unknown(option, key, there)
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    names = {kind.__name__ for kind in type(there[key]).__mro__}
    if not names & set(kinds):
        fitting = [k for k in there if {c.__name__ for c in type(there[k]).__mro__} & set(kinds)]
        raise ValueError(
            f"{option} is {key!r}, a {type(there[key]).__name__}: it must be a "
            f"{' or '.join(kinds)}; nearest: {', '.join(fitting) or 'none in this data set'}"
        )


def check_split(path: Path, split: str, option: str) -> None:
    """ValueError unless `split` (slices included) is one of the data set's."""
    info = _builder(path).info
    try:
        count = info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        base = re.split(r"[\[+]", split)[0]
        if base in info.splits:
            raise ValueError(f"{option} is {split!r}: {' '.join(str(error).split())}") from error
        raise unknown(option, split, info.splits) from error
    if not count:
        raise ValueError(f"{option} is {split!r}: it has no examples")


def _fits(key: str, match: re.Match[str]) -> bool:
    path, version = key.split(":")
    name, _, config = path.partition("/")
    return (
        name == match["name"]
        and match["config"] in (None, config)
        and match["version"] in (None, version)
    )


def _version(key: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", key.split(":")[1]))
