"""From a resolved config to the objects of a run: mesh, learning rule, data."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax
from ml_collections import FrozenConfigDict

from launch.data.loader import Loader
from launch.data.source import Source, Spec, data_directory
from launch.run import config as configs
from launch.run import optimizer, precision, resolve
from nn import parallel
from nn.learning.task import Task


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop needs. rate: step -> learning rate."""

    config: FrozenConfigDict
    rule: Any
    rate: optax.Schedule


def build(config: FrozenConfigDict, devices: list[jax.Device] | None = None) -> Run:
    """Mesh, model, objective, optimizer and learning rule; nothing is computed yet.

    Raises:
      ValueError: a mesh that does not match the devices, a weight that the mesh does not divide,
        a batch that it does not divide; one line that names values and the nearest valid choice.
    """
    mesh = parallel.make_mesh({axis: config.mesh[axis] for axis in parallel.AXES}, devices)
    rules = parallel.parse_rules(
        config.mesh.rules,
        config.mesh.sequence_parallel,
        microbatches=config.mesh.microbatches,
        schedule=config.mesh.schedule,
        rounds=config.mesh.rounds,
        dispatch=config.mesh.dispatch,
    )
    family = resolve.module("model", config.model.family)
    model_config = configs.section(config, "model")
    policy = precision.resolve(config.precision.policy, mesh.devices.flat[0].platform)
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
    )
    params = jax.eval_shape(lambda: task.variables(0))["params"]
    transform, rate = optimizer.make(config.optimizer, config.train.steps, params)
    task = dataclasses.replace(task, optimizer=transform)
    rule = resolve.module("rule", config.rule.name).Rule(configs.section(config, "rule"), task)
    task.variable_specs()  # refuses sizes that the mesh does not divide
    _check_batch(config, mesh)
    return Run(config, rule, rate)


def _check_batch(config: FrozenConfigDict, mesh: jax.sharding.Mesh) -> None:
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
    length, tensor = config.data.sequence_length, mesh.shape["tensor"]
    if config.mesh.sequence_parallel and tensor > 1 and length % tensor:
        raise ValueError(
            f"data.sequence_length={length} is not divisible by mesh.tensor={tensor}, over which "
            f"sequence parallelism splits it; nearest that is: {max(length // tensor, 1) * tensor}"
        )


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
    if spec.task != config.objective.name and spec.task in ("classify", "regress", "next_token"):
        raise ValueError(
            f"objective.name={config.objective.name!r} does not suit data set {spec.name!r}, "
            f"which is for {spec.task!r}; nearest: objective.name={spec.task!r}"
        )
    model = config.model
    for key in ("vocab_size", "num_classes", "out_features"):
        if key in model and model[key] < spec.num_outputs:
            raise ValueError(
                f"model.{key}={model[key]} is too small for data set {spec.name!r}, which has "
                f"{spec.num_outputs}; nearest: {spec.num_outputs}"
            )
    limit = "context_length"
    if limit in model and spec.task == "next_token" and spec.input_shape[0] > model[limit]:
        raise ValueError(
            f"data.sequence_length={spec.input_shape[0]} is longer than "
            f"model.context_length={model[limit]}; nearest: {model[limit]}"
        )


def loader(config: FrozenConfigDict, source: Source, train: bool) -> Loader:
    """Batches of one split for this process."""
    return Loader(
        source,
        batch_size=config.data.batch_size,
        seed=config.seed if config.data.seed is None else config.data.seed,
        train=train,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        prefetch=config.data.prefetch,
    )
