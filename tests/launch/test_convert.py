"""`launch.convert` and `model.pretrained` as a user meets them, on tiny published directories."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import convert, evaluate, generate, train
from launch.bench import outputs
from launch.run import errors, pretrained, restore
from launch.run.checkpoint import read_metadata
from launch.run.safetensors_files import SINGLE, Tensors
from nn.learning import tune
from nn.pretrained import find, to_ours
from nn.pretrained.table import Leaf
from tests.launch import published, runs

SHORT = (
    *("--config.data.batch_size=8", "--config.data.sequence_length=16"),
    *("--config.data.eval_batches=1", "--config.train.eval_every=0"),
    *("--config.train.steps=1", "--config.metrics.tensorboard=false"),
)


def refused(capsys: pytest.CaptureFixture[str], command: Any, *arguments: str) -> str:
    """The one line that a command says before it ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command.main(list(arguments))
    assert end.value.code == errors.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    return line


def same(a: Any, b: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(np.array_equal, a, b)))


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16, in several files."""
    directory = tmp_path_factory.mktemp("published") / "llama"
    published.write_bytes_llama(directory, jnp.bfloat16, shard_size=10_000)
    assert not (directory / SINGLE).exists()
    return directory


@pytest.fixture(scope="module")
def imported(bfloat16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "llama"
    assert convert.main(["import", f"--from={bfloat16}", f"--to={workdir}", *SHORT]) == 0
    return workdir


def test_import_and_export_give_the_same_bytes(imported: Path, bfloat16: Path) -> None:
    target = imported.parent / "exported"
    arguments = ["export", f"--from={imported}", f"--to={target}", "--shard-size=10KB"]
    assert convert.main(arguments) == 0
    assert published.same_bytes(Tensors(target), Tensors(bfloat16))
    raw, old = (json.loads((d / "config.json").read_text()) for d in (target, bfloat16))
    assert raw["dtype"] == "bfloat16"
    assert {key: old[key] for key in raw if key in old and old[key] is not None} == {
        key: raw[key] for key in raw if key in old and old[key] is not None
    }
    assert len(list(target.glob("model-*.safetensors"))) > 1


def test_export_in_another_dtype(imported: Path, bfloat16: Path, tmp_path: Path) -> None:
    arguments = ["export", f"--from={imported}", f"--to={tmp_path / 'x'}", "--dtype=float32"]
    assert convert.main(arguments) == 0
    wide = {name: x.astype(np.float32) for name, x in Tensors(bfloat16).items()}
    assert published.same_bytes(Tensors(tmp_path / "x"), wide)
    assert json.loads((tmp_path / "x" / "config.json").read_text())["dtype"] == "float32"


def test_an_imported_run_is_evaluated_and_goes_on(
    imported: Path, bfloat16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(imported, workdir)
    keys = ["--config.mesh.tensor=2", "--config.data.eval_batches=1"]
    assert evaluate.main([f"--workdir={workdir}", "--split=validation", *keys]) == 0
    assert "step 0" in capsys.readouterr().out
    assert train.main([f"--workdir={workdir}"]) == errors.DONE
    assert "going on from step 0" in capsys.readouterr().out
    assert runs.digests(workdir)["step"] == 1
    # What was trained is written as what was imported.
    assert convert.main(["export", f"--from={workdir}", f"--to={tmp_path / 'new'}"]) == 0
    new, old = Tensors(tmp_path / "new"), Tensors(bfloat16)
    assert {n: x.dtype for n, x in new.items()} == {n: x.dtype for n, x in old.items()}
    assert not published.same_bytes(new, old)


@pytest.mark.parametrize("record", ["decoders.gpt2", "decoders.mixtral", "resnets.bottleneck"])
@pytest.mark.parametrize("chunk", [pretrained.CHUNK, 64])
def test_eight_devices_read_what_one_would(
    record: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared out or copied, in one piece or in many, with statistics: equal to the whole file."""
    monkeypatch.setattr(pretrained, "CHUNK", chunk)
    tensors = published.write(tmp_path / "x", record)
    mesh = {"gpt2": ["fsdp=2"], "mixtral": ["fsdp=2", "tensor=2"], "bottleneck": []}
    sizes = mesh[record.partition(".")[2]]
    run = pretrained.run_of(str(tmp_path / "x"), [f"mesh.{size}" for size in sizes])
    found = pretrained.variables(str(tmp_path / "x"), run)
    raw = json.loads((tmp_path / "x" / "config.json").read_text())
    format_ = find(raw["model_type"])
    whole = to_ours(format_, tensors, format_.config_from(raw))
    assert same(found, whole if "params" in whole else {"params": whole})
    split = any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(found))
    assert split == bool(sizes)


