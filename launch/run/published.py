"""The model that a published directory holds, from its config.json: which format, which config."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.run.safetensors_files import read_json
from nn import names, pretrained
from nn.learning import parametrisation
from nn.pretrained import Format
from nn.pretrained.table import Table

# What noise a model is trained with is the run's to say, though formats write some of it down.
FREE = re.compile(r"(.*_)?(dropout|drop_path|jitter)(_.*)?")


@dataclasses.dataclass(frozen=True)
class Published:
    """directory, the content of its config.json, the format that reads it, and our config."""

    directory: Path
    raw: dict[str, Any]
    format: Format
    config: Any

    @property
    def model_type(self) -> str:
        return str(self.raw["model_type"])

    def check_family(self, family: str, key: str = "model.family") -> None:
        """ValueError, naming the right one, when a family is not that of the directory."""
        if family != self.format.FAMILY:
            raise ValueError(
                f"{key}={family!r} does not fit {self.directory}, whose model_type is "
                f"{self.model_type!r}; nearest: {self.format.FAMILY!r}"
            )

    def check(self, config: Any) -> None:
        """ValueError for the first field with which this would be another model.

        A field that config.json does not speak of, such as what is rematerialised, is free.
        """
        for field in dataclasses.fields(config):
            theirs, ours = getattr(self.config, field.name), getattr(config, field.name)
            if ours != theirs and not FREE.fullmatch(field.name) and not self._same(field, ours):
                raise ValueError(
                    f"model.{field.name}={ours!r} contradicts {self.directory / 'config.json'}; "
                    f"nearest: {theirs!r}"
                )

    def _same(self, field: dataclasses.Field[Any], value: Any) -> bool:
        try:
            changed = dataclasses.replace(self.config, **{field.name: value})
            return self.format.config_to(changed) == self.format.config_to(self.config)
        except ValueError:
            return False


def read(directory: str | Path) -> Published:
    """The model of a directory, from config.json alone.

    Raises:
      FileNotFoundError: no directory, or no config.json in it.
      ValueError: a config.json that is damaged, of a model_type that is not read, or that asks for
        what our model does not have.
    """
    path = Path(directory).expanduser().absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"{directory}: there is no such directory")
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{directory}: config.json is missing, which says what model the tensors are of"
        )
    raw = read_json(file)
    try:
        if "model_type" not in raw:
            raise ValueError(
                f"no model_type: choose from {', '.join(sorted(pretrained.formats()))}"
            )
        format_ = pretrained.find(str(raw["model_type"]))
        return Published(path, raw, format_, format_.config_from(raw))
    except (TypeError, KeyError) as error:  # a value of a shape that no such file has
        raise ValueError(f"{file}: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def leaves_of(table: Table, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Of the leaves of variables, by path, those that a table speaks of, by its own paths."""
    held = {path.partition("/")[0] for path in table.shapes()}
    if "params" in held:
        return {path: x for path, x in variables.items() if path.partition("/")[0] in held}
    start = "params/"
    return {p.removeprefix(start): x for p, x in variables.items() if p.startswith(start)}


def format_for(
    family: str, config: Any, variables: Mapping[str, Any], model_type: str = ""
) -> tuple[Format, list[str]]:
    """The format that a model is written in, and the model types that could hold it.

    Args:
      variables: what has the shapes of the model's leaves, by path.
      model_type: the one to write; by default the first, in order, that can hold the model.
    Raises:
      ValueError: none can; says why, of each.
    """
    known = {f.MODEL_TYPES[0]: f for f in pretrained.formats().values() if family == f.FAMILY}
    if not known:
        families = sorted({f.FAMILY for f in pretrained.formats().values()})
        raise names.unknown("family with a published format", family, families)
    if model_type:
        known = {model_type: names.lookup("model_type of this family", model_type, known)}
    for field in parametrisation.FACTORS:
        if hasattr(config, field) and getattr(config, field) != 1:
            raise ValueError(
                f"no published format can hold this model: it has model.{field}="
                f"{getattr(config, field)}, which scale.rule sets, and formats have it not"
            )
    reasons, able = [], []
    for name, format_ in sorted(known.items()):
        try:
            table = format_.table(config)
            table.check(leaves_of(table, variables))
            able.append(name)
        except ValueError as error:
            reasons.append(f"{name}: {error}")
    if not able:
        raise ValueError(f"no published format can hold this model. {'; '.join(reasons)}")
    return known[able[0]], able
