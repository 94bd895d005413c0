"""Ours: the rule, the step and the loop over tokens that train and generate run."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import base
from launch.bench import jax_job
from launch.bench.job import Job
from launch.bench.workloads import B1, B2, CLIP, DECAY, EPS, RATE, Images, Numbers, Text
from launch.cluster import hardware
from launch.run import decode, optimizer, precision, state, step
from nn import parallel
from nn.analysis import flops
from nn.families import resnet, transformer
from nn.learning import backprop
from nn.learning.task import Task
from nn.objectives import classify, next_token

device = jax_job.device


def decoder(size: Text, where: str) -> Job:
    """A training step of the transformer family."""
    config = _config(size, size.length)
    tokens = size.tokens()
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "mask": np.ones((size.batch, size.length), np.float32),
    }
    model = transformer.Model(config, dtype=precision.resolve("auto").compute_dtype)
    example = transformer.example(config, size.batch)
    return _train(model, next_token, example, batch, where)


def resnet18(size: Images, where: str) -> Job:
    """A training step of the residual family, running statistics included."""
    config = dataclasses.replace(resnet.PRESETS["resnet18"], num_classes=size.classes)
    images, labels = size.examples()
    batch = {"inputs": images, "labels": labels, "mask": np.ones(size.batch, np.float32)}
    model = resnet.Model(config, dtype=precision.resolve("auto").compute_dtype)
    return _train(model, classify, (images[:1],), batch, where)


def generate(size: Text, where: str) -> Job:
    """A whole greedy generation after prompts of `length` tokens."""
    config = _config(size, size.length + size.new_tokens)
    dtype = precision.resolve("auto").compute_dtype
    model = transformer.Model(config, dtype=dtype)
    mesh, rules = _mesh(), parallel.Rules()
    named = jax.jit(model.init)(jax.random.key(0), *transformer.example(config, 1))
    specs = parallel.specs(named, rules, mesh)
    params = jax.tree.map(lambda x: x.astype(dtype), parallel.unbox(named)["params"])
    how = decode.Sampling(temperature=0)
    run = decode.compiled(model, mesh, rules, specs["params"], size.new_tokens, how)
    prompts = jnp.asarray(size.tokens()[:, :-1])
    lengths = jnp.full((size.batch,), size.length, jnp.int32)
    seed, rows = jax.random.key_data(jax.random.key(0)), jnp.arange(size.batch)
    return jax_job.function(
        lambda: run(params, prompts, lengths, seed, rows), where, jax_job.size_of(params)
    )


def matmul(size: Numbers, where: str) -> Job:
    """A product of two square matrices."""
    x = jnp.asarray(size.square(), jnp.float32 if where == "cpu" else jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    return jax_job.function(lambda: product(x, x), where)


def copy(size: Numbers, where: str) -> Job:
    """x + 1."""
    x = jnp.asarray(size.vector())
    add = jax.jit(lambda x: x + 1)
    return jax_job.function(lambda: add(x), where)


def _config(size: Text, positions: int) -> transformer.Config:
    return transformer.Config(
        vocab_size=size.vocabulary,
        context_length=positions,
        dim=size.dim,
        num_layers=size.layers,
        num_heads=size.heads,
        scan_unroll=0,
    )


def _mesh() -> jax.sharding.Mesh:
    return parallel.make_mesh({}, jax.devices()[:1])


def _train(model: Any, objective: Any, example: Any, batch: Any, where: str) -> Job:
    options = base.get_config().optimizer
    options.update(learning_rate=RATE, schedule="constant", clip_norm=CLIP)
    options.update(b1=B1, b2=B2, eps=EPS, weight_decay=DECAY)
    task = Task(model, example, objective, objective.Config(), optax.identity(), _mesh())
    params = jax.eval_shape(lambda: task.variables(0))["params"]
    chain, _ = optimizer.make(options, 1000, params)
    rule = backprop.Rule(backprop.Config(), dataclasses.replace(task, optimizer=chain))
    run = step.train_step(rule)

    def update(old: Any, batch: Any) -> Any:
        new, metrics = run(old, batch)
        return new, metrics["loss"]

    first, on_mesh = state.initial_state(rule, 0), step.to_mesh(rule, batch)
    counted = flops.count(rule.update, first, on_mesh)
    job = jax_job.trainer(update, first, on_mesh, where, jax_job.size_of(first.params))
    return dataclasses.replace(
        job,
        flops={"full": counted.total, "causal": counted.causal},
        peak=hardware.peak_flops(model.dtype),
        peak_note=hardware.peak_note(model.dtype),
    )
