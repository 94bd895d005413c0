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
# # Inside a transformer
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tessera-nn/tessera/blob/main/notebooks/transformers.ipynb)
#
# Attention patterns, the logit lens, activation patching and generation, for any decoder and
# without an edit of it. By default the model is a small one that learns to copy in front of your
# eyes, so that there is something to find; `MODEL` names a directory with published weights
# (`config.json` and safetensors of GPT-2, Llama and the like) to look into instead.

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
# ## A model
#
# The small one has two layers and reads rows of random letters that start again after `PERIOD` of
# them. What comes next is known from the second time on, to a model that finds it in the row.

# %%
import jax
import jax.numpy as jnp
import numpy as np

from launch.run import config as configs
from launch.run.build import build
from launch.run.state import initial_state
from launch.run.step import to_mesh, train_step

jax.config.update("jax_default_matmul_precision", "highest")  # float32 means it, on any device
SMOKE = bool(os.environ.get("SMOKE"))  # everything in seconds, to test this notebook
MODEL = os.environ.get("TESSERA_MODEL", "")
PERIOD, LENGTH = 12, 32


def letters(seed, rows):
    """Rows of random letters that repeat themselves, one letter longer than LENGTH."""
    words = np.random.default_rng(seed).integers(ord("a"), ord("z") + 1, (rows, PERIOD))
    return words[:, np.arange(LENGTH + 1) % PERIOD]


def learn_to_copy():
    sizes = {"num_layers": 2, "dim": 64, "num_heads": 4, "num_kv_heads": 4, "mlp_dim": 128}
    overrides = [f"model.{name}={value}" for name, value in sizes.items()]
    overrides += [
        f"data.sequence_length={LENGTH}",
        "data.batch_size=32",
        "precision.policy=float32",
    ]
    overrides += [f"train.steps={4 if SMOKE else 200}", "optimizer.learning_rate=0.004"]
    overrides += ["optimizer.warmup_steps=2", "optimizer.weight_decay=0.0"]
    config = configs.load("experiments/bytes_gpt.py", overrides)
    run = build(config, devices=jax.devices()[:1])
    state, update = initial_state(run.rule, config.seed), train_step(run.rule)
    mask = np.ones((config.data.batch_size, LENGTH), np.float32)
    for step in range(config.train.steps):
        rows = letters(step, config.data.batch_size).astype(np.int32)
        batch = {"inputs": rows[:, :-1], "targets": rows[:, 1:], "mask": mask}
        state, metrics = update(state, to_mesh(run.rule, batch))
        if step % 100 == 0 or step == config.train.steps - 1:
            print(f"step {step:3d}  loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.3f}")
    return run, state


if MODEL:
    from launch.run import pretrained

    run, state = pretrained.load(MODEL)
else:
    run, state = learn_to_copy()
model, variables = run.rule.task.model, {"params": run.rule.weights(state)}

# %% [markdown]
# Text becomes tokens by the `tokenizer.json` of the directory where there is one, and byte by byte
# otherwise. The second text differs from the first in one place, and so does what follows it.

# %%
from launch.run import sampling

tokenizer = sampling.tokenizer_of(run)
encode, decode = tokenizer.encode, tokenizer.decode

if MODEL:
    text = "When Mary and John went to the store, John gave a drink to"
    other = "When Mary and John went to the store, Mary gave a drink to"
else:
    text, other = "qwermylknjhpqwerm", "qwermzlknjhpqwerm"
tokens, other_tokens = (jnp.asarray([encode(line)]) for line in (text, other))
assert tokens.shape == other_tokens.shape, "the two texts need the same number of tokens"
labels = [repr(decode([int(token)]))[1:-1] for token in tokens[0]]

# %% [markdown]
# ## Attention patterns
#
# Every block sows its attention weights and the residual stream. `observe` runs the model and
# hands over what the run leaves, layers first, and the output of any module that is asked for.

# %%
import functools

from nn.analysis import interpret

MODULES = ("blocks", "blocks/attention", "blocks/mlp")
look = jax.jit(functools.partial(interpret.observe, model, modules=MODULES))
logits, left = look(variables, tokens)
other_logits, _ = look(variables, other_tokens)
for name, value in left.items():
    print(f"{name:28}{value.shape}")
next_token, other_token = (int(x[0, -1].argmax()) for x in (logits, other_logits))
print(f"{text!r} -> {decode([next_token])!r}, {other!r} -> {decode([other_token])!r}")

# %% [markdown]
# The two heads that look the most at one place each. In a row that starts again after 12 letters,
# what comes next stands 11 places back.

# %%
import matplotlib.pyplot as plt

