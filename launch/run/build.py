"""From a resolved config to the objects of a run: mesh, learning rule, data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import optax
from ml_collections import FrozenConfigDict

from launch.data.loader import Loader
from launch.data.source import TASKS, Source, Spec, data_directory
from launch.run import config as configs
from launch.run import optimizer, precision, resolve, scale
from launch.run.validate import tune_of
from nn import parallel
from nn.learning.task import Task
from nn.parallel import schedule, sequence
from nn.parallel.ulysses import choose
from nn.parallel.weight import is_named


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop needs.

    named: the abstract variables, each `Named`. rate: step -> learning rate.
    notes: what was chosen, for the log.
    """

    config: FrozenConfigDict
    rule: Any
    named: Any
    rate: optax.Schedule
    notes: tuple[str, ...] = ()


def build(
    config: FrozenConfigDict,
    devices: list[jax.Device] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Run:
    """Mesh, model, objective, optimizer and learning rule; nothing is computed yet.

    mesh: in place of the config's; an abstract one will do for all that only traces.
    Raises:
      ValueError: a mesh that does not match the devices, a weight that the mesh does not divide,
        a batch that it does not divide; one line that names values and the nearest valid choice.
    """
    if mesh is None:
        mesh = _mesh(config, devices)
    family = resolve.module("model", config.model.family)
    if config.objective.name not in family.OBJECTIVES:
        raise ValueError(
            f"objective.name={config.objective.name!r} does not train model.family="
            f"{config.model.family!r}, which learns by {', '.join(family.OBJECTIVES)}; "
            f"nearest: objective.name={family.OBJECTIVES[0]!r}"
        )
    model_config = configs.section(config, "model")
    attention, why = attention_of(config, mesh, model_config)
    rules = parallel.parse_rules(
        config.mesh.rules,
        config.mesh.sequence_parallel,
        microbatches=config.mesh.microbatches,
        schedule=config.mesh.schedule,
        rounds=config.mesh.rounds,
        attention=attention,
        dispatch=config.mesh.dispatch,
        reduce_dtype=config.mesh.reduce_dtype,
    )
    policy = precision.resolve(config.precision.policy, parallel.platform_of(mesh))
    task = Task(
        model=family.Model(model_config, dtype=policy.compute_dtype),
        example=family.example(model_config, 2),
        objective=resolve.module("objective", config.objective.name),
        objective_config=configs.section(config, "objective"),
        optimizer=optax.identity(),
        mesh=mesh,
        rules=rules,
        param_dtype=policy.param_dtype,
        loss_scale=policy.loss_scale,
        stochastic_rounding=policy.stochastic_rounding,
        tune=tune_of(config),
    )
    named = jax.eval_shape(lambda: task.variables(0))
    rows = scale.rows(config, model_config, named["params"], task.tune)
    shardings = parallel.shardings(mesh, check_task(config, task, named)["params"])
    (params, _), (places, _) = (task.tune.split(x) for x in (named["params"], shardings))
    transform, rate = optimizer.make(config.optimizer, config.train.steps, params, places, rows)
    task = dataclasses.replace(task, optimizer=transform, rows=rows)
    rule = resolve.module("rule", config.rule.name).Rule(configs.section(config, "rule"), task)
    notes = (f"attention over mesh.context={mesh.shape['context']}: {attention} ({why})",)
    return Run(config, rule, named, rate, notes if why else ())


def check_task(config: FrozenConfigDict, task: Task, named: Any) -> dict[str, Any]:
    """The partition of every variable on the task's mesh.

    named: the abstract variables, each `Named`.
    Raises ValueError where the mesh does not suit the weights, layers, batch or positions.
    """
    _check_pipeline(config, task, named)
    specs: dict[str, Any] = parallel.specs(named, task.rules, task.mesh)
    _check_batch(config, task.mesh)
    _check_context(config, task)
    return specs


def attention_of(config: FrozenConfigDict, mesh: jax.sharding.Mesh, model: Any) -> tuple[str, str]:
    """Ring or Ulysses, and why. A model says what it has in fields of its Config."""
    heads, kv_heads, in_order = (
        getattr(model, name, 0) for name in ("num_heads", "kv_heads", "in_order")
    )
    sizes = mesh.shape["context"], mesh.shape["tensor"]
    return choose(config.mesh.attention, *sizes, heads, kv_heads or heads, bool(in_order))


def _check_context(config: FrozenConfigDict, task: Task) -> None:
    """Refuse a context that has nothing to split, or does not divide the positions."""
    shards = task.mesh.shape["context"]
    if shards > 1 and not (task.is_sequence("inputs") or hasattr(task.model, "SEQUENCE")):
        raise ValueError(
            f"mesh.context={shards} has nothing to split: model.family={config.model.family!r} "
            f"with objective.name={config.objective.name!r} has no positions; "
            "nearest: mesh.context=1"
        )
    if "inputs" in task.objective.SEQUENCE:
        sequence.order(config.data.sequence_length, shards, task.rules.layout)


def _mesh(config: FrozenConfigDict, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    return parallel.make_mesh({axis: config.mesh[axis] for axis in parallel.AXES}, devices)


def _check_batch(config: FrozenConfigDict, mesh: jax.sharding.Mesh) -> None:
    """ValueError where the mesh does not divide the batch, or sequence parallelism its rows."""
    shards = 1
    for axis in parallel.BATCH_AXES:
        shards *= mesh.shape[axis]
    batch, micro = config.data.batch_size, config.rule.accumulate
    if batch % (shards * micro):
        nearest = max(round(batch / (shards * micro)), 1) * shards * micro
        raise ValueError(
            f"data.batch_size={batch} is not divisible by {shards} shards of the batch "
            f"x rule.accumulate={micro}; nearest that is: {nearest}"
        )
    tensor, context = mesh.shape["tensor"], mesh.shape["context"]
    length = config.data.sequence_length // context
    if config.mesh.sequence_parallel and tensor > 1 and length % tensor:
        raise ValueError(
            f"data.sequence_length={config.data.sequence_length} is not divisible by mesh.tensor="
            f"{tensor}{f' x mesh.context={context}' if context > 1 else ''}, over which sequence "
            f"parallelism splits it; nearest that is: {max(length // tensor, 1) * tensor * context}"
        )


def _check_pipeline(config: FrozenConfigDict, task: Task, variables: Any) -> None:
    """ValueError where `mesh.pipe` cannot do what is asked of it, before anything is compiled."""
    sizes, options = task.mesh.shape, config.mesh
    stages, parts = sizes["pipe"], options.microbatches
    if stages == 1:
        return
    schedule.check(options.schedule, stages, parts, options.rounds)
    kept = {name: tree for name, tree in variables.items() if name != "params"}
    named = jax.tree.leaves(variables["params"], is_leaf=is_named)
    depths = {x.value.shape[0] for x in named if is_named(x) and x.names[:1] == ("layers",)}
    if depths and jax.tree.leaves(kept):
        raise ValueError(
            f"mesh.pipe={stages}: a pipeline cannot update what layers keep beside their weights, "
            f"{', '.join(kept)} here (for experts: model.router_bias_rate=0 keeps nothing); "
            f"nearest: mesh.pipe=1"
        )
    if not depths or task.rules.axis("layers") != "pipe":
        raise ValueError(
            f"mesh.pipe={stages} splits stacked layers, and model.family={config.model.family!r} "
            f"has none with mesh.rules={options.rules!r}; nearest: mesh.pipe=1"
        )
    for depth in depths:
        schedule.check_layers(depth, stages, options.rounds)
    if options.schedule == "1f1b" and not hasattr(task.objective, "ONE_F_ONE_B"):
        raise ValueError(
            f"mesh.schedule='1f1b' needs an objective that gives a microbatch's gradient with its "
            f"loss, which {config.objective.name!r} does not; nearest: mesh.schedule='gpipe'"
        )
    if options.schedule == "1f1b" and task.loss_scale > 1:
        # Its backward pass is over when the loss gets its factor: small gradients are lost by then.
        raise ValueError(
            f"mesh.schedule='1f1b' cannot scale the loss, as "
            f"precision.policy={config.precision.policy!r} needs; nearest: mesh.schedule='gpipe'"
        )
    shards = math.prod(sizes[axis] for axis in parallel.BATCH_AXES)
    rows = config.data.batch_size // (shards * config.rule.accumulate)
    schedule.check_rows(rows, parts)
    if task.objective.SEQUENCE:
        split = sizes["context"] * (sizes["tensor"] if options.sequence_parallel else 1)
        shared = rows // parts if options.schedule == "1f1b" else rows
        schedule.shared_dim(shared, config.data.sequence_length // split, stages)


def open_data(config: FrozenConfigDict, split: str) -> Source:
    """One split of the config's data set, checked against the model.

    Raises FileNotFoundError with the command that prepares data that are not there.
    """
    source: Source = resolve.module("data", config.data.name).open_source(
        configs.section(config, "data"),
        split=split,
        sequence_length=config.data.sequence_length,
        directory=data_directory(config.data.dir),
    )
    _check_fit(config, source.spec)
    return source


def _check_fit(config: FrozenConfigDict, spec: Spec) -> None:
    objective = resolve.module("objective", config.objective.name)
    suited = objective.TASKS if hasattr(objective, "TASKS") else (config.objective.name,)
    if spec.task not in suited and spec.task in TASKS:
        raise ValueError(
            f"objective.name={config.objective.name!r} does not suit data set {spec.name!r}, "
            f"which is for {spec.task!r}; nearest: objective.name={spec.task!r}"
        )
    model = config.model
    tokens = spec.task in ("next_token", "sequence_to_sequence")
    for key in ("vocab_size",) if tokens else ("num_classes", "out_features"):
        if key in model and model[key] < spec.num_outputs:
            raise ValueError(
                f"model.{key}={model[key]} is too small for data set {spec.name!r}, which has "
                f"{spec.num_outputs}; nearest: {spec.num_outputs}"
            )
    limit, length = "context_length", config.data.sequence_length
    if limit in model and tokens and length > model[limit]:
        raise ValueError(
            f"data.sequence_length={length} is longer than "
            f"model.context_length={model[limit]}; nearest: {model[limit]}"
        )


def eval_rows(config: FrozenConfigDict) -> int:
    """Examples of a batch of evaluation."""
    rows: int = config.data.eval_batch_size or config.data.batch_size
    return rows


def loader(config: FrozenConfigDict, source: Source, train: bool) -> Loader:
    """Batches of one split: the rows that the devices of this process hold."""
    size = config.data.batch_size if train else eval_rows(config)
    alone = jax.process_count() == 1
    shares, share_count = ([0], 1) if alone else parallel.row_shares(_mesh(config))
    return Loader(
        source,
        batch_size=size,
        seed=config.seed if config.data.seed is None else config.data.seed,
        train=train,
        shares=shares,
        share_count=share_count,
        prefetch=config.data.prefetch,
    )
