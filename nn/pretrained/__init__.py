"""Published formats: one file per format, a two-way table between its tensors and our leaves.

NumPy only, no I/O. A format is a file nn/pretrained/NAME.py that exports

- `MODEL_TYPES`: the values of model_type in config.json that it reads; the first is written;
- `FAMILY`: the file of nn/families whose model it is, such as "transformer";
- `config_from(raw) -> Config`: that family's config from the content of a config.json. ValueError
  for a value that is wrong or that our model cannot express (`table.read`, `table.require`);
- `config_to(config) -> dict`: the content of a config.json. ValueError where the format cannot
  hold a value of `config`. `config_from(config_to(config)) == config`;
- `table(config, names=None) -> Table`: what lies where. `names` are those of the tensors of one
  file, where files of a format differ (a base prefix, a head that may be left out); None stands
  for what we write. Refuses what `config_to` refuses.

A table's paths start at the parameters ("blocks/attention/query_kernel"); one that holds other
collections too starts at the variables ("params/...", "batch_stats/..."). That is all: formats are
found by listing this folder, and `to_ours` and `from_ours` are the same for all of them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from nn import names as names_
from nn.pretrained.table import Params, Table


class Format(Protocol):
    """What a file of this folder exports."""

    __name__: str
    MODEL_TYPES: tuple[str, ...]
    FAMILY: str

    def config_from(self, raw: Mapping[str, Any]) -> Any: ...

    def config_to(self, config: Any) -> dict[str, Any]: ...

    def table(self, config: Any, names: Iterable[str] | None = None) -> Table: ...


@functools.cache
def formats() -> Mapping[str, Format]:
    """Every format by every model_type that it reads. A file without MODEL_TYPES is none."""
    found: dict[str, Format] = {}
    for info in pkgutil.iter_modules(__path__):
        module: Any = importlib.import_module(f"{__name__}.{info.name}")
        for model_type in module.MODEL_TYPES if hasattr(module, "MODEL_TYPES") else ():
            if model_type in found:
                raise TypeError(f"{found[model_type].__name__}, {module.__name__}: {model_type!r}")
            found[model_type] = module
    return found


def find(model_type: str) -> Format:
    """The format of a model_type.

    Raises:
      ValueError: there is none; lists those that there are and names the nearest.
    """
    found: Format = names_.lookup("model_type", model_type, formats())
    return found


def to_ours(format_: Format, tensors: Mapping[str, np.ndarray], config: Any) -> Params:
    """Our parameters, or variables, from the tensors of a file.

    Raises:
      ValueError: a tensor is missing, unknown or of the wrong shape; a value of `config` that
        the format cannot hold.
    """
    return format_.table(config, tensors.keys()).to_ours(tensors)


def from_ours(format_: Format, params: Params, config: Any) -> dict[str, np.ndarray]:
    """The tensors of a file, named as published, from parameters or variables of plain arrays.

    Raises:
      ValueError: a leaf is missing, unknown or of the wrong shape; a value of `config` that the
        format cannot hold.
    """
    return format_.table(config).from_ours(params)
