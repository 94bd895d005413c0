"""From names to files: there is no table of models or data sets, the folders are the tables.

`config.model.family = "resnet"` means nn/families/resnet.py. A file counts when it exports a class
`Config`; helpers beside it that export none do not.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

from nn import names


@dataclasses.dataclass(frozen=True)
class Part:
    """A section of the config whose further keys come from a file that one of its keys names."""

    package: str  # where the files lie
    selector: str  # the dotted key that names the file


PARTS = {
    "model": Part("nn.families", "model.family"),
    "objective": Part("nn.objectives", "objective.name"),
    "rule": Part("nn.learning", "rule.name"),
    "data": Part("launch.data", "data.name"),
}


NO_EXPERIMENTS = ("__init__", "base", "sweeps")  # what experiment files are made with

EXPORTS_CONFIG = re.compile(r"^(class Config\b|from \S+ import .*\bConfig\b)", re.MULTILINE)


def available(section: str) -> list[str]:
    """The names that the selector of `section` may take, without importing any of them."""
    package = importlib.import_module(PARTS[section].package)
    found = [info.name for info in pkgutil.iter_modules(package.__path__)]
    return sorted(name for name in found if _exports_config(f"{package.__name__}.{name}"))


def _exports_config(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return False
    return EXPORTS_CONFIG.search(Path(spec.origin).read_text("utf-8")) is not None


def module(section: str, name: str) -> ModuleType:
    """The file that `name` picks in `section`; ValueError with the nearest name when none does."""
    part = PARTS[section]
    # A name with a dot would be looked up in another package.
    if not name.isidentifier() or not _exports_config(f"{part.package}.{name}"):
        raise names.unknown(part.selector, name, available(section))
    return importlib.import_module(f"{part.package}.{name}")


def config_class(section: str, name: str) -> type:
    """The `Config` dataclass of the file that `name` picks in `section`."""
    cls: type = module(section, name).Config
    return cls


def summary(found: ModuleType) -> str:
    """The first line of a file's docstring."""
    return (inspect.getdoc(found) or "").partition("\n")[0]


def experiments_directory() -> Path:
    """The folder of the experiment files, wherever the command was started."""
    package = importlib.import_module("experiments")
    return Path(next(iter(package.__path__)))


def experiments() -> list[str]:
    """The names of the experiment files, "experiments/digits_mlp.py" and so on."""
    files = experiments_directory().glob("*.py")
    return sorted(f"experiments/{f.name}" for f in files if f.stem not in NO_EXPERIMENTS)


def find_experiment(spec: str) -> tuple[Path, str | None]:
    """Split "FILE[:ARG]" and find the file.

    FILE is a path from here or from the root of the checkout; "digits_mlp" is short for
    "experiments/digits_mlp.py".

    Raises:
      FileNotFoundError: no such file; lists the experiments and names the nearest.
    """
    if (whole := _find_file(spec)) is not None:
        return whole, None
    text, colon, arg = spec.rpartition(":")
    if colon and (path := _find_file(text)) is not None:
        return path, arg
    wanted = Path(text if colon else spec)
    options = experiments()
    guess = names.nearest(f"experiments/{wanted.stem}.py", options)
    raise FileNotFoundError(
        f"--config={spec}: there is no file {str(wanted)!r}; choose from {', '.join(options)}"
        + (f"; nearest: {guess!r}" if guess else "")
    )


def _find_file(text: str) -> Path | None:
    folder = experiments_directory()
    candidates = [Path(text), folder.parent / text, folder / text]
    if Path(text).name == text:
        candidates.append(folder / f"{text}.py")
    return next((path.resolve() for path in candidates if path.is_file()), None)


def load_experiment(path: Path) -> ModuleType:
    """Import an experiment file from wherever it lies.

    Raises:
      ValueError: it has no `get_config`, or it cannot be imported; names file and line.
    """
    if path.parent == experiments_directory().resolve():
        name = f"experiments.{path.stem}"
    else:
        name = f"experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={path}: not a Python file; an experiment is one ending in .py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # dataclasses and inspect look a module up by its name
    try:
        spec.loader.exec_module(found)
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(found, "get_config"):
        raise ValueError(f"{path} has no function get_config(), which every experiment needs")
    return found
