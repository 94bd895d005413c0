"""The matrix: every family on every mesh that its names allow, among all single axes, all pairs,
twelve triples and, on sixteen devices, three quadruples.

`python -m tests.matrix` prints the worst errors as a table for the README; a number of devices as
its argument runs the quadruples.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Iterable
from typing import Any

if __name__ == "__main__":
    from tests import conftest

    conftest.simulate(int(sys.argv[1]) if len(sys.argv) > 1 else conftest.DEVICES)

import jax
import numpy as np
import optax

from launch.run.state import initial_state
from launch.run.step import to_mesh
from nn import parallel
from nn.analysis import collectives
from tests import parallel_cases as cases

AXES = parallel.AXES
ADDRESS = re.compile(r"0x[0-9a-f]+")
GPT = dataclasses.replace(
    cases.family("transformer").tiny(), num_layers=8, num_heads=8, dropout=0.1
)
# Initial weights are large, so that no choice of an expert hangs on the rounding of a sum.
EXPERTS = dataclasses.replace(
    GPT,
    dropout=0.0,
    init_std=0.2,
    num_kv_heads=2,
    norm="rms",
    position="rotary",
    activation="swiglu",
    bias=False,
    remat="block",
    num_experts=8,
    expert_dim=32,
    router_balance_loss=0.05,
    router_z_loss=0.01,
)
# What the original and its kin have, in one model.
SEQ2SEQ = dataclasses.replace(
    cases.family("seq2seq_transformer").tiny(),
    encoder_layers=8,
    decoder_layers=8,
    num_heads=8,
    embed_norm=True,
    final_norm=True,
    position="relative",
    relative_buckets=8,
    relative_distance=10,
    scale_head=True,
    head_bias=True,
    dropout=0.1,
    attention_dropout=0.1,
    output_dropout=0.1,
)
WHISPER = dataclasses.replace(
    cases.family("whisper").tiny(),
    encoder_layers=8,
    decoder_layers=8,
    num_heads=8,
    dropout=0.1,
    attention_dropout=0.1,
)
VARIANTS = {
    "transformer": GPT,
    "transformer with experts": EXPERTS,
    "seq2seq_transformer": SEQ2SEQ,
    "whisper": WHISPER,
}
WITH_EXPERTS = {"transformer with experts"}
# Families whose meshes are all run; of the others, which are made of the same blocks, those that
# show what they add, and the rest is slow.
THOROUGH = {"mlp", "resnet", "transformer", "transformer with experts"}
SHOWN = ("pipe2 x context2 x tensor2", "data2 x fsdp2 x tensor2")
TWO_STACKS = {"clip", "seq2seq_transformer", "whisper"}  # which take twice as long: the first only
# Triples in which every pair of axes meets.
PAIRWISE = {
    "pipe2 x fsdp2 x context2",
    "pipe2 x data2 x expert2",
    "pipe2 x context2 x tensor2",
    "data2 x fsdp2 x tensor2",
    "data2 x context2 x tensor2",
    "fsdp2 x expert2 x tensor2",
    "expert2 x context2 x tensor2",
}


def names() -> list[str]:
    """Every family, and what a family has in variants that no other test of the matrix sees."""
    return [*cases.family_names(), "transformer with experts"]


def config_of(name: str) -> Any:
    return VARIANTS[name] if name in VARIANTS else cases.family(name).tiny()


def meshes() -> list[str]:
    """On eight devices: 6 single axes, 15 pairs, 12 triples."""
    single: list[dict[str, int]] = [{axis: 8} for axis in AXES]
    pairs = [{a: 2, b: 4} for a, b in itertools.combinations(AXES, 2)]
    triples = [set(t) for t in itertools.combinations(AXES, 3) if "tensor" in t]
    triples += [{"pipe", "fsdp", "context"}, {"pipe", "data", "expert"}]
    return [cases.label(sizes) for sizes in single + pairs + [dict.fromkeys(t, 2) for t in triples]]


def quadruples() -> list[str]:
    """On sixteen devices."""
    chosen = (
        ("pipe", "fsdp", "context", "tensor"),
        ("pipe", "data", "expert", "tensor"),
        ("data", "fsdp", "expert", "context"),
    )
    return [cases.label(dict.fromkeys(axes, 2)) for axes in chosen]


def family_of(name: str) -> str:
    return name.partition(" ")[0]


@functools.cache
def allowed_axes(name: str) -> frozenset[str]:
    """The axes that have something of this family to split."""
    family, config = cases.family(family_of(name)), config_of(name)
    model = family.Model(config)
    named = jax.eval_shape(lambda: model.init(jax.random.key(0), *family.example(config, 2)))
    leaves = jax.tree.leaves(named["params"], is_leaf=lambda x: isinstance(x, parallel.Named))
    stacked = any("layers" in leaf.names for leaf in leaves)
    positions = hasattr(model, "SEQUENCE") or cases.objective_of(family_of(name)).SEQUENCE
    without = [axis for axis, has in (("pipe", stacked), ("context", positions)) if not has]
    return frozenset(AXES) - frozenset(without)


def runs(wanted: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """(family, mesh) for every mesh that the family allows."""
    wanted = list(meshes() if wanted is None else wanted)
    return [(n, m) for n in names() for m in wanted if cases.sizes_of(m).keys() <= allowed_axes(n)]


def rules_of(name: str, mesh: str, **use: Any) -> parallel.Rules:
    """Two microbatches; gpipe for one decoder, 1f1b for the other; use: fields to replace."""
    piped = "pipe" in cases.sizes_of(mesh)
    rules = parallel.Rules(
        sequence_parallel=True,
        microbatches=2,
        schedule="1f1b" if piped and name in WITH_EXPERTS else "gpipe",
        attention="ulysses" if name == "resnet" else "ring",
    )
    return dataclasses.replace(rules, **use)


@dataclasses.dataclass
class Outcome:
    """What one run of two steps found."""

    initial: Any
    means: list[dict[str, float]]  # of both steps
    gradients: Any  # of the first step
    params: Any  # after two steps
    variables: Any  # statistics after two steps
    collectives: dict[str, int]
    program: str  # the jaxpr of a step


def rule_of(name: str, mesh: str, **use: Any) -> Any:
    # Not Adam: its first step is of the same size for every gradient, be it rounding alone.
    optimizer = optax.sgd(0.1, momentum=0.9)
    family, sizes = family_of(name), cases.sizes_of(mesh)
    return cases.make_rule(family, config_of(name), sizes, rules_of(name, mesh, **use), optimizer)


def batch_of(name: str) -> dict[str, np.ndarray]:
    """Images twice as high as the family's example: halved once, each of eight shards has a row."""
    batch = cases.batch_of(family_of(name), config_of(name))
    if name == "resnet":
        upper = batch["inputs"]
        lower = np.random.default_rng(1).normal(size=upper.shape).astype(np.float32)
        batch["inputs"] = np.concatenate([upper, lower], axis=1)
    return batch


