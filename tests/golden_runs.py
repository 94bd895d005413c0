"""Three short runs whose losses are kept in git: what a user would see change first.

The data do not depend on the version of Python, unlike the text of its standard library.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path

from launch import train
from launch.run import errors
from tests.launch import runs

SYNTHETIC = {"data__name": "synthetic", "data__task": "copy", "data__examples": 512}
RUNS = {
    "decoder": ("bytes_gpt", SYNTHETIC | {"train__steps": 8}),
    "mlp": ("digits_mlp", {"train__steps": 8, "train__log_every": 1}),
    "resnet": (
        "digits_resnet",
        {"train__steps": 6, "train__log_every": 1, "data__batch_size": 32},
    ),
}
METRICS = ("loss", "grad_norm", "accuracy")


def losses(name: str, workdir: Path) -> dict[str, dict[str, float]]:
    """step -> metrics of the training lines of one run, in float32 on all devices."""
    experiment, overrides = RUNS[name]
    arguments = runs.arguments(workdir, experiment, **overrides)
    with contextlib.redirect_stdout(io.StringIO()):
        assert train.main(arguments) == errors.DONE
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {
        str(line["step"]): {metric: line[metric] for metric in METRICS}
        for line in lines
        if line["split"] == "train"
    }


def text(name: str) -> str:
    """The golden file of one run."""
    with tempfile.TemporaryDirectory() as folder:
        return json.dumps(losses(name, Path(folder) / "run"), indent=1) + "\n"
