"""Prepared data on disk: written once, whole or not at all, and checked before use.

`ensure` fills a directory atomically. `build` fills one by a TFDS builder, as array_record and
without TensorFlow, in the layout of TFDS: <root>/<name>/[<config>/]<version>.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_MANIFEST = "manifest.json"
_HASHED = 64 * 2**20  # bytes; of larger files only the size is checked
_PATIENCE = 900.0  # seconds to wait for another process that prepares the same data


def ensure(final: Path, fill: Callable[[Path], None]) -> Path:
    """Return directory `final`, made by `fill(empty directory)` unless it is there and whole.

    Of several processes one does the work and the others wait for it; a killed one leaves nothing
    that is taken for data. A damaged directory is made anew.

    Raises PermissionError where nothing can be written, TimeoutError when the wait is too long.
    """
    if is_whole(final):
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _lock(final.parent / f".{final.name}.lock"):
            if not is_whole(final):
                _replace(final, fill)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise PermissionError(
                f"{final} cannot be written ({error.strerror}): "
                "set data.dir or TESSERA_DATA_DIR to a directory that can"
            ) from error
        raise
    return final


def is_whole(directory: Path) -> bool:
    """Whether every file is as it was when `directory` was finished."""
    try:
        manifest = json.loads((directory / _MANIFEST).read_text())
        return bool(manifest == _listing(directory))
    except (OSError, ValueError):
        return False


def build(
    root: Path,
    name: str,
    version: str,
    *,
    features: Callable[[], Mapping[str, Any]],
    splits: Callable[[], Mapping[str, Iterable[Mapping[str, Any]]]],
    description: str,
    homepage: str,
    licence: str,
    config: str | None = None,
) -> Path:
    """The directory of data set `name`, prepared when it is not there yet.

    Args:
      features: called when preparing; the TFDS features of an example.
      splits: called when preparing; the examples of each split, stored in the order given.
      config: one of several variants of the data.
    """
    final = root / name / (config or "") / version

    def fill(directory: Path) -> None:
        import tensorflow_datasets as tfds  # takes a second, which a finished directory saves

        class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
            VERSION = tfds.core.Version(version)
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(
                    builder=self,
                    description=description,
                    homepage=homepage,
                    license=licence,
                    features=tfds.features.FeaturesDict(dict(features())),
                    disable_shuffling=True,  # by key: the order is the loader's business
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                del dl_manager
                return {split: self._generate_examples(rows) for split, rows in splits().items()}

            def _generate_examples(self, rows: Iterable[Mapping[str, Any]]) -> Any:
                yield from enumerate(rows)

        Builder.name = name
        scratch = directory / "scratch"
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            builder = Builder(data_dir=scratch, file_format="array_record")
            builder.download_and_prepare()
        for file in Path(builder.data_dir).iterdir():
            file.rename(directory / file.name)
        shutil.rmtree(scratch)

    return ensure(final, fill)


def open_records(directory: Path, split: str, raw: Sequence[str] = ()) -> Any:
    """Random access to the examples of a TFDS directory; `raw` features stay encoded bytes.

    `split` may be a slice in the syntax of TFDS. Examples are dicts of NumPy values.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(directory))
    decoders = {key: tfds.decode.SkipDecoding() for key in raw}
    return builder.as_data_source(split, decoders=decoders or None)


def _listing(directory: Path) -> dict[str, list[Any]]:
    """Name -> [size, SHA-256 or ""] of each file but the manifest."""
    return {
        file.name: [file.stat().st_size, _digest(file)]
        for file in sorted(directory.iterdir())
        if file.name != _MANIFEST
    }


def _digest(file: Path) -> str:
    if file.stat().st_size > _HASHED:
        return ""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _replace(final: Path, fill: Callable[[Path], None]) -> None:
    """Fill a new directory and put it in the place of `final`."""
    prefix = f".{final.name}.new-"
    for stale in final.parent.glob(f"{prefix}*"):  # of killed processes: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    try:
        fill(new)
        (new / _MANIFEST).write_text(json.dumps(_listing(new), indent=1))
        new.chmod(0o755)  # mkdtemp makes it private, and data directories are shared
        if final.exists():
            damaged = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent)) / "damaged"
            final.rename(damaged)
            new.rename(final)
            shutil.rmtree(damaged.parent, ignore_errors=True)
        else:
            new.rename(final)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold `path` locked; the system lets it go when the process dies."""
    deadline = time.monotonic() + _PATIENCE
    with open(path, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"another process has held {path} for {_PATIENCE:g} s"
                    ) from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                break  # a file system without locks: the rename still keeps half-made data out
        yield
    # The file stays: removing it would let two processes lock two files of the same name.