def test_a_part_is_read_once_however_many_devices_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.write_bytes_llama(tmp_path / "x", np.float32)
    run = pretrained.run_of(str(tmp_path / "x"), ["mesh.tensor=2"])
    reads: list[str] = []
    read = Leaf.read
    monkeypatch.setattr(
        Leaf, "read", lambda leaf, *a: (reads.append(leaf.row.ours[leaf.place]), read(leaf, *a))[1]
    )
    pretrained.variables(str(tmp_path / "x"), run)
    assert reads.count("final_norm/scale") == 1  # held by all eight
    assert reads.count("blocks/attention/query_kernel") == 2  # in two halves, by four each


def test_parameters_take_the_precision_of_the_run(bfloat16: Path) -> None:
    for policy, dtype in (("float32", jnp.float32), ("bfloat16_params", jnp.bfloat16)):
        _, state = pretrained.load(str(bfloat16), [f"precision.policy={policy}"])
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(dtype)}
        assert not jax.tree.leaves(state.opt_state)[1:]  # no room for moments
        x = np.asarray(state.params["final_norm"]["scale"])
        expected = Tensors(bfloat16)["model.norm.weight"].astype(dtype)
        np.testing.assert_array_equal(x, expected, strict=True)


def test_a_run_starts_from_a_directory_and_resumes_from_its_checkpoint(
    bfloat16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "published"
    shutil.copytree(bfloat16, directory)
    keys = [
        f"--config.model.pretrained={directory}",
        *SHORT,
        "--config.optimizer.learning_rate=1e-9",
    ]
    arguments = ["--config=experiments/bytes_gpt.py", f"--workdir={tmp_path / 'run'}", *keys]
    arguments += ["--config.optimizer.warmup_steps=0", "--config.sample.length=0"]
    assert train.main(arguments) == errors.DONE
    run = restore.run_of(str(tmp_path / "run"))
    state, _ = restore.state_of(run, str(tmp_path / "run"))
    first = pretrained.first_state(run)
    assert int(state.step) == 1
    close = jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), state.params, first.params)
    assert jax.tree.all(close)
    for path in directory.glob("*.safetensors"):
        path.unlink()  # the weights are needed no more
    capsys.readouterr()
    assert train.main([*arguments, "--config.train.steps=2"]) == errors.DONE
    assert "going on from step 1" in capsys.readouterr().out
    assert read_metadata(tmp_path / "run" / "checkpoints")["pretrained"]["dtype"] == "bfloat16"


def test_text_is_generated_from_an_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published.write_bytes_llama(tmp_path / "x", np.float32)
    assert convert.main(["import", f"--from={tmp_path / 'x'}", f"--to={tmp_path / 'run'}"]) == 0
    generate.main([f"--workdir={tmp_path / 'run'}", "--prompt=\t\n", "--length=4", "--greedy"])
    assert "4 tokens" in capsys.readouterr().out


def test_check_computes_on_a_mesh_what_one_device_computes(bfloat16: Path) -> None:
    exact = ["precision.policy=float32"]
    alone = pretrained.run_of(str(bfloat16), exact)
    spread = pretrained.run_of(str(bfloat16), [*exact, "mesh.tensor=2", "mesh.fsdp=4"])
    _, a = outputs.ours(alone)
    _, b = outputs.ours(spread)
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_check_says_what_it_compared_with(
    bfloat16: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outputs, "installed", lambda: False)
    assert convert.main(["check", f"--from={bfloat16}"]) == 0
    assert "compared with nothing: transformers and torch are not" in capsys.readouterr().out
    monkeypatch.setattr(outputs, "installed", lambda: True)
    for off, verdict, code in ((1e-7, ": the same", 0), (1e-2, ": not the same", 1)):
        monkeypatch.setattr(
            outputs, "theirs", lambda d, x, shape, off=off: ours_plus(bfloat16, off)
        )
        assert convert.main(["check", f"--from={bfloat16}"]) == code
        assert verdict in capsys.readouterr().out


