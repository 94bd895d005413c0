"""Ranges and choices of every key, and what keys ask of each other."""

from __future__ import annotations

import pytest

from launch.run import config, keys, validate

# key -> (last good, first bad) pairs
EDGES = {
    "seed": [("0", "-1"), ("4294967295", "4294967296")],
    "data.batch_size": [("1", "0")],
    "data.sequence_length": [("1", "0")],
    "data.seed": [("0", "-1")],
    "data.prefetch": [("0", "-1")],
    "data.eval_batches": [("0", "-1")],
    "data.eval_batch_size": [("0", "-1"), ("64", "33")],
    "optimizer.learning_rate": [("1e-9", "0"), ("1", "inf"), ("1", "nan")],
    "optimizer.warmup_steps": [("0", "-1"), ("50", "51")],
    "optimizer.decay_steps": [("1", "0")],
    "optimizer.final_fraction": [("0", "-0.1"), ("1", "1.1")],
    "optimizer.cooldown_fraction": [("0", "-0.1"), ("1", "1.1")],
    "optimizer.weight_decay": [("0", "-0.1"), ("9", "nan")],
    "optimizer.clip_norm": [("0", "-1"), ("9", "inf")],
    "optimizer.b1": [("0", "-0.1"), ("0.99", "1")],
    "optimizer.b2": [("0", "-0.1"), ("0.99", "1")],
    "optimizer.eps": [("1e-30", "0")],
    "optimizer.momentum": [("0", "-0.1"), ("0.99", "1")],
    "tune.train": [(".*", "blocks/(")],
    "tune.freeze": [("embed/.*", "[")],
    "tune.lora_rank": [("0", "-1")],
    "tune.lora_alpha": [("1", "0")],
    "tune.lora_targets": [("", ".*kernel")],
    "mesh.pipe": [("1", "0")],
    "mesh.data": [("-1", "-2"), ("1", "0")],
    "mesh.fsdp": [("4", "0")],
    "mesh.expert": [("4", "0")],
    "mesh.context": [("4", "0")],
    "mesh.tensor": [("4", "-3")],
    "mesh.microbatches": [("4", "0"), ("8", "7")],
    "mesh.rounds": [("1", "0"), ("1", "2")],
    "train.steps": [("1", "0")],
    "train.log_every": [("1", "0")],
    "train.eval_every": [("0", "-1")],
    "train.checkpoint_every": [("0", "-1")],
    "train.keep_checkpoints": [("1", "0")],
    "train.early_stop_patience": [("0", "-1")],
    "train.hang_timeout": [("0", "-1"), ("600", "inf")],
    "train.time_limit": [("0", "-1"), ("1e6", "nan")],
    "sample.length": [("0", "-1")],
    "sample.temperature": [("0", "-0.1"), ("9", "inf")],
    "sample.top_k": [("0", "-1")],
    "sample.top_p": [("1", "1.1"), ("0.1", "0")],
    "optimizer.name": [("muon", "moon")],
    "optimizer.schedule": [("linear", "liner")],
    "optimizer.decay_mask": [("all", "kernel")],
    "scale.rule": [("standard", "mupp")],
    "precision.policy": [("bfloat16_params", "bf16")],
    "mesh.schedule": [("gpipe", "gpip")],
    "mesh.attention": [("ulysses", "ulises")],
    "mesh.dispatch": [("auto", "al_to_all")],
    "mesh.reduce_dtype": [("bfloat16", "float16")],
    "mesh.rules": [("mlp=fsdp", "mlp=fsdb"), ("embed=", "embd=")],
}
FREE = {"tune.base", "data.dir", "metrics.tensorboard", "metrics.wandb", "metrics.wandb_project"}
FREE |= {"mesh.sequence_parallel", "sample.prompt", "train.early_stop_metric", "model.preset"}
FREE |= {"model.family", "objective.name", "rule.name", "data.name"}  # files: test_config.py
FREE |= {"model.pretrained", "scale.base"}  # test_published.py, test_scale.py


def test_every_key_is_checked_or_free() -> None:
    assert EDGES.keys() | FREE == keys.base_keys().keys()
    assert EDGES.keys() & FREE == set()
    numeric = {name for name, key in keys.base_keys().items() if key.kind in (int, float)}
    assert validate.RULES.keys() == numeric


@pytest.mark.parametrize("key", EDGES)
def test_edges(toy: str, key: str) -> None:
    for good, bad in EDGES[key]:
        config.load(toy, [f"{key}={good}"])
        with pytest.raises(ValueError, match=r"nearest|default") as error:
            config.load(toy, [f"{key}={bad}"])
        message = str(error.value)
        shown = keys.render(keys.parse(keys.base_keys()[key], bad)).split("=")[-1]
        assert key in message
        assert shown in message
        assert "\n" not in message


@pytest.mark.parametrize("key", [key for key in EDGES if key in validate.RULES])
def test_the_nearest_value_that_an_error_names_is_good(toy: str, key: str) -> None:
    rule = validate.RULES[key]
    for _, text in EDGES[key]:
        bad = keys.parse(keys.base_keys()[key], text)
        if rule.nearest is not None and not rule.test(bad):
            assert rule.test(rule.nearest(bad))


CROSS = {
    ("optimizer.warmup_steps=51",): "at most train.steps=50; nearest: 50",
    ("optimizer.warmup_steps=9", "optimizer.decay_steps=8"): "at least optimizer.warmup_steps=9",
    ("mesh.fsdp=-1",): "mesh.data and mesh.fsdp are both -1.*nearest: mesh.data=1",
    ("rule.accumulate=5",): "data.batch_size=32 is not divisible by rule.accumulate=5; nearest: "
    "data.batch_size=30",
    ("data.batch_size=3", "mesh.microbatches=8"): "nearest: data.batch_size=8",
    ("mesh.rounds=2", "mesh.schedule=1f1b"): "needs mesh.schedule='interleaved'.*nearest: mesh.rou",
    ("train.early_stop_metric=loss",): "needs train.early_stop_patience of at least 1",
    ("train.early_stop_patience=2",): "needs train.early_stop_metric",
}


@pytest.mark.parametrize("overrides", CROSS)
def test_keys_that_do_not_go_together(toy: str, overrides: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=CROSS[overrides]):
        config.load(toy, overrides)


def test_rows_fit_into_the_context(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got = config.load(toy).as_configdict()
    got.model.context_length = 256
    validate.validate(got)
    got.data.sequence_length = 257
    with pytest.raises(ValueError, match=r"at most model.context_length=256; nearest: 256"):
        validate.validate(got)
