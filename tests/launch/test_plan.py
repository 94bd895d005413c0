"""launch.plan: exact state, meshes that build accepts, a ranking that makes sense, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from launch import plan as entry
from launch.cluster import hardware
from launch.run import config as configs
from launch.run import meshes, plan_report, planning
from launch.run.build import build
from launch.run.state import abstract_state
from launch.run.step import train_step
from nn import parallel

SMALL = (
    "data.dataset=tokens/none",
    *("model.dim=64", "model.num_layers=3", "model.num_heads=8", "model.num_kv_heads=2"),
    *("model.mlp_dim=192", "model.vocab_size=512", "model.context_length=128"),
    *("data.vocabulary=512", "data.sequence_length=128", "data.batch_size=16"),
    *("objective.chunks=2", "precision.policy=float32"),
)
ARGUMENTS = [f"--config.{entry}" for entry in SMALL]


def planner(*overrides: str, hardware_name: str = "v5p", devices: int = 8) -> planning.Planner:
    config = configs.load("experiments/llama3.py:8b", [*SMALL, *overrides])
    machine = planning.machine(hardware.chip(hardware_name), devices)
    return planning.Planner(config, machine, devices)


def sizes(**axes: int) -> dict[str, int]:
    return dict.fromkeys(parallel.AXES, 1) | axes


def compiled(plan: planning.Planner, mesh: dict[str, int]) -> Any:
    """XLA's memory analysis of the step on simulated devices."""
    whole = parallel.make_mesh(mesh, jax.devices()[: math.prod(mesh.values())])
    rule = build(plan.config, mesh=whole).rule
    shardings: Any = parallel.shardings(whole, rule.task.batch_specs(plan.batch))
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name])
        for name, x in plan.batch.items()
    }
    step: Any = train_step(rule)
    return step.lower(abstract_state(rule), batch).compile().memory_analysis()


@pytest.mark.parametrize(
    "mesh",
    [
        sizes(fsdp=8),
        pytest.param(sizes(fsdp=4, tensor=2), marks=pytest.mark.slow),
        pytest.param(sizes(tensor=4, data=2), marks=pytest.mark.slow),
    ],
)
def test_state_bytes_are_those_that_the_compiler_passes(mesh: dict[str, int]) -> None:
    plan = planner("optimizer.name=adafactor" if mesh["fsdp"] == 4 else "optimizer.name=adamw")
    predicted = sum(plan.state_bytes(mesh).values())
    # A scalar that the step does not read, such as the loss scale, is no argument.
    assert 0 <= predicted - compiled(plan, mesh).argument_size_in_bytes <= 16


@pytest.mark.parametrize("mesh", [sizes(fsdp=8), sizes(data=8), sizes(tensor=4, data=2)])
def test_kept_activations_are_about_what_the_compiler_allocates(mesh: dict[str, int]) -> None:
    plan = planner("model.remat=none", "model.num_layers=8", "data.batch_size=64")
    memory = plan.estimate(mesh).memory
    state = sum(plan.state_bytes(mesh).values())
    predicted = sum(memory.values()) - state
    assert predicted == pytest.approx(compiled(plan, mesh).temp_size_in_bytes, rel=0.2)


@pytest.mark.slow
def test_memory_of_blocks_computed_again_grows_with_the_batch_as_compiled() -> None:
    """XLA on CPUs also keeps operands of the products in a second layout, hence the wide bounds."""
    mesh, predicted, found = sizes(fsdp=8), [], []
    for rows in (64, 128):
        plan = planner("data.sequence_length=64", f"data.batch_size={rows}")
        memory = plan.estimate(mesh).memory
        predicted.append(sum(memory.values()) - sum(plan.state_bytes(mesh).values()))
        found.append(compiled(plan, mesh).temp_size_in_bytes)
    assert 0.5 < (predicted[1] - predicted[0]) / (found[1] - found[0]) < 1.1


