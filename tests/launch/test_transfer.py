"""launch.transfer: the check of the coordinates, and the best learning rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from launch import transfer as entry
from launch.run import config as configs
from launch.run import errors, transfer, transfer_report
from launch.run.build import build
from launch.run.state import initial_state

# Bytes of the standard library, the last twelve of which a prediction looks at.
BYTES = (
    *("model.family=neural_lm", "data.batch_size=2"),
    *("data.sequence_length=64", "optimizer.name=adamw", "optimizer.weight_decay=0"),
    *("optimizer.b2=0.99", "optimizer.schedule=constant", "optimizer.clip_norm=0"),
    "optimizer.learning_rate=0.02",
)
SHORT = [f"--config.{entry}" for entry in BYTES]


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """What a command writes, with its picture."""
    files = [f"--json={tmp_path / 'found.json'}", f"--plot={tmp_path / 'found.png'}"]
    assert entry.main([*arguments, *files]) == errors.DONE
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text("utf-8"))
    return found


def test_coordinates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--base=hidden_dim=32", "--times=1,8", "--steps=10"]
    found = run(tmp_path, "coordinates", "--config=base", *SHORT, *wanted)
    assert (found["widths"], found["steps"]) == ([32, 256], 10)
    assert list(found["rules"]) == ["mup", "standard"]
    for rule in found["rules"].values():
        assert {"embed", "layers_0", "output"} <= rule.keys()
        row = rule["output"]
        assert row["spread"] == pytest.approx(max(row["after"]) / min(row["after"]))
        assert row["after"] != row["before"]
    assert found["rules"]["mup"]["output"]["spread"] < 2
    assert found["rules"]["standard"]["output"]["spread"] > 2
    out = capsys.readouterr().out
    assert "mup: sizes after 10 steps spread by at most" in out
    assert "from width 32 to 256" in out


def test_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--base=hidden_dim=8", "--times=1,2", "--steps=12", "--rules=mup"]
    tried = "--rates=0.001,0.01,0.1"
    found = run(tmp_path, "rates", "--config=base", *SHORT, *wanted, tried)
    assert (found["widths"], found["rates"]) == ([8, 16], [0.001, 0.01, 0.1])
    rule = found["rules"]["mup"]
    assert np.asarray(rule["losses"]).shape == (2, 3)
    moved = np.log2(rule["best"][1] / rule["best"][0])
    assert rule["slope"] == pytest.approx(moved, abs=1e-6)
    assert "mup: the best rate moves by" in capsys.readouterr().out


def test_a_rate_is_that_of_a_run_with_it() -> None:
    """One program for all rates trains as the run of each would."""
    config = configs.load("base", [*BYTES, "train.steps=3", "optimizer.schedule=cosine"])
    grid = transfer.Grid(config, "hidden_dim=8", (1, 2), ("mup",), 3)
    found = transfer.rates(grid, (0.001, 0.01, 0.1), lambda line: None)
    alone = configs.override(grid.model("mup", 2), ["optimizer.learning_rate=0.1"])
    rule = build(alone, jax.devices()[:1]).rule
    state, update = initial_state(rule, 0), jax.jit(rule.update)
    (stacked,) = transfer.batches(config, 3)
    for i in range(3):
        state, metrics = update(state, {name: x[i] for name, x in stacked.items()})
    loss = found["rules"]["mup"]["losses"][1][2]
    assert loss == pytest.approx(float(metrics["loss"]), rel=1e-4)


def test_sizes_are_multiplied_and_nothing_else() -> None:
    config = configs.load("experiments/digits_mlp.py", ["scale.base=features=32,16"])
    grid = transfer.Grid(config, "features=32,16", (1, 3), ("standard", "mup"), 20)
    assert grid.widths == (32, 96)
    wide = grid.model("mup", 3)
    assert wide.model.features == (96, 48)
    assert (wide.scale.rule, wide.scale.base) == ("mup", "features=32,16")
    assert grid.model("standard", 3).scale.rule == "standard"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["coordinate", "--config=base"], "nearest: 'coordinates'"),
        (["rates"], "--config is needed"),
        (["rates", "--config=base"], "nothing to multiply"),
        (["rates", "--config=base", "--base=norm=rms"], "base field norm=rms: must be a size"),
        (["rates", "--config=base", "--base=dim=32", "--times=1"], "at least two different"),
        (["rates", "--config=base", "--base=dim=32", "--times=a"], "--times=a: numbers between"),
        (["rates", "--config=base", "--base=dim=32", "--rules=mup,x"], "rule to compare"),
        (
            ["rates", "--config=base", "--base=dim=32", "--config.optimizer.name=lamb"],
            "optimizer.name='lamb'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        entry.main(arguments)
    assert end.value.code == errors.BAD_INPUT
    assert message in capsys.readouterr().err


def test_a_best_rate_at_the_edge_is_marked() -> None:
    rule = {"losses": [[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]], "best": [4.0, 2.0], "loss": [1.0, 1.0]}
    rule["edge"] = [True, False]
    result = {"widths": [8, 16], "rates": [1.0, 2.0, 4.0], "rules": {"mup": rule | {"slope": -1.0}}}
    text = transfer_report.rates_text(result)
    assert "4*   1.0000" in text
    assert "2    1.0000" in text
    assert "*: at the edge" in text
    assert "mup: the best rate moves by -1.00 doublings" in text


SMALL = "data.batch_size=4 data.sequence_length=64"
# Experiment, sizes of the narrowest, rule, and what else is set: one for every family.
CHECKS = {
    "mlp": ("digits_mlp", "features=16,16", "mup", "optimizer.learning_rate=0.01"),
    "neural_lm": ("base", "hidden_dim=32", "mup", " ".join(BYTES)),
    "transformer": ("bytes_gpt", "dim=32,mlp_dim=96", "mup", f"model.num_layers=2 {SMALL}"),
    "transformer, deep": (
        *("bytes_gpt", "num_layers=2", "completep"),
        f"model.dim=32 model.mlp_dim=96 {SMALL}",
    ),
    "vit": ("digits_vit", "dim=16", "mup", "data.batch_size=16 model.num_layers=2"),
    "resnet": (
        *("digits_resnet", "width=4", "mup"),
        "data.batch_size=16 model.stages=1,1 optimizer.name=adamw optimizer.learning_rate=0.003",
    ),
    "clip": (
        *("clip_digits", "image_dim=16,text_dim=16,embed_dim=16", "mup"),
        "data.batch_size=16 model.image_layers=1 model.text_layers=1",
    ),
    "bert": ("bert_bytes", "dim=16,mlp_dim=32", "mup", f"model.num_layers=2 {SMALL}"),
    "seq2seq_transformer": (
        *("seq2seq_reverse", "dim=16", "mup"),
        "data.batch_size=16 model.encoder_layers=1 model.decoder_layers=1 "
        "optimizer.learning_rate=0.0005",
    ),
    "whisper": (
        *("whisper_tones", "dim=16", "mup"),
        "data.batch_size=8 model.encoder_layers=1 model.decoder_layers=1",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.usefixtures("optimised")
def test_what_modules_give_does_not_follow_the_width(name: str) -> None:
    """Nor, under CompleteP, the depth: within a factor of 2 over one of 8; else it does."""
    experiment, base, rule, settings = CHECKS[name]
    config = configs.load(experiment, settings.split())
    grid = transfer.Grid(config, base, (1, 8), (rule, "standard"), 10).steady()
    found = transfer.coordinates(grid)["rules"]
    largest = {
        kind: max((row["spread"], path) for path, row in rows.items())
        for kind, rows in found.items()
    }
    assert largest[rule][0] <= 2, largest
    assert largest["standard"][0] > 2, largest


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_best_rate_stays_where_it_is() -> None:
    """Over widths from 32 to 512: see the numbers of README.md."""
    settings = ["data.batch_size=4", "data.sequence_length=32"]
    config = configs.load("base", [*BYTES, *settings])
    grid = transfer.Grid(config, "hidden_dim=32", (1, 2, 4, 8, 16), ("mup", "standard"), 600)
    rules = transfer.rates(grid, [2.0**i for i in range(-10, -3)], lambda line: None)["rules"]
    assert not any(rules["mup"]["edge"] + rules["standard"]["edge"])
    assert abs(rules["mup"]["slope"]) <= 0.2
    assert rules["standard"]["slope"] < -0.3
    # At the best rate of the narrowest, wider is better.
    losses = np.asarray(rules["mup"]["losses"])
    at_base = losses[:, losses[0].argmin()]
    assert (np.diff(at_base) < 0).all()
