"""`launch.train`, `evaluate` and `generate` as a user runs them."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import tokenizers
from safetensors.numpy import save_file

from launch import evaluate, generate, train
from launch.run import errors
from tests import golden_store
from tests.launch import runs
from tests.parity.decoders import file_of
from tests.parity.generation import NEW, STOP


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny decoder on all eight simulated devices, data-parallel."""
    workdir = tmp_path_factory.mktemp("runs") / "gpt"
    assert train.main(runs.arguments(workdir)) == errors.DONE
    return workdir


def test_a_run_leaves_what_is_documented(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "env.json", "status.json", "metrics.jsonl", "checkpoints"} <= names
    status = json.loads((finished / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 6)
    assert runs.curve(finished).keys() == set(range(1, 7))
    assert runs.curve(finished, "bits_per_byte", "validation").keys() == {3, 6}
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    loss = runs.curve(finished)
    assert loss[6] < loss[1] < 1.05 * math.log(256)


def test_running_again_is_done_at_once_and_changes_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = runs.digests(finished)
    assert train.main(runs.arguments(finished)) == errors.DONE
    assert "going on from step 6" in capsys.readouterr().out
    assert runs.digests(finished) == before


@pytest.mark.parametrize(
    "mesh",
    [
        {"fsdp": 4, "tensor": 2},
        pytest.param({"tensor": 8}, marks=pytest.mark.slow),
        {"pipe": 2, "microbatches": 2, "schedule": "1f1b"},
    ],
)
def test_losses_do_not_depend_on_the_mesh(
    finished: Path, tmp_path: Path, mesh: dict[str, int | str]
) -> None:
    sizes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    assert train.main(runs.arguments(tmp_path / "other", **sizes)) == errors.DONE
    assert runs.relative(runs.curve(tmp_path / "other"), runs.curve(finished)) < 1e-5


@pytest.fixture
def fast_environment(user_environment: dict[str, str]) -> dict[str, str]:
    return {**user_environment, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def test_a_killed_run_ends_bitwise_as_one_that_was_not(
    tmp_path: Path, fast_environment: dict[str, str]
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = runs.command("train", *runs.arguments(straight), environment=fast_environment)
    assert done.returncode == 0, done.stderr
    killed = runs.command(
        "train", *runs.arguments(broken), environment={**fast_environment, "FAULT": "kill@5"}
    )
    assert killed.returncode == -signal.SIGKILL
    again = runs.command("train", *runs.arguments(broken), environment=fast_environment)
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stdout
    assert runs.digests(broken) == runs.digests(straight)
    assert runs.curve(broken) == runs.curve(straight)


@pytest.mark.slow
def test_a_checkpoint_of_one_device_goes_on_on_other_meshes(
    tmp_path: Path, fast_environment: dict[str, str]
) -> None:
    straight = tmp_path / "straight"
    done = runs.command("train", *runs.arguments(straight), environment=fast_environment)
    assert done.returncode == 0, done.stderr
    longer = {"train__steps": 9}
    reference = None
    for mesh in (
        [],
        ["--simulate=8", "--config.mesh.fsdp=4", "--config.mesh.tensor=2"],
        ["--simulate=8", "--config.mesh.tensor=8"],
    ):
        workdir = tmp_path / f"mesh{len(mesh)}"
        _copy(straight, workdir)
        done = runs.command(
            "train", *runs.arguments(workdir, **longer), *mesh, environment=fast_environment
        )
        assert done.returncode == 0, done.stderr
        losses = {s: v for s, v in runs.curve(workdir).items() if s > 6}
        assert losses.keys() == {7, 8, 9}
        reference = reference or losses
        assert runs.relative(losses, reference) < 1e-5


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)
    (target / "lock").unlink(missing_ok=True)


def test_a_terminated_run_saves_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "sigterm@3")
    assert train.main(runs.arguments(tmp_path / "run", "digits_mlp")) == errors.PREEMPTED
    assert runs.digests(tmp_path / "run")["step"] == 3
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "preempted"


def test_one_bad_batch_is_skipped_and_many_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "nan@3")
    assert train.main(runs.arguments(tmp_path / "one", "digits_mlp")) == errors.DONE
    assert runs.curve(tmp_path / "one", "skipped")[3] == 1
    assert runs.curve(tmp_path / "one")[3] is None
    monkeypatch.setenv("FAULT", "nan@3-6")
    code = train.main(runs.arguments(tmp_path / "many", "digits_mlp", rule__max_skipped=2))
    assert code == errors.NON_FINITE
    assert runs.digests(tmp_path / "many")["step"] == 2