def test_all_meshes_that_build_accepts_are_found_and_no_other() -> None:
    """With the same attention; and what is refused is refused in the same words."""
    plan = planner("mesh.microbatches=2", "model.num_layers=6", "model.num_kv_heads=8", devices=4)
    accepted = []
    for mesh in meshes.splits(4):
        why = plan.judge.refusal(mesh)
        if mesh["expert"] > 1:
            assert why == "no weight of the model is split over expert"
            continue
        concrete = parallel.make_mesh(mesh, jax.devices()[:4])
        if why is None:
            rules = build(plan.config, mesh=concrete).rule.task.rules
            assert plan.on(mesh).task.rules == rules
            accepted.append((mesh, rules.attention))
        else:
            with pytest.raises(ValueError) as error:
                build(plan.config, mesh=concrete)
            assert str(error.value) == why
    kinds = [key for mesh, _ in accepted for key in ("pipe", "context", "tensor") if mesh[key] > 1]
    # 4 = pipe x data x fsdp x context x tensor in 15 ways; 6 layers do not make 4 stages.
    assert (len(accepted), *map(kinds.count, ("pipe", "context", "tensor"))) == (14, 4, 5, 5)
    assert {attention for _, attention in accepted} == {"ring", "ulysses"}


@pytest.mark.parametrize(
    ("overrides", "axis", "why"),
    [
        ((), "pipe", "mesh.microbatches=1 leaves a pipeline idle"),
        (("mesh.microbatches=2",), "pipe", "3 layers cannot be cut into mesh.pipe=2"),
        (("mesh.attention=ulysses", "model.num_heads=1", "model.num_kv_heads=1"), "context", "hea"),
    ],
)
def test_an_axis_is_refused(overrides: tuple[str, ...], axis: str, why: str) -> None:
    assert why in (planner(*overrides).judge.refusal(sizes(data=4, **{axis: 2})) or "")


def test_a_mesh_that_the_model_refuses_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, traced = planner(), []

    def refuse(mesh: dict[str, int]) -> Any:
        traced.append(mesh)
        raise ValueError("no")

    monkeypatch.setattr(plan, "trace", refuse)
    for mesh in (sizes(data=8), sizes(data=8), sizes(data=4, tensor=2)):
        with pytest.raises(ValueError, match="no"):
            plan.estimate(mesh)
    assert len(traced) == 2


def test_splits_are_complete() -> None:
    found = list(meshes.splits(12, ("data", "fsdp", "tensor")))
    assert len(found) == len({tuple(mesh.values()) for mesh in found}) == 18
    assert all(math.prod(mesh.values()) == 12 for mesh in found)


def test_refusals_are_counted_by_reason() -> None:
    plan = planner("data.batch_size=4", "model.num_heads=2")
    found = planning.search(plan, 4)
    text = "; ".join(meshes.summarize(found.refused))
    assert "do not divide the batch" in text
    assert "do not divide a weight" in text


def test_one_trace_serves_every_split_of_the_examples() -> None:
    """Counting from the trace of another mesh gives what its own trace gives."""
    plan = planner("data.batch_size=64")
    for mesh in (sizes(data=4, fsdp=2), sizes(data=2, fsdp=4), sizes(fsdp=8)):
        shared, own = plan.estimate(mesh), plan.trace(mesh)
        assert sum(shared.memory[k] for k in own.peak.kinds) == pytest.approx(
            own.peak.bytes, rel=0.05
        )
        for key, size in own.demand.sent.items():
            assert shared.sent[key] == pytest.approx(size), key
    assert len(plan.traced) == 1


def test_tensor_stays_inside_a_node() -> None:
    """Over a slow network no mesh with tensor above a node's 8 GPUs is best, and it is named."""
    plan = planner("data.batch_size=32", "model.num_heads=16", hardware_name="h100", devices=32)
    inside, across = plan.estimate(sizes(fsdp=8, tensor=4)), plan.estimate(sizes(fsdp=2, tensor=16))
    assert across.prediction.step > inside.prediction.step
    assert across.prediction.binding == "tensor"


def test_less_room_rules_meshes_out() -> None:
    plan = planner()
    roomy = planning.search(plan, 3)
    least = min(estimate.bytes for estimate in roomy.fitting)
    plan.machine = planning.Machine(
        plan.machine.peaks, plan.machine.bandwidth, least, plan.machine.links
    )
    assert {e.bytes for e in planning.search(plan, 3).fitting} == {least}


def test_the_mesh_of_the_config_without_room_does_not_fit() -> None:
    plan, mesh = planner(), sizes(fsdp=8)
    (roomy,) = planning.only(plan, mesh).fitting
    plan.machine = dataclasses.replace(plan.machine, memory=roomy.bytes - 1)
    found = planning.only(plan, mesh)
    assert (found.fitting, found.too_large) == ([], roomy)
    text = plan_report.text(plan, found, 10, [])
    assert text.startswith("does not fit: ") and "fsdp=8, GiB of" in text
    result = plan_report.as_json(plan, found, 10)
    assert (result["meshes"], result["too_large"]["mesh"]) == ([], mesh)


