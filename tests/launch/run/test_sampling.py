"""Completions on a mesh: the text, what is shown of it meanwhile, and the figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest

from launch.cluster import hardware
from launch.run import sampling, stream, text
from launch.run.logits import Sampling
from launch.run.sampling import Generation, Trained
from nn import parallel
from nn.families import neural_lm
from tests.launch.run.rows_of_tokens import Tiny, mesh_of

TINY = Tiny(vocab_size=256)
PROMPTS = ["def", "é", "imp"]
NEW = 19


def trained(tiny: Tiny = TINY, **sizes: int) -> Trained:
    mesh, specs = mesh_of(tiny.named, **sizes)
    params = jax.device_put(tiny.params, parallel.shardings(mesh, specs))
    return Trained(tiny.model, params, specs, mesh, parallel.Rules(), text.Bytes(256))


def generation(how: Sampling, model: Trained, **options: Any) -> Generation:
    rows = text.encode(model.tokenizer, PROMPTS, 256)
    return Generation(model, rows, NEW, how, **options)


@pytest.mark.parametrize("drafted", [False, True])
def test_what_is_shown_adds_up_to_what_is_returned(
    drafted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained(data=2)
    how = Sampling(temperature=0.9, stop=tuple(range(16)))
    made = generation(how, model, draft=model if drafted else None)
    rows = made.prompts
    whole = made.complete(seed=1)
    shown: list[tuple[list[int], list[bool]]] = []
    printer = stream.Printer(PROMPTS, rows, model.tokenizer)

    def show(new: list[list[int]], done: list[bool]) -> None:
        shown.append(([len(row) for row in new], done))
        printer(new, done)

    streamed = made.complete(seed=1, show=show)
    assert (streamed.texts, streamed.tokens) == (whole.texts, whole.tokens)
    assert capsys.readouterr().out == "".join(
        f"{prompt}{completion}\n{stream.RULE}\n"
        for prompt, completion in zip(PROMPTS, whole.texts, strict=True)
    )
    assert len(shown) >= 3 and shown[0][0] == [1, 1, 1]
    assert shown[-1] == ([len(row) for row in whole.tokens], [True] * 3)
    assert len({len(row) for row in whole.tokens}) > 1  # some stopped
    # A draft that is the model itself is kept whole.
    assert whole.accepted == (pytest.approx(1.0, abs=0.05) if drafted else None)
    assert whole.steps < NEW


def test_bytes_read_in_a_step() -> None:
    """Weights, less the table of embeddings that is only looked up, and the cache."""
    untied = Tiny(vocab_size=256)
    config = dataclasses.replace(untied.model.config, tie_embeddings=False)
    untied.__dict__["model"] = type(untied.model)(config)
    how = Sampling(temperature=0)
    cache = 2 * 2 * len(PROMPTS) * 2 * (3 + NEW) * 8
    for tiny, table in ((TINY, 0), (untied, 256 * 32)):
        size = sum(x.size for x in jax.tree.leaves(tiny.params))
        made = generation(how, trained(tiny)).complete(0)
        assert made.bytes_per_step == 4 * (size - table + cache)
        assert made.steps == NEW - 1
        assert made.bandwidth == made.bytes_per_step * made.steps / made.seconds
        assert made.new_tokens == NEW * len(PROMPTS)
    rows = 2  # of 4, on each device: the third prompt is filled up
    split = generation(how, trained(data=2, tensor=2)).complete(0)
    parts = mesh_of(TINY.named, tensor=2)
    held = jax.device_put(TINY.params, parallel.shardings(*parts))
    weights = sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(held))
    assert split.bytes_per_step == weights + 4 * cache // len(PROMPTS) * rows // 2
    gathered = generation(how, trained(fsdp=2)).complete(0)
    whole = sum(x.nbytes for x in jax.tree.leaves(TINY.params))
    assert gathered.bytes_per_step == whole + 4 * cache // len(PROMPTS) * rows


def test_the_summary_names_the_share_of_the_memory() -> None:
    made = sampling.Completion(["a"], [[1] * 300], 1.0, 2.0, 100, int(2e9), peak=4e11, accepted=0.5)
    assert made.summary() == (
        "300 tokens, 100 tokens/s, 100 GB/s of weights and cache (25 % of the memory's), "
        "50 % of the draft kept"
    )
    assert made.as_json()["bandwidth_share"] == 0.25
    unknown = dataclasses.replace(made, peak=None, accepted=None)
    assert unknown.summary() == "300 tokens, 100 tokens/s, 100 GB/s of weights and cache"
    assert unknown.as_json()["bandwidth_share"] is None
    assert (
        dataclasses.replace(unknown, steps=0, seconds=0.0).summary() == "300 tokens, 300 tokens/s"
    )


def test_memory_bandwidth_of_a_device() -> None:
    class Device:
        device_kind = "TPU7x"

    assert hardware.memory_bandwidth(Device()) == 7380e9 / 2
    assert hardware.memory_bandwidth(jax.devices()[0]) is None


def test_a_draft_with_a_shorter_context_is_refused() -> None:
    short = dataclasses.replace(TINY.model.config, context_length=20)
    model = trained()
    draft = dataclasses.replace(model, model=type(TINY.model)(short))
    with pytest.raises(ValueError, match="exceed model.context_length=20; nearest: --length=17"):
        generation(Sampling(), model, draft=draft)


def test_a_model_without_a_limit_goes_on_for_ever() -> None:
    sampling.check_length(neural_lm.Config(), [[1]], 10**6)
    with pytest.raises(ValueError, match="at least 1"):
        sampling.check_length(neural_lm.Config(), [[1]], 0)
