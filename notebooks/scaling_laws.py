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
# # Scaling laws
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tessera-nn/tessera/blob/main/notebooks/scaling_laws.ipynb)
#
# From a table of runs to a forecast with an interval, and the traps on the way: designs that
# determine nothing, optimisers that stop early, minima that were not seen. Then a study of your
# own: models of bytes, trained here in minutes.

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
# ## A table whose law is known
#
# Five budgets, seven sizes each, with the exponents of Hoffmann et al. 2022 and the noise of seeds.

# %%
import numpy as np
from matplotlib import pyplot as plt
from scipy import optimize

from launch.laws import analysis, plots, report
from nn.analysis import scaling_laws as laws
from nn.analysis.scaling_laws.constants import HOFFMANN
from nn.analysis.scaling_laws.table import Table

SMOKE = bool(os.environ.get("SMOKE"))  # everything in seconds, to test this notebook
STUDY = os.environ.get("TESSERA_STUDY", "")  # directory of a study that is finished


def table_of(ratios, noise=0.003, budgets=(1e18, 3e18, 1e19, 3e19, 1e20)):
    """Runs at multiples of 20 tokens per parameter's square root of compute."""
    rng, rows = np.random.default_rng(0), []
    for C in budgets:
        for ratio in ratios:
            N = np.sqrt(C / 6 / 20) * ratio
            D = C / 6 / N
            loss = HOFFMANN["E"] + HOFFMANN["A"] / N ** HOFFMANN["alpha"]
            loss += HOFFMANN["B"] / D ** HOFFMANN["beta"]
            L = loss * np.exp(noise * rng.normal())
            rows.append({"N": N, "D": D, "C": C, "L": L, "group": C})
    return Table.from_rows(rows)


table = table_of(np.geomspace(1 / 4, 4, 7))
made = analysis.analyse(table, form="chinchilla")
for name, interval in made.parametric.boot.parameters(0.9).items():
    ends = f"[{interval.low:.4g}, {interval.high:.4g}]"
    print(f"{name:>5} {interval.estimate:8.4g} {ends}  true {HOFFMANN[name]:.4g}")
print(report.verdict(made, report.check(made, table.filter("L < 0"), [1e21])))

# %%
figure, axes = plt.subplots(figsize=(7, 4.5))
groups = [table.columns["group"] == C for C in np.unique(table.columns["group"])]
minima = made.minima.fit.minima
parts = [
    plots.Slice(m.C, table.number("N")[rows], table.number("L")[rows], best=(m.N, m.L))
    for rows, m in zip(groups, minima, strict=True)
]
plots.isoflop(axes, parts, "all", "loss")

# %% [markdown]
# ## Trap: tokens in proportion to parameters
#
# With 20 tokens for every parameter there is one line through the plane of N and D. Any law along
# it fits, and says nothing about what lies beside it.

# %%
try:
    laws.fit_parametric(table_of([1.0, 1.01]))
except ValueError as error:
    print(error)

# %% [markdown]
# ## Trap: the mean in place of the sum
#
# The objective is a sum of Huber's losses of ln L, and small. Divided by the number of runs it is
# smaller still, and an optimiser whose tolerance is absolute stops where it stands.

# %%
view = table.view()


def objective(p, scale):
    a, b, e, alpha, beta = p
    terms = np.stack([a - alpha * np.log(view.N), b - beta * np.log(view.D), np.full(len(view), e)])
    r = np.abs(np.log(np.exp(terms).sum(0)) - np.log(view.L))
    return scale * np.where(r < 1e-3, 0.5 * r**2, 1e-3 * (r - 5e-4)).sum()


for name, scale in (("sum, scaled up", 1e4), ("sum", 1.0), ("mean", 1 / len(view))):
    found = optimize.minimize(objective, [5, 5, 0.5, 0.5, 0.5], scale, method="L-BFGS-B")
    left = objective(found.x, 1.0)
    print(f"{name:>14}: alpha {found.x[3]:.3f}, beta {found.x[4]:.3f}, sum of losses {left:.3e}")
fit = made.parametric.fit
print(
    f"{'here':>14}: alpha {fit.parameters['alpha']:.3f}, beta {fit.parameters['beta']:.3f}, ",
    end="",
)
print(f"sum of losses {fit.objective:.3e}, {fit.share:.0%} of {fit.starts} starts")

# %% [markdown]
# ## Trap: minima at the edge
#
# A parabola through points that all lie on one side of the minimum has a vertex too, an invented
# one.

# %%
try:
    laws.fit_isoflop(table_of(np.geomspace(2, 9, 7)))
except ValueError as error:
    print(error)

# %% [markdown]
# ## A study of your own
#
# `experiments/scaling_bytes.py` trains models of bytes with one hidden layer at four budgets, each
# slice around the minimum that the ones before it forecast, and holds the largest budget out. The
# same command goes on where it was stopped.

# %%
from launch import scaling

directory = STUDY or "study"
if not STUDY:
    command = [
        "run",
        "--config=experiments/scaling_bytes.py",
        f"--workdir={directory}",
        "--slots=2",
    ]
    if SMOKE:
        command += ["--study.budgets=2e8,4e8", "--study.held_out=8e8", "--study.min_steps=10"]
        command += ["--study.widths=4,6,8,12,16,24,32", "--study.points=5", "--study.span=3"]
        command += ["--study.noise_seeds=1", "--study.held_out_points=2"]
        command += ["--config.data.eval_batches=1", "--no-report"]
    scaling.main(command)
if not SMOKE:
    scaling.main(["report", f"--workdir={directory}"])
_ = scaling.main(["status", f"--workdir={directory}"])

# %%
from IPython import display as shown

if not SMOKE:
    shown.display(shown.Markdown(filename=f"{directory}/report/report.md"))
    for name in ("isoflop", "laws", "sensitivity"):
        shown.display(shown.Image(f"{directory}/report/{name}.png"))
