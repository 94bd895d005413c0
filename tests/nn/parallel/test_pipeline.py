"""Pipelines: what the schedules list, and loss and gradients against one device."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.run import build, config
from launch.run.state import initial_state
from launch.run.step import to_mesh
from nn import parallel
from nn.families import transformer
from nn.layers import block
from nn.learning import backprop
from nn.learning.task import Task
from nn.objectives import next_token
from nn.parallel import schedule
from nn.parallel.collectives import pmean
from tests import parallel_cases as cases
from tests.marks import but_slow

TOLERANCE = 1e-5
PLANS = [
    *[("gpipe", n, m, 1) for n in (1, 2, 3, 4) for m in (1, 2, 5, 8)],
    *[("1f1b", n, m, 1) for n in (1, 2, 3, 4) for m in (1, 2, 5, 8)],
    *[("interleaved", n, n * k, v) for n in (2, 3, 4) for k in (1, 2) for v in (1, 2, 3)],
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_piece_of_work_is_done_once_and_after_what_it_needs(
    plan: tuple[str, int, int, int],
) -> None:
    name, stages, parts, rounds = plan
    listed = schedule.timeline(*plan)
    slot_of = {(work, stage): slot for (slot, stage), work in listed.items()}
    depth = [(stage, chunk) for chunk in range(rounds) for stage in range(stages)]
    expected = {((d, m, c), s) for d in "FB" for m in range(parts) for s, c in depth}
    assert slot_of.keys() == expected and len(listed) == len(expected)
    for part in range(parts):
        way = [slot_of[("F", part, c), s] for s, c in depth]
        way += [slot_of[("B", part, c), s] for s, c in reversed(depth)]
        assert way == sorted(set(way)), "a pass before the one that it needs"
    length = 1 + max(slot for slot, _ in listed)
    idle = 1 - 2 * parts * rounds / length
    assert schedule.bubble(*plan) == pytest.approx(idle)
    if name == "1f1b":
        for stage in range(stages):
            order = [work for (_, s), work in sorted(listed.items()) if s == stage]
            open_parts = np.cumsum([1 if work[0] == "F" else -1 for work in order])
            assert open_parts.max() <= min(2 * stages - 1, parts)


@pytest.mark.parametrize("stages", range(1, 9))
@pytest.mark.parametrize("rounds", range(1, 9))
def test_routes_bring_every_piece_to_its_user(stages: int, rounds: int) -> None:
    found: dict[int, list[int]] = {stage: [0] * rounds for stage in range(stages)}
    arrived = schedule.arrivals(stages, rounds)
    for number, route in enumerate(schedule.routes(stages, rounds)):
        assert sorted(route.to) == list(range(stages)), "two pieces for one stage"
        for j, (group, to) in enumerate(zip(route.group, route.to, strict=True)):
            piece = j * rounds + group
            assert to == piece % stages
            found[to][piece // stages] += 1
            assert arrived[to][piece // stages] == number
    assert all(counts == [1] * rounds for counts in found.values())


def test_pictures_of_the_guide_are_those_of_the_code() -> None:
    from tests.test_architecture import ROOT

    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for plan in (("gpipe", 4, 6, 1), ("interleaved", 4, 4, 2), ("1f1b", 4, 6, 1)):
        assert f"```\n{schedule.picture(*plan)}\n```" in guide, plan


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: schedule.check("gpip", 2, 2, 1), "nearest: 'gpipe'"),
        (lambda: schedule.check("1f1b", 2, 2, 2), "nearest: mesh.rounds=1"),
        (lambda: schedule.check("interleaved", 4, 6, 2), "multiple of mesh.pipe=4; nearest: 8"),
        (lambda: schedule.check_layers(126, 16, 1), "126 layers .* nearest: mesh.pipe=18"),
        (lambda: schedule.check_layers(8, 2, 3), "nearest: mesh.pipe=2 x mesh.rounds=2"),
        (lambda: schedule.check_rows(6, 4), "does not divide the 6 rows .* nearest .*: 3"),
        (lambda: schedule.shared_dim(3, 6, 4), "neither the 3 rows nor the 6 .* nearest: 4 rows"),
        (lambda: parallel.parse_rules("layers=data", True), "over pipe only"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


GPT = dataclasses.replace(transformer.tiny(), num_layers=8, dropout=0.2)
LLAMA = cases.llama(GPT)
P4D2 = {"pipe": 4, "data": 2}
P2D4 = {"pipe": 2, "data": 4}
P2T2F2 = {"pipe": 2, "tensor": 2, "fsdp": 2}
FAST = [(P4D2, "gpipe", 4), (P2D4, "interleaved", 2), (P2T2F2, "1f1b", 2), (P4D2, "1f1b", 4)]
ALL = [
    (sizes, name, parts)
    for sizes in (P4D2, P2D4, P2T2F2)
    for name in ("gpipe", "interleaved", "1f1b")
    for parts in (1, 2, 4)
    if name != "interleaved" or parts % sizes["pipe"] == 0
]
REST = [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in FAST]


@functools.cache
def one_device(config: transformer.Config, accumulate: int = 1) -> cases.Result:
    return cases.measure("transformer", config, {}, accumulate=accumulate)


def compare(
    config: transformer.Config,
    sizes: dict[str, int],
    name: str,
    parts: int,
    accumulate: int = 1,
    reference: cases.Result | None = None,
) -> None:
    rounds = 2 if name == "interleaved" else 1
    rules = parallel.Rules(sequence_parallel=True, microbatches=parts, schedule=name, rounds=rounds)
    result = cases.measure("transformer", config, sizes, rules, accumulate=accumulate)
    reference = one_device(config, accumulate) if reference is None else reference
    cases.assert_same(result, reference)


@pytest.mark.parametrize("sizes, name, parts", [*FAST, *REST], ids=str)
def test_pipeline_equals_one_device_with_dropout(
    sizes: dict[str, int], name: str, parts: int
) -> None:
    compare(GPT, sizes, name, parts)


@pytest.mark.parametrize("name", [pytest.param("interleaved", marks=pytest.mark.slow), "1f1b"])
def test_other_parts_of_the_transformer(name: str) -> None:
    """Grouped-query, rotary, untied, rematerialised; a vocabulary that tensor does not divide."""
    compare(dataclasses.replace(LLAMA, vocab_size=97), P2T2F2, name, 2)


def test_positions_are_shared_out_where_rows_do_not_divide() -> None:
    compare(GPT, {"pipe": 4, "tensor": 2}, "1f1b", 16)


def test_accumulation_of_pipelined_steps() -> None:
    compare(GPT, P2T2F2, "1f1b", 2, accumulate=2)


class Weighed(block.Block):
    """A block that adds to the loss and reports a metric, both means over all positions."""

    def __call__(self, carry: Any, layer: jax.Array, *context: Any) -> Any:
        carry, _ = super().__call__(carry, layer, *context)
        axes = (*parallel.BATCH_AXES, "context", "tensor")
        square, size = jnp.mean(carry[0] ** 2), jnp.mean(jnp.abs(carry[0]))
        return carry, {"loss": 10 * pmean(square, axes), "size": pmean(size, axes)}


@pytest.mark.parametrize("name", but_slow(("gpipe", "interleaved", "1f1b"), "gpipe", "interleaved"))
def test_what_blocks_add_to_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = one_device(GPT, 1)
    monkeypatch.setattr(block, "Block", Weighed)
    reference = cases.measure("transformer", GPT, {})
    assert reference.loss > plain.loss + 0.01 and reference.means["size"] > 0
    compare(GPT, P2T2F2, name, 2, reference=reference)


def test_evaluation_goes_through_the_pipeline() -> None:
    found = []
    for sizes, name in (({}, "gpipe"), (P4D2, "1f1b")):
        rules = parallel.Rules(microbatches=2, schedule=name)
        rule = cases.make_rule("transformer", GPT, sizes, rules)
        batch = to_mesh(rule, cases.batch_of("transformer", GPT))
        sums = jax.device_get(jax.jit(rule.evaluate)(initial_state(rule, 0), batch))
        found.append({name: float(total / count) for name, (total, count) in sums.items()})
    assert found[1] == pytest.approx(found[0], rel=TOLERANCE)


@pytest.mark.parametrize(
    "experiment, overrides, words",
    [
        ("digits_mlp", ["mesh.pipe=2"], "model.family='mlp' has none .* nearest: mesh.pipe=1"),
        ("bytes_gpt", ["mesh.pipe=2", "mesh.rules=layers="], "splits stacked layers"),
        ("bytes_gpt", ["mesh.pipe=2", "mesh.schedule=1f1b", "precision.policy=float16"],
         "cannot scale the loss, .*'float16' needs; nearest: mesh.schedule='gpipe'"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_do_is_refused(experiment: str, overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build.build(config.load(f"experiments/{experiment}.py", overrides))


def test_1f1b_needs_an_objective_that_gives_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(next_token, "ONE_F_ONE_B")
    overrides = ["mesh.pipe=2", "mesh.schedule=1f1b"]
    with pytest.raises(ValueError, match="'next_token' does not; nearest: mesh.schedule='gpipe'"):
        build.build(config.load("experiments/bytes_gpt.py", overrides))


def temporary_memory(name: str, parts: int) -> float:
    """MiB of a device: 4 stages, 8 layers of width 256, 1 MiB of activations between stages."""
    config = transformer.Config(
        vocab_size=256, context_length=256, dim=256, num_layers=8, num_heads=4, position="rotary"
    )
    task = Task(
        model=transformer.Model(config),
        example=transformer.example(config, 2),
        objective=next_token,
        objective_config=next_token.Config(),
        optimizer=optax.identity(),
        mesh=parallel.make_mesh({"pipe": 4}, jax.devices()[:4]),
        rules=parallel.Rules(microbatches=parts, schedule=name),
    )
    rule = backprop.Rule(backprop.Config(), task)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(lambda: rule.init(0)),
        parallel.shardings(task.mesh, rule.state_specs()),
    )
    shape, tokens = (4 * parts, 256), ("inputs", "targets", "positions", "segments")
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32) for name in tokens}
    batch["mask"] = jax.ShapeDtypeStruct(shape, np.float32)
    compiled = jax.jit(rule.gradients).lower(state, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_memory_of_a_microbatch() -> None:
    """1f1b keeps a microbatch's input and its gradient only; gpipe a stage input and output too."""
    growth = {
        name: (temporary_memory(name, 16) - temporary_memory(name, 8)) / 8
        for name in ("1f1b", "gpipe")
    }
    assert growth["1f1b"] <= 2.2, growth
    assert growth["gpipe"] > 3.5, growth
