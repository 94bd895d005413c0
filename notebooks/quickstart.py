# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tessera in five minutes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tessera-nn/tessera/blob/main/notebooks/quickstart.ipynb)
#
# Train a small GPT on the bytes of Python's own standard library, look inside it, then spread it
# over eight devices without changing the model. Runs on a CPU, a GPU or a TPU.
#
# | folder | holds | imports |
# |---|---|---|
# | `nn` | layers, families, objectives, learning rules, the parallel core | JAX, Flax, Optax |
# | `launch` | the run: config, data, loop, checkpoints, metrics, processes | `nn` |
# | `experiments` | one short file per experiment: what it changes from the defaults | nothing |

# %% [markdown]
# ## Install
#
# Skipped where Tessera is installed. Otherwise the plugin for this machine's accelerator has to
# come with JAX, before JAX is imported: without it JAX would go on with the CPU.

# %%
import glob
import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

if os.environ.get("JAX_PLATFORMS") == "cpu":
    backend, extra = "cpu", ""
elif shutil.which("nvidia-smi") and subprocess.call(["nvidia-smi", "-L"]) == 0:
    backend, extra = "gpu", "[cuda12]"
elif glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
    backend, extra = "tpu", "[tpu]"
else:
    backend, extra = "cpu", ""

if not any(importlib.metadata.distributions(name="tessera")):
    assert "jax" not in sys.modules, (
        "JAX is in use already: restart the session, run this cell first"
    )
    roots = [
        path for path in (Path.cwd(), *Path.cwd().parents) if (path / "launch/train.py").exists()
    ]
    repository = "git+https://github.com/tessera-nn/tessera"
    target = f"{roots[0]}{extra}" if roots else f"tessera{extra} @ {repository}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", target], check=True)
    importlib.invalidate_caches()

# %% [markdown]
# One CPU can pose as eight, which is how a mesh is tried out before there is one. On an
# accelerator the eight stand beside the real devices.

# %%
import jax

from launch.cluster.distributed import simulate

if backend == "cpu":
    simulate(8)
else:
    jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")  # float32 means it, on any device

assert jax.default_backend() == backend, (
    f"JAX runs on the {jax.default_backend()}, this machine has a {backend}: install tessera{extra}"
)
print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {jax.device_count()} devices")

# %% [markdown]
# ## A run is a config
#
# An experiment is a file; overrides are those of the command line. What comes back is frozen and
# holds every key, checked. A slip is one line that names the nearest valid choice.

# %%
from launch.run import config as configs

SMOKE = bool(os.environ.get("SMOKE"))  # everything in seconds, to test this notebook
OVERRIDES = [
    *("model.num_layers=4", "data.sequence_length=128", "train.steps=250", "sample.length=200"),
    "precision.policy=float32",  # so that two meshes can be compared to the last digits, below
]
TOY = [
    *("model.dim=32", "model.mlp_dim=64", "model.num_layers=2", "data.sequence_length=32"),
    *("data.batch_size=8", "data.eval_batches=1", "train.steps=6", "optimizer.warmup_steps=2"),
    "sample.length=8",
]

config = configs.load("experiments/bytes_gpt.py", [*OVERRIDES, *(TOY if SMOKE else [])])
try:
    configs.override(config, ["model.activation=swigloo"])
except ValueError as error:
    print(error)

# %% [markdown]
# `build` makes the objects that the config names, and computes nothing yet. The model is plain
# Flax Linen, written for one device, one file from embedding to head:
# `nn/families/transformer/model.py`.

# %%
import flax.linen as linen

from launch.run.build import build

run = build(config, devices=jax.devices()[:1])
task = run.rule.task
summary = linen.tabulate(task.model, jax.random.key(0), depth=1, console_kwargs={"width": 130})
print(summary(*task.example))

# %% [markdown]
# ## Train
#
# A batch is a function of the seed and the step, so a run that is interrupted goes on with the
# same data. A learning rule has `init`, `update` and `evaluate`; `update` maps a state and a batch
# to the next state.

# %%
import math

from launch.run.build import loader, open_data
from launch.run.state import initial_state
from launch.run.step import to_mesh, train_step

batches = loader(config, open_data(config, "train"), train=True)


def train(run, steps):
    """The state after some steps, and the loss of each in bits per byte."""
    state, update, bits = initial_state(run.rule, config.seed), train_step(run.rule), []
    for step in range(steps):
        state, metrics = update(state, to_mesh(run.rule, batches.batch(step)))
        bits.append(float(metrics["loss"]) / math.log(2))  # the loss is in nats
        if step % 50 == 0:
            print(f"step {step:3d}  {bits[-1]:.3f} bits per byte")
    return state, bits