def test_evaluate(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    evaluate.main([f"--workdir={finished}", "--split=validation", f"--json={out}"])
    result = json.loads(out.read_text())
    stored = runs.curve(finished, "loss", "validation")[6]
    assert result["step"] == 6
    assert result["loss"] == pytest.approx(stored, rel=1e-6)
    assert 3 < result["bigram_bits_per_byte"] < 5  # of a few rows


def test_evaluate_refuses_a_place_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([f"--workdir={tmp_path}", "--json=no/such/x.json"])
    assert stopped.value.code == errors.BAD_INPUT
    assert "--json=no/such/x.json: no directory" in capsys.readouterr().err


def test_generate_is_the_same_on_every_mesh(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for mesh in ("data=8", "tensor=8", "fsdp=4", "pipe=2"):
        prompts = ["--prompt=def f(", "--prompt=import numpy", "--length=8", "--seed=3"]
        generate.main([f"--workdir={finished}", *prompts, f"--config.mesh.{mesh}"])
        text = capsys.readouterr().out
        outputs.append(text[: text.rindex("-" * 40)])
    assert outputs == [outputs[0]] * 4
    assert outputs[0].startswith("def f(")


def test_generate_in_every_way(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Streamed, or with a draft, the greedy text is the same; figures are printed and written."""
    out = tmp_path / "made.json"
    plain = [f"--workdir={finished}", "--prompt=def f(", "--prompt=é", "--length=12"]
    texts = []
    for more in (
        ["--greedy", f"--json={out}"],
        ["--greedy", "--stream"],
        ["--greedy", "--stream", f"--draft={finished}", "--draft-length=2"],
    ):
        generate.main([*plain, *more])
        text, _, last = capsys.readouterr().out.rpartition("-" * 40)
        texts.append(text)
        assert "GB/s of weights and cache" in last and "step 6" in last
        assert ("100 % of the draft kept" in last) == (len(more) == 4)
    assert texts == [texts[0]] * 3
    made = json.loads(out.read_text())
    assert [row["prompt"] for row in made["completions"]] == ["def f(", "é"]
    assert all(row["prompt"] + row["text"] in texts[0] for row in made["completions"])
    assert made["new_tokens"] == 24 == sum(len(row["tokens"]) for row in made["completions"])
    assert made["bytes_per_second"] > 0 and made["bandwidth_share"] is None
    generate.main([*plain, "--num-beams=3", "--repetition-penalty=1.5", "--min-p=0.1"])
    assert capsys.readouterr().out.partition("-" * 40)[0] not in texts[0]


def test_generate_from_published_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the tokeniser that lies beside them; the tokens are those of transformers."""
    record = golden_store.load("generation.llama")
    words = {f"w{i}": i for i in range(41)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(record.about["config"]))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": list(STOP)}))
    save_file(file_of(record), tmp_path / "model.safetensors")
    prompts = record.inputs["prompts"]
    rows = [row[:n] for row, n in zip(prompts, record.inputs["lengths"], strict=True)]
    given = [f"--prompt={' '.join(f'w{token}' for token in row)}" for row in rows]
    out = tmp_path / "made.json"
    for more, mode in (
        (["--greedy", "--config.mesh.tensor=2"], "greedy"),
        (["--num-beams=3"], "beams"),
    ):
        common = [f"--pretrained={tmp_path}", f"--length={NEW}", f"--json={out}"]
        generate.main([*common, *given, *more])
        made = json.loads(out.read_text())["completions"]
        for row, expected in zip(made, record.outputs[mode], strict=True):
            tokens = expected[expected >= 0].tolist()
            assert row["tokens"] == tokens
            assert row["text"].split() == [f"w{token}" for token in tokens]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(SystemExit):
        generate.main([*common, *given])
    assert "model.vocab_size=41: text needs the 256 bytes" in capsys.readouterr().err


GENERATE_BAD = {
    "no model": ([], "give one of --workdir and --pretrained"),
    "stream of beams": (["--num-beams=2", "--stream"], "nearest: one of the two"),
    "drawn beams": (["--num-beams=2", "--temperature=1"], "nearest: temperature=0"),
    "beams": (["--num-beams=0"], "beams=0: must be 1 (no beam search) or more"),
    "JSON": (["--json=nowhere/made.json"], "--json=nowhere/made.json: no directory"),
    "tokeniser": (["--tokenizer=nowhere"], "no tokeniser there; looked for tokenizer.json"),
    "draft": (["--draft=nowhere"], "nowhere"),
    "draft of beams": (["--draft=RUN", "--num-beams=2"], "with a draft model: must be 1"),
    "draft length": (["--draft=RUN", "--draft-length=0"], "--draft-length=0: must be at least 1"),
}


@pytest.mark.parametrize("name", GENERATE_BAD)
def test_bad_wishes_are_refused(
    name: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, message = GENERATE_BAD[name]
    flags = [flag.replace("RUN", str(finished)) for flag in flags]
    with pytest.raises(SystemExit) as end:
        generate.main([*([f"--workdir={finished}"] if flags else []), "--length=4", *flags])
    assert end.value.code == errors.BAD_INPUT
    assert message in capsys.readouterr().err


BAD = {
    "unknown key": (["--config.optimizer.learning_rte=1"], "nearest: 'optimizer.learning_rate'"),
    "wrong type": (["--config.train.steps=many"], "must be a whole number"),
    "NaN": (["--config.optimizer.learning_rate=nan"], "must be finite"),
    "negative rate": (["--config.optimizer.learning_rate=-1"], "must be above 0"),
    "heads": (["--config.model.num_heads=5"], "does not divide model.dim=32; nearest"),
    "mesh": (["--config.mesh.fsdp=3"], "nearest mesh that fits"),
    "tensor": (
        ["--config.mesh.tensor=8", "--config.model.num_heads=4", "--config.model.num_kv_heads=4"],
        "is not divisible by mesh.tensor=8",
    ),
    "batch": (["--config.data.batch_size=12"], "not divisible by 8 shards"),
    "stages": (["--config.mesh.pipe=8"], "2 layers cannot be cut into mesh.pipe=8 equal pieces"),
    "microbatches": (
        ["--config.mesh.pipe=2", "--config.mesh.microbatches=8"],
        "does not divide the 4 rows of a device; nearest that does: 4",
    ),
    "statistics in a pipeline": (
        [
            *("--config.mesh.pipe=2", "--config.model.num_experts=4"),
            "--config.model.router_bias_rate=0.1",
        ],
        "a pipeline cannot update what layers keep beside their weights, statistics here",
    ),
    "data set": (["--config.data.name=pyhton_source"], "nearest: 'python_source'"),
    "missing data": (
        ["--config.data.name=tfds", "--config.data.dataset=imagenet2012"],
        "download_and_prepare",
    ),
    "context": (["--config.data.sequence_length=128"], "must be at most model.context_length=64"),
    "objective": (["--config.objective.name=classify"], "nearest: objective.name='next_token'"),
    "experiment": (["--config=experiments/bytes_gtp.py"], "nearest: 'experiments/bytes_gpt.py'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, words = BAD[case]
    with pytest.raises(SystemExit) as end:
        train.main([*runs.arguments(tmp_path / "run"), *flags])
    error = capsys.readouterr().err
    assert end.value.code == errors.BAD_INPUT
    assert error.startswith("error: ") and error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "run").exists()


def test_an_unwritable_work_directory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        train.main(runs.arguments(tmp_path / "file" / "run"))
    assert end.value.code == errors.BAD_INPUT
    assert "is a file; name a directory" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train.main(runs.arguments(finished, model__mlp_dim=96))
    assert end.value.code == errors.BAD_INPUT
    assert "model.mlp_dim was 64, is 96" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main([f"--workdir={finished}", "--config.model.mlp_dim=96"])
    assert "is of another model" in capsys.readouterr().err


def test_a_prompt_longer_than_the_context_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        generate.main([f"--workdir={finished}", f"--prompt={'x' * 70}", "--length=8"])
    assert end.value.code == errors.BAD_INPUT
    assert "exceed model.context_length=64; nearest: a prompt of 56" in capsys.readouterr().err


def test_a_directory_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        generate.main([f"--workdir={tmp_path}", "--prompt=x"])
    assert end.value.code == errors.BAD_INPUT
    assert "no run there" in capsys.readouterr().err