def ours_plus(directory: Path, off: float) -> np.ndarray:
    _, found = outputs.ours(pretrained.run_of(str(directory), ["precision.policy=float32"]))
    return found + off * np.abs(found).max()


def damaged(directory: Path, **changes: np.ndarray | None) -> Path:
    """A copy with tensors changed, added, or (None) left out."""
    tensors = published.write(directory) | changes
    shutil.rmtree(directory)
    kept = {name: x for name, x in tensors.items() if x is not None}
    sizes = {name: (x.shape, x.dtype) for name, x in kept.items()}
    raw = published.golden_store.load("decoders.llama").about["config"]
    published.safetensors_files.write(directory, raw, sizes, kept.items(), 10**9)
    return directory


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": None}, "missing tensor 'model.norm.weight'"),
        ({"model.norm.bias": np.zeros(20)}, "unknown tensor 'model.norm.bias'; nearest: 'model."),
        ({"model.norm.weight": np.zeros(21)}, "has shape (21,); the config makes it (20,)"),
    ],
)
def test_other_tensors_are_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = damaged(tmp_path / "x", **changes)
    line = refused(capsys, convert, "import", f"--from={source}", f"--to={tmp_path / 'run'}")
    assert line.startswith(f"error: {source}: ")
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import"], "import needs --to"),
        (["check", "--to=x"], "check takes no --to"),
        (["import", "--to=x", "--dtype=bfloat16"], "--dtype is for export, not import"),
        (["import", "--to=x", "--family=resnet"], "--family='resnet' does not fit .*'transformer'"),
        (["import", "--to=x", "--config.model.dim=8"], "model.dim=8 contradicts .*; nearest: 16"),
        (["export", "--to=x"], "is published already; name the work directory of a run"),
        (["export", "--to=x", "--shard-size=big"], "--shard-size=big: must be bytes"),
        (["exprt", "--to=x"], "invalid choice: 'exprt'"),
    ],
)
def test_wrong_arguments(
    arguments: list[str],
    message: str,
    bfloat16: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, convert, *arguments, f"--from={bfloat16}")
    assert re.search(message, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dtype=float8"], "unknown --dtype 'float8': choose from bfloat16, float16, float32"),
        (["--model-type=gpt2"], "no published format can hold this model. gpt2: "),
        (["--family=resnet"], "--family='resnet' is not that of the run; nearest: 'transformer'"),
        (["--step=5"], "no checkpoint of step 5 in"),
        (["--config=experiments/bytes_gpt.py"], "--config is that of the run in --from"),
    ],
)
def test_exports_that_are_refused(
    more: list[str],
    message: str,
    imported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "new"
    assert message in refused(
        capsys, convert, "export", f"--from={imported}", f"--to={target}", *more
    )
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken(
    imported: Path, bfloat16: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, convert, "export", f"--from={imported}", f"--to={bfloat16}")
    assert "is not empty: name a directory that is not there yet" in line
    line = refused(capsys, convert, "import", f"--from={bfloat16}", f"--to={imported}", *SHORT)
    assert "holds checkpoints: name a directory that is not there" in line


def test_published_weights_are_tuned_by_factors_beside_them(bfloat16: Path) -> None:
    run = pretrained.run_of(str(bfloat16), ["tune.lora_rank=2", "mesh.tensor=2", "mesh.fsdp=2"])
    params = pretrained.first_state(run).params
    own, factors = tune.without_factors(params)
    assert len(jax.tree.leaves(factors)) == 3 * 7  # of the projections of a Llama
    assert same(own, pretrained.first_state(pretrained.run_of(str(bfloat16))).params)


def test_a_run_starts_from_one_thing(
    bfloat16: Path, imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = (f"--config.model.pretrained={bfloat16}", f"--config.tune.base={imported}")
    config = ("--config=experiments/bytes_gpt.py", f"--workdir={tmp_path / 'run'}")
    line = refused(capsys, train, *config, *keys, *SHORT, "--config.optimizer.warmup_steps=0")
    assert "are both weights to start from" in line