state, bits = train(run, config.train.steps)

# %% [markdown]
# The dashed line is a bigram model of the same bytes: below it, the network uses more than the
# last byte.

# %%
import matplotlib.pyplot as plt

from launch.run import report

bigram = report.baselines(run, "validation")["bigram_bits_per_byte"]

figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(bits, linewidth=1, label="GPT, training batches")
axes.axhline(bigram, color="gray", linestyle="--", label=f"bigram model, {bigram:.2f}")
axes.set(xlabel="step", ylabel="bits per byte")
axes.legend()
plt.show()

# %%
from launch.run.evaluation import Evaluation

held_out = loader(config, open_data(config, "validation"), train=False)
values = Evaluation(run).means(state, held_out)
print(f"validation: {values['bits_per_byte']:.3f} bits per byte, bigram model {bigram:.3f}")

# %%
print(report.sample(run, state))

# %% [markdown]
# ## Look inside
#
# Every layer sows its attention weights and the residual stream; asking for the collection
# `intermediates` returns them. The leading dimension counts layers, since the blocks are one scan.

# %%
import jax.numpy as jnp

text = b"def add(left, right):\n    return left"[: config.data.sequence_length]
tokens = jnp.asarray([list(text)])
_, sown = task.model.apply({"params": state.params}, tokens, mutable=["intermediates"])
(maps,) = sown["intermediates"]["blocks"]["attention"]["attention"]  # layer, row, head, query, key

heads = maps.shape[2]
figure, axes = plt.subplots(1, heads, figsize=(3 * heads, 3.4), layout="constrained")
for head in range(heads):
    axes[head].imshow(maps[-1, 0, head].astype(jnp.float32), cmap="magma")
    axes[head].set_title(f"last layer, head {head}", fontsize=9)
    letters = [repr(chr(byte))[1:-1] for byte in text]
    axes[head].set_xticks(range(len(text)), letters, fontsize=5)
    axes[head].set_yticks(range(len(text)), letters, fontsize=5)
plt.show()

# %% [markdown]
# ## One module, any mesh
#
# Each weight is born with the names of its dimensions, and one table says which mesh axis splits
# which name. So a mesh is two overrides: here the parameters are sharded four ways (`fsdp`) and
# the heads and hidden units two ways (`tensor`).

# %%
from launch.run.state import abstract_state

eight = jax.devices() if jax.device_count() == 8 else jax.devices("cpu")
spread = build(configs.override(config, ["mesh.fsdp=4", "mesh.tensor=2"]), eight)

print(f"{'parameter':36}{'shape':>18}{'on one device':>18}   split by")
for path, leaf in jax.tree.leaves_with_path(abstract_state(spread.rule).params):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    whole, part = (str(shape) for shape in (leaf.shape, leaf.sharding.shard_shape(leaf.shape)))
    print(f"{name:36}{whole:>18}{part:>18}   {tuple(leaf.sharding.spec)}")

# %% [markdown]
# The numbers do not depend on the mesh: not the initial values, not the data, not the gradients.
# Only the order of sums differs, hence the last digits.

# %%
spread_state, spread_bits = train(spread, 5)

print("step   one device   fsdp=4 x tensor=2   difference")
for step, (one, many) in enumerate(zip(bits, spread_bits, strict=False)):
    print(f"{step:4d}   {one:10.6f}   {many:17.6f}   {abs(one - many):10.1e}")
    assert abs(one / many - 1) < 1e-4

# %% [markdown]
# The embedding table as it lies on the eight devices:

# %%
jax.debug.visualize_array_sharding(spread_state.params["embed"]["embedding"])

# %% [markdown]
# ## From here
#
# The command line does all of this and more: checkpoints, exact resume, evaluation, metrics, many
# hosts.
#
# ```
# python -m launch.train    --config=experiments/bytes_gpt.py --workdir=runs/gpt
# python -m launch.train    --config=experiments/bytes_gpt.py --help  # every key and its meaning
# python -m launch.generate --workdir=runs/gpt --prompt='def main(' --length=200
# python -m launch.train    --config=experiments/bytes_gpt.py --workdir=runs/mesh \
#                           --simulate=8 --config.mesh.fsdp=4 --config.mesh.tensor=2
# ```
#
# To follow one training step: `launch/train.py`, `launch/run/loop.py`, `launch/run/step.py`,
# `nn/learning/backprop.py`, `nn/objectives/next_token.py`, `nn/families/transformer/model.py`,
# `nn/layers/attention.py`, `nn/parallel/tensor.py`.