def trace(name: str, mesh: str, **use: Any) -> tuple[Any, Any, Any]:
    """A step that also gives its gradients, traced; its state and its batch."""
    rule = rule_of(name, mesh, **use)

    def step(state: Any, batch: Any) -> Any:
        gradients, sums, variables = rule.gradients(state, batch)
        return *rule.apply(state, gradients, sums, variables), gradients

    state = initial_state(rule, 0)
    batch = to_mesh(rule, batch_of(name))
    return jax.jit(step).trace(state, batch), state, batch


def counts(traced: Any) -> dict[str, int]:
    """ "all-gather fsdp" -> how often, in one step."""
    return collectives.count_jaxpr(traced.jaxpr.jaxpr)


def measure(name: str, mesh: str, **use: Any) -> Outcome:
    """Two steps; mesh "": on one device."""
    traced, state, batch = trace(name, mesh, **use)
    step = traced.lower().compile()
    initial = jax.device_get(state.params)
    state, first, gradients = step(state, batch)
    state, second, _ = step(state, batch)
    means = [{k: float(v) for k, v in m.items()} for m in (first, second)]
    tree = (gradients, state.params, state.variables)
    program = ADDRESS.sub("", str(traced.jaxpr))
    return Outcome(initial, means, *jax.device_get(tree), counts(traced), program)


@functools.cache
def one_device(name: str) -> Outcome:
    return measure(name, "")


def errors(name: str, got: Outcome) -> dict[str, tuple[float, str]]:
    """Relative errors against one device, and where; "initial" must be 0."""
    want = one_device(name)
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), got.initial, want.initial)
    mean = max(
        (cases.difference(a[key], b[key], 1e-6), key)
        for a, b in zip(got.means, want.means, strict=True)
        for key in b
    )
    return {
        "initial": (float(not all(jax.tree.leaves(same))), "any"),
        "loss and metrics": mean,
        "gradients": cases.worst(got.gradients, want.gradients),
        "parameters after two steps": cases.worst(got.params, want.params),
        "statistics": cases.worst(got.variables, want.variables),
    }


def main() -> int:
    wanted = quadruples() if jax.device_count() > 8 else meshes()
    worst: dict[tuple[str, str], float] = {}
    for name, mesh in runs(wanted):
        found = errors(name, measure(name, mesh))
        worst[name, mesh] = max(e for e, _ in found.values())
        print(f"{name:<26}{mesh:<32}{worst[name, mesh]:.1e}", flush=True)
    print(f"\n| mesh | {' | '.join(names())} |\n|---|{'---|' * len(names())}")
    for mesh in wanted:
        row = [f"{worst[n, mesh]:.1e}" if (n, mesh) in worst else "" for n in names()]
        print(f"| {mesh} | {' | '.join(row)} |")
    return int(max(worst.values()) > 1e-5)


if __name__ == "__main__":
    raise SystemExit(main())