@pytest.mark.parametrize(
    ("chip", "devices", "words"),
    [
        ("v7x", 8, "--topology=7x:2x2x1 "),
        ("h200", 16, "--topology=h200:2x8 "),
        ("h200", 12, "# launch.compile cannot: --topology=h200:1x8 has 8 devices, not 12"),
        ("v5p", 24, "# launch.compile cannot: --topology=v5p:4x3x2: v5p slices have"),
        ("b200", 8, "# launch.compile cannot: unknown kind of --topology 'b200'"),
    ],
)
def test_commands_name_a_machine_that_there_is(chip: str, devices: int, words: str) -> None:
    plan = planner(hardware_name=chip, devices=devices)
    best: Any = SimpleNamespace(mesh=sizes(data=devices))
    spec, overrides = "my experiments/a.py", ["data.dir=$HOME/b c", "mesh.data=3"]
    to_compile, to_train = plan_report.commands(chip, plan, best, spec, overrides)
    assert words in to_compile
    flags = [overrides[0], f"mesh.data={devices}", "mesh.fsdp=1"]
    words_of_train = [f"--config={spec}", "--workdir=DIR", *(f"--config.{f}" for f in flags)]
    assert shlex.split(to_train)[3:] == words_of_train


def test_model_flops_do_not_depend_on_chunks_or_remat() -> None:
    plain = planner("objective.chunks=1", "model.remat=none").needed
    assert planner().needed.matmul == plain.matmul
    params = sum(np.prod(x.shape) for x in jax.tree.leaves(planner().state.params))
    tokens, table = 16 * 128, 512 * 64
    dense = plain.total - plain.matmul["attention"]
    assert dense == pytest.approx(6 * tokens * (params - table), rel=0.01)
    assert plain.matmul["attention"] == 12 * tokens * 128 * 64 * 3


@pytest.mark.parametrize("chip", sorted(hardware.CHIPS))
def test_the_sides_of_a_machine_hold_its_chips(chip: str) -> None:
    row = hardware.chip(chip)
    links = planning.machine(row, 128).links
    if row.torus:
        assert math.prod(links.sides) == 128 // row.devices
        assert len(links.sides) == row.torus
    else:
        assert links.sides == ()


def run(*arguments: str) -> int:
    return entry.main(["--config=experiments/llama3.py:8b", *ARGUMENTS, *arguments])


def test_the_command_prints_a_ranking_and_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    assert run("--hardware=h200", "--devices=8", "--programs=3", f"--json={file}") == 0
    text = capsys.readouterr().out
    result = json.loads(file.read_text())
    steps = [row["step_s"] for row in result["meshes"]]
    assert steps == pytest.approx(sorted(steps), rel=0.01)
    best = result["meshes"][0]
    assert best["memory_total"] == sum(best["memory"].values())
    assert best["binding"] in best["seconds"]
    assert "python -m launch.compile --config=experiments/llama3.py:8b --topology=h200:1x8" in text
    assert "assumptions" in text
    assert result["fitting"] == len(result["meshes"])


def test_only_the_mesh_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--hardware=v5e", "--devices=8", "--mesh=as-config", "--config.mesh.tensor=2")
    assert run(*arguments) == 0
    assert "fsdp=4 tensor=2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hardware=v5q", "--devices=8"), "nearest: 'v5"),
        (("--hardware=v5p", "--devices=0"), "--devices=0: at least 1"),
        (
            ("--hardware=v5p", "--devices=8", "--json=no/such/x.json"),
            "--json=no/such/x.json: no di",
        ),
        (("--hardware=v5p", "--devices=8", "--mesh=all"), "unknown --mesh 'all'"),
        (("--hardware=v5p",), "--config, --hardware and --devices are needed"),
        (
            ("--hardware=v5p", "--devices=6", "--mesh=as-config", "--config.mesh.tensor=4"),
            "nearest mesh that fits",
        ),
        (
            ("--hardware=v5p", "--devices=6", "--mesh=as-config", "--config.mesh.tensor=3"),
            "nearest size of the axis",
        ),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