attention = left["blocks/attention/attention"]  # layer, row, head, query, key
sharpness = np.asarray(attention[:, 0, :, 1:].max(axis=-1).mean(axis=-1))
chosen = np.dstack(np.unravel_index(np.argsort(-sharpness, axis=None)[:2], sharpness.shape))[0]

figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
for axis, (layer, head) in zip(axes, chosen, strict=True):
    axis.imshow(attention[layer, 0, head], cmap="magma", vmin=0, vmax=1)
    axis.set_title(f"layer {layer}, head {head}", fontsize=10)
    axis.set_xticks(range(len(labels)), labels, fontsize=7, rotation=90 if MODEL else 0)
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.set(xlabel="looks at", ylabel="from")
plt.show()

# %%
if not MODEL:
    rows = jnp.asarray(letters(10**6, 16)[:, :-1])
    seen = look(variables, rows)[1]["blocks/attention/attention"]
    print("share of attention that goes 11 places back, by layer and head:")
    print(np.round(interpret.stripe(seen, PERIOD - 1), 2))

# %% [markdown]
# ## Logit lens
#
# The final norm and the head read the residual stream after any layer as if it were the last:
# each cell shows the likeliest next token and its probability. The last row is the model itself.

# %%
lens = jax.jit(functools.partial(interpret.logit_lens, model))(variables, left["blocks/residual"])
np.testing.assert_allclose(lens[-1], logits, atol=1e-3)
probability = np.asarray(jax.nn.softmax(lens[:, 0].astype(jnp.float32)))
best = probability.argmax(axis=-1)

layers, width = best.shape
figure, axis = plt.subplots(figsize=(max(7, 0.6 * width), 1 + 0.5 * layers), layout="constrained")
image = axis.imshow(probability.max(axis=-1), cmap="viridis", vmin=0, vmax=1, aspect="auto")
for layer in range(layers):
    for place in range(width):
        word = repr(decode([int(best[layer, place])]))[1:-1]
        bright = probability[layer, place].max() > 0.6
        color = "black" if bright else "white"
        axis.text(place, layer, word, ha="center", va="center", fontsize=8, color=color)
axis.set_xticks(range(width), labels, fontsize=8, rotation=90 if MODEL else 0)
axis.set_yticks(range(layers), [f"after layer {layer}" for layer in range(layers)], fontsize=8)
axis.set_xlabel("input")
figure.colorbar(image, label="probability")
plt.show()

# %% [markdown]
# ## Activation patching
#
# The model reads the second text, but one activation, at one layer and position, is that of the
# first. 0: what follows is that of the second text, as if nothing had been patched; 1: it is that
# of the first. Patching the residual shows where the difference is; patching what one module
# writes shows who carries it on.

# %%
chosen_tokens = jnp.asarray([next_token, other_token])


def preference(logits):
    """How much the last position prefers the first text's next token to the second's."""
    first, second = logits[0, -1, chosen_tokens]
    return first - second


low, high = float(preference(other_logits)), float(preference(logits))
patch = jax.jit(
    lambda variables, source, module: interpret.sweep(
        model, variables, other_tokens, module=module, source=source, metric=preference
    ),
    static_argnames="module",
)
figure, axes = plt.subplots(3, 1, figsize=(8, 1.8 + 0.9 * layers), layout="constrained")
for axis, module in zip(axes, MODULES, strict=True):
    found = patch(variables, left[f"{module}/output"], module=module)
    effect = (np.asarray(found) - low) / (high - low or 1.0)
    image = axis.imshow(effect, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axis.set_title(f"output of {module}" if module != "blocks" else "residual stream", fontsize=9)
    axis.set_xticks(range(width), labels, fontsize=8, rotation=90 if MODEL else 0)
    axis.set_yticks(range(layers), range(layers), fontsize=8)
    axis.set_ylabel("layer")
figure.colorbar(image, ax=axes, label="effect")
plt.show()

# %% [markdown]
# Patching the residual of the last layer at the last position is the whole effect, whatever the
# model: nothing else reaches the logits there.

# %%
whole = patch(variables, left["blocks/output"], module="blocks")[-1, -1]
print(f"second text {low:.3f}, patched {float(whole):.3f}, first text {high:.3f}")
assert abs(float(whole) - high) < 1e-2

# %% [markdown]
# ## Generate
#
# One compiled loop with a cache of keys and values.

# %%
from launch.run.decode import Sampling

trained = sampling.of_run(run, variables["params"], tokenizer)
made = sampling.Generation(trained, [encode(text)], 15, Sampling(temperature=0)).complete(seed=0)
print(f"{text} -> {made.texts[0]}")
