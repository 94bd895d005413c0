"""`launch.compile`: what it reports agrees with XLA and with what the step must do; its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from launch import compile as command
from launch.cluster import topology
from launch.cluster.hardware import CHIPS
from launch.run import aot, compile_report
from launch.run import config as configs
from launch.run.build import build
from tests import golden_compile
from tests.launch import runs

TINY = {
    "model.dim": 32,
    "model.num_layers": 2,
    "model.num_heads": 4,
    "model.num_kv_heads": 4,
    "model.mlp_dim": 64,
    "model.context_length": 32,
    "model.dropout": 0.0,
    "model.norm": "rms",
    "model.bias": "false",
    "model.position": "rotary",
    "model.tie_embeddings": "false",
    "model.remat": "block",
    "objective.chunks": 2,
    "data.batch_size": 16,
    "data.sequence_length": 32,
}
OURS = [f"--config.{key}={value}" for key, value in TINY.items()]


def report(**overrides: Any) -> dict[str, Any]:
    """Of the tiny decoder on the eight devices that every test sees."""
    values = TINY | {key.replace("__", "."): value for key, value in overrides.items()}
    config = configs.load("experiments/bytes_gpt.py", [f"{k}={v}" for k, v in values.items()])
    where = topology.parse("cpu:8")
    run = build(config, jax.devices())
    return compile_report.report(["python"], run, where, None, {})


def sent(found: dict[str, Any], axes: str, kind: str) -> tuple[int, int]:
    """Count and bytes of the collectives of a kind over `axes`."""
    rows = [r for r in found["collectives"] if ("+".join(r["axes"]), r["kind"]) == (axes, kind)]
    return sum(r["count"] for r in rows), sum(r["bytes"] for r in rows)


TRAFFIC: dict[str, dict[str, Any]] = {
    "fsdp": {"mesh__fsdp": 8},
    "data": {"mesh__data": 8},
    "fsdp-data": {"mesh__fsdp": 4, "mesh__data": 2},
    "tied": {"mesh__fsdp": 4, "mesh__data": 2, "model__tie_embeddings": "true"},
    "plain": {"mesh__fsdp": 4, "mesh__data": 2, "model__remat": "none"},
    "expert": {"mesh__expert": 2, "mesh__fsdp": 2, "mesh__data": 2, "model__num_experts": 4},
    "tensor": {"mesh__tensor": 2, "mesh__fsdp": 2, "mesh__data": 2},
    "whole-sequence": {
        "mesh__tensor": 2,
        "mesh__fsdp": 2,
        "mesh__data": 2,
        "mesh__sequence_parallel": "false",
    },
    "context": {"mesh__context": 2, "mesh__fsdp": 2, "mesh__data": 2},
}
AXES_OF_SUMS = {  # of the gradients of shares, and of vectors
    "fsdp": ["fsdp"],
    "data": ["data"],
    **{key: ["data", "data+fsdp"] for key in ("fsdp-data", "tied", "plain")},
    "expert": ["data", "data+expert", "data+fsdp+expert"],
    "tensor": ["data", "data+fsdp+tensor"],
    "whole-sequence": ["data", "data+fsdp"],
    "context": ["data+context", "data+fsdp+context"],
}


@pytest.mark.parametrize("name", TRAFFIC)
def test_what_parameters_send_is_what_the_formulas_say(name: str) -> None:
    """To the byte: all-gathers and reduce-scatters over fsdp, and sums over every set of axes.

    Beside the sums of vectors are those of the loss and, twice in forward and backward passes of
    each of two layers, what routers measure.
    """
    found = report(**TRAFFIC[name])
    rows = found["parameter_traffic"]
    scattered = [row["kind"] for row in rows if row["kind"] != "all-reduce"]
    assert scattered == (["all-gather", "reduce-scatter"] if "mesh__fsdp" in TRAFFIC[name] else [])
    summed = ["+".join(row["axes"]) for row in rows if row["kind"] == "all-reduce"]
    assert summed == AXES_OF_SUMS[name]
    for row in rows:
        seen = sent(found, "+".join(row["axes"]), row["kind"])[1]
        assert 0 <= seen - row["bytes"] <= (256 if "norms" in row["formula"] else 0), row
    if "mesh__tensor" not in TRAFFIC[name]:
        assert all("tensor" not in row["axes"] for row in found["collectives"])


def test_a_pipeline_has_no_formula_and_says_so() -> None:
    found = report(mesh__pipe=2, mesh__fsdp=4, mesh__microbatches=2)
    assert found["parameter_traffic"] == []
    assert compile_report.text(found).count("parameters: no formula, the stages of a pipeline") == 1
    assert sent(found, "fsdp", "all-gather")[0] > 0


def test_tensor_parallelism_sends_what_its_layers_do() -> None:
    """Sequence parallelism: two gathers and two scatters a layer, there and back, and the ends."""
    found = report(mesh__tensor=4, mesh__data=2, model__remat="none", objective__chunks=1)
    states = 8 * 32 * 32 * 4 * 3 // 4  # rows of a shard, positions, width, bytes
    for kind in ("all-gather", "reduce-scatter"):
        count, moved = sent(found, "tensor", kind)
        assert (count, moved) == (4 * 2 + 2, (4 * 2 + 2) * states)


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_memory_kinds_add_up_to_what_xla_says(policy: str) -> None:
    found = report(mesh__fsdp=4, mesh__data=2, precision__policy=policy)
    memory = found["memory"]
    assert memory["total"] == sum(memory[kind] for kind in compile_report.KINDS)
    assert memory["needed"] == memory["total"]
    weights = 8 * memory["parameters"] // 2  # two copies of each share
    assert memory["optimizer_state"] == 2 * memory["parameters"] + 8  # moments, two counters
    # Each of 4 shares: kernels a quarter, norm scales whole.
    kernels = 2 * 256 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64)
    assert weights // 4 == kernels // 4 * 4 + 5 * 32 * 4
    assert memory["batch"] == 5 * 2 * 32 * 4  # entries, rows, positions, bytes
    assert memory["padding"] == 0
    assert memory["temporaries"] > memory["parameters"]
    assert found["dtype"] == policy


@pytest.mark.slow
def test_flops_of_the_model_do_not_depend_on_remat_or_attention() -> None:
    tokens, weights = 16 * 32, 256 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64)
    attention = 3 * 2 * 2 * 16 * 4 * 32 * 32 * 8 * 2  # three passes, q k and its product with v
    wanted = 3 * 2 * tokens * weights + attention
    plain, again = report(model__remat="none", objective__chunks=1), report()
    for found in (plain, again):
        assert found["flops"]["model_attention_full"] == wanted
        assert found["flops"]["model_attention_causal"] == wanted - attention // 2
    assert again["flops"]["executed"] > plain["flops"]["executed"] == wanted
    long = report(data__sequence_length=256, model__context_length=256, model__remat="none")
    flops = long["flops"]  # here attention leaves out what causal rows cannot see
    assert flops["model_attention_full"] == 8 * 3 * 2 * tokens * weights + 64 * attention
    assert flops["executed"] < flops["model_attention_full"]


def test_command_writes_what_it_prints(tmp_path: Path, user_environment: dict[str, str]) -> None:
    path = tmp_path / "report.json"
    args = ["--config=experiments/bytes_gpt.py", *OURS, "--config.mesh.fsdp=4", f"--json={path}"]
    args += ["--topology=cpu:8", "--hardware=v5p"]
    done = runs.command("compile", *args, environment=user_environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    check_schema(found)
    assert found["topology"] == {"name": "cpu:8", "devices": 8, "memory": 95 * 2**30}
    assert found["fits"] and done.stdout.startswith("cpu:8: 8 devices, data=2 fsdp=4, float32\n")
    for words in ("fits: ", "optimizer state", "fsdp                all-gather", "compiled: "):
        assert words in done.stdout


def check_schema(found: dict[str, Any]) -> None:
    keys = {
        *("schema", "command", "config_digest", "topology", "mesh", "batch", "dtype", "versions"),
        *("compiler_options", "seconds", "fits", "problem", "memory", "flops"),
        *("parameter_traffic", "hbm_bytes", "intensity", "collectives"),
    }
    assert found.keys() - {"roofline"} == keys
    assert found["schema"] == compile_report.SCHEMA
    assert {*compile_report.KINDS, "total", "peak", "needed"} == found["memory"].keys()
    for row in found["collectives"]:
        assert row["bytes"] > 0 and 0 <= row["overlapped_count"] <= row["count"]
        assert row["overlapped_bytes"] <= row["bytes"] and row["axes"] != ["other"]


WRONG = {
    "--topology is needed": [],
    "3 sides of .*nearest: v5p:4x4x4": ["--topology=v5p:3x3x3"],
    "--hardware=gpu with --topology=v5p:4x4x4.*nearest: --hardware=tpu": [
        *("--topology=v5p:4x4x4", "--hardware=gpu")
    ],
    "only a cpu:N topology.*nearest: --hardware=v6e": ["--topology=v6e:4x4", "--hardware=v5p"],
    "only a cpu:N topology.*nearest: --hardware=v7x": ["--topology=7x:4x4x4", "--hardware=v5p"],
    "--json=no/such/x.json: no directory": ["--topology=cpu:8", "--json=no/such/x.json"],
    "unknown hardware 'v5x'": ["--topology=cpu:8", "--hardware=v5x"],
    "--xla: 'a' is not of the form flag=value": ["--topology=cpu:8", "--xla=a"],
    "mesh fsdp=3 needs a multiple of 3 devices": ["--topology=cpu:8", "--config.mesh.fsdp=3"],
    "No such compile option: 'xla_nope'": ["--topology=cpu:8", "--xla=xla_nope=true", *OURS],
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_are_one_line(
    message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology.distributed, "simulate", lambda count: None)
    with pytest.raises(SystemExit) as stopped:
        command.main(["--config=experiments/bytes_gpt.py", *WRONG[message]])
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)


def test_the_command_is_kept_without_the_place_of_the_report() -> None:
    words = ["--json", "a b.json", "--topology", "v5p:4x4x4", "--json=c.json", "--jsons"]
    assert command._kept(words) == ["--topology", "v5p:4x4x4", "--jsons"]


def test_experts_need_the_rows_that_there_are() -> None:
    """Not those that fill up blocks, by which a CPU computes them."""
    values = TINY | {"model.num_experts": 4, "model.experts_per_token": 2}
    config = configs.load("experiments/bytes_gpt.py", [f"{k}={v}" for k, v in values.items()])
    run = build(config, jax.devices()[:1])
    # Of a layer: attention, two experts, the router, and the sum of what the two found.
    weights = 256 * 32 + 2 * (4 * 32 * 32 + 2 * 3 * 32 * 64 + 32 * 4 + 2 * 32)
    attention = 3 * 2 * 2 * 16 * 4 * 32 * 32 * 8 * 2
    assert aot.model_flops(run, aot.abstract_batch(run)).total == (
        3 * 2 * 16 * 32 * weights + attention
    )


def test_flags_for_asynchronous_collectives_can_be_changed() -> None:
    assert aot.compiler_options("tpu", False, "") == {}
    on = aot.compiler_options("tpu", True, "xla_enable_async_all_gather=false,xla_n=3,xla_s=a")
    assert on == aot.ASYNC["tpu"] | {
        "xla_enable_async_all_gather": False,
        "xla_n": 3,
        "xla_s": "a",
    }


def test_a_step_that_does_not_fit_says_what_it_needs() -> None:
    """By the two messages of libtpu: of all that is used, or of what comes on top of arguments."""
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 43.5G of 31.25G hbm."
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (24.5G) exceeds available HBM (15.75G)."
    )
    run = small_run()
    found = aot.memory(run, {}, aot.Program(None, {}, used))
    assert found.pop("needed") == 43.5 * 2**30 and found["parameters"] > 0
    arguments = sum(found.values())
    found = aot.memory(run, {}, aot.Program(None, {}, temporaries))
    assert found["needed"] == 24.5 * 2**30 + arguments


def small_run() -> Any:
    config = configs.load("experiments/bytes_gpt.py", [f"{k}={v}" for k, v in TINY.items()])
    return build(config, jax.devices())


@pytest.mark.parametrize("name", golden_compile.REPORTS)
def test_kept_reports(name: str) -> None:
    """They are of the commands that make them, and the step fits."""
    path = golden_compile.GOLDEN / f"{name}.json"
    assert path.stat().st_size < 40_000
    found = json.loads(path.read_text())
    check_schema(found)
    assert found["command"][3:] == golden_compile.REPORTS[name]
    assert found["fits"] and found["memory"]["needed"] <= found["topology"]["memory"]
    where = topology.parse(found["topology"]["name"])
    assert found["topology"]["devices"] == where.size
    assert where.chip is CHIPS[where.kind]
    assert {"jax", "jaxlib"} <= found["versions"].keys()
    assert 0 < found["roofline"]["mfu"]["causal"] < found["roofline"]["mfu"]["full"] < 1


def test_more_chips_take_no_more_memory_and_send_what_the_formula_says() -> None:
    """The series of copies over data: 64, 256, 1024 and 4096 chips."""
    series = [
        json.loads((golden_compile.GOLDEN / f"llama3-8b.v5p-{n}.json").read_text())
        for n in (64, 256, 1024, 4096)
    ]
    needed = [found["memory"]["needed"] for found in series]
    assert max(needed) <= 1.01 * needed[0]
    for found in series:
        for row in found["parameter_traffic"]:
            seen = sent(found, "+".join(row["axes"]), row["kind"])[1]
            if row["kind"] == "reduce-scatter":  # some are made as all-reduces of twice the bytes
                seen += sent(found, "fsdp", "all-reduce")[1] // 2
            assert seen == pytest.approx(row["bytes"], rel=0.01)


@pytest.mark.compilers
@pytest.mark.parametrize("name", ["v5e:2x2", "h100:1x4"])
def test_compiles_for_accelerators_that_are_not_there(
    name: str, tmp_path: Path, user_environment: dict[str, str]
) -> None:
    path = tmp_path / "report.json"
    args = ["--config=experiments/bytes_gpt.py", *OURS, "--config.mesh.fsdp=4", f"--json={path}"]
    done = runs.command("compile", *args, f"--topology={name}", environment=user_environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    check_schema(found)
    assert found["fits"] and found["dtype"] == "bfloat16"
    assert sent(found, "fsdp", "all-gather")[0] + sent(found, "fsdp", "all-reduce")[0] > 0
    assert 0 < found["roofline"]["mfu"]["causal"] < 1
