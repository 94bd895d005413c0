"""Generation against the full forward pass, one token at a time."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.run import decode, logits
from launch.run.decode import Sampling
from nn import parallel
from tests.launch.run.rows_of_tokens import PROMPTS, Tiny, inputs_of, mesh_of, new_of, view_of

TINY = Tiny()
MESHES: dict[str, dict[str, int]] = {
    "one device": {},
    "tensor=4": {"tensor": 4},
    "data=2, tensor=2": {"data": 2, "tensor": 2},
}
OPTIONS = {
    "greedy": Sampling(temperature=0, repetition_penalty=1.5),
    "drawn": Sampling(
        temperature=1.3,
        top_k=20,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.2,
        stop=tuple(range(0, 96, 8)),
    ),
}
NEW = 6


def continued(
    prompts: list[list[int]], how: Sampling, rows: list[int] | None = None
) -> list[list[int]]:
    loop = decode.loop_of(TINY.model, NEW, how)
    return new_of(view_of(loop, TINY.params, inputs_of(prompts, rows)), prompts)


def by_the_full_pass(prompts: list[list[int]], how: Sampling) -> list[list[int]]:
    """Each row by itself: the logits of all of it, the warpers, one token, and again."""
    inputs = inputs_of(prompts)
    choose = jax.jit(functools.partial(logits.sample, how=how))
    rows, done = [list(prompt) for prompt in prompts], [False] * len(prompts)
    for step in range(NEW):
        keys = inputs.keys(step)
        for i, logits_V in enumerate(TINY.logits(rows)):
            if done[i]:
                continue
            tokens, end = jnp.asarray([rows[i]]), jnp.asarray([len(rows[i])])
            x = logits.penalize(jnp.asarray(logits_V)[None], tokens, end, how.repetition_penalty)
            token = int(choose(x, keys[i : i + 1])[0])
            rows[i].append(token)
            done[i] = token in how.stop
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


class WideCache(type(TINY.model)):  # type: ignore[misc]
    """Keeps all positions whatever the windows are."""

    def empty_cache(self, batch: int, length: int, ahead: int = 0) -> Any:
        return super().empty_cache(batch, length)


@functools.cache
def expected(name: str) -> list[list[int]]:
    return by_the_full_pass(PROMPTS, OPTIONS[name])


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", OPTIONS)
def test_ragged_prompts_go_on_as_the_full_pass_says(name: str, mesh: str) -> None:
    loop = decode.loop_of(TINY.model, NEW, OPTIONS[name])
    places = mesh_of(TINY.named, **MESHES[mesh])
    made = new_of(view_of(loop, TINY.params, inputs_of(PROMPTS), *places), PROMPTS)
    assert made == expected(name)
    assert len({token for row in made for token in row}) > 8
    if name == "drawn":
        assert {len(row) == NEW for row in made} == {True, False}  # some stopped, some did not


@pytest.mark.parametrize("beams", [1, 2])
def test_where_all_layers_have_a_window_the_cache_is_as_short(beams: int) -> None:
    """Prompts and continuations are longer than the window; each token by the full pass."""
    narrow = Tiny(windows=(4,))
    loop = decode.loop_of(narrow.model, NEW, Sampling(temperature=0, beams=beams))
    inputs = inputs_of(PROMPTS)
    state = jax.eval_shape(loop.start, narrow.params, inputs)
    assert state.cache.key.shape[3] == 4
    made = new_of(view_of(loop, narrow.params, inputs), PROMPTS)
    wide = decode.loop_of(WideCache(narrow.model.config), NEW, loop.how)
    assert jax.eval_shape(wide.start, narrow.params, inputs).cache.key.shape[3] > 4
    assert made == new_of(view_of(wide, narrow.params, inputs), PROMPTS)
    if beams == 1:
        rows = [list(prompt) for prompt in PROMPTS]
        for _ in range(NEW):
            best = narrow.logits(rows).argmax(axis=1)
            rows = [[*row, int(token)] for row, token in zip(rows, best, strict=True)]
        assert made == [row[len(p) :] for row, p in zip(rows, PROMPTS, strict=True)]


def test_a_row_does_not_depend_on_its_company() -> None:
    how = Sampling()
    together = continued(PROMPTS, how)
    alone = continued(PROMPTS[1:2], how, [1])
    assert together[1] == alone[0]
    assert continued(PROMPTS, how, [4, 5, 6, 7]) != together


def test_stop_tokens_end_a_row() -> None:
    free = continued(PROMPTS, Sampling(temperature=0))
    stop = free[2][2]
    made = continued(PROMPTS, Sampling(temperature=0, stop=(stop,)))
    for row, whole in zip(made, free, strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert row == whole[:end]
    assert min(map(len, made)) < NEW == max(map(len, made))


def test_a_loop_can_be_taken_up_again_on_a_mesh() -> None:
    """Between its pieces the cache keeps its place on the devices."""
    loop = decode.loop_of(TINY.model, NEW, OPTIONS["drawn"])
    mesh, specs = mesh_of(TINY.named, data=2, tensor=2)
    inputs = inputs_of(PROMPTS)
    on_mesh = decode.OnMesh(loop, mesh, parallel.Rules(), specs)
    start, advance = on_mesh.pieces(TINY.params, inputs)
    state, view = start(TINY.params, inputs)
    assert [len(row) for row in new_of(jax.device_get(view), PROMPTS)] == [1] * len(PROMPTS)
    lengths = []
    for until in (1, 3, NEW):
        state, view = advance(TINY.params, inputs, state, until)
        lengths.append(max(map(len, new_of(jax.device_get(view), PROMPTS))))
    assert lengths == [1, 3, NEW]
    assert new_of(jax.device_get(view), PROMPTS) == expected("drawn")
    # Half of the rows and half of the heads on each device.
    whole = 2 * np.prod((2, len(PROMPTS), 2, 12, 8))
    held = [x.addressable_data(0).size for x in jax.tree.leaves(state.cache)]
    assert sum(held) == whole / 4


def test_a_memory_goes_to_the_model_with_each_token() -> None:
    """What an encoder made of its inputs: here a shift of the tokens, of each row its own."""

    class Shifted(type(TINY.model)):  # type: ignore[misc]
        def hidden(self, tokens: Any, *args: Any, shift: Any, **kwargs: Any) -> Any:
            return super().hidden((tokens + shift[:, None]) % 96, *args, **kwargs)

    model = Shifted(TINY.model.config)
    shift = jnp.asarray([0, 1, 2, 3], jnp.int32)
    inputs = inputs_of(PROMPTS)
    alone = inputs_of(PROMPTS[2:3]).replace(memory={"shift": shift[2:3]})
    for how in (Sampling(temperature=0), Sampling(temperature=0, beams=2)):
        loop = decode.loop_of(model, NEW, how)
        made, still = (
            new_of(view_of(loop, TINY.params, inputs.replace(memory={"shift": by})), PROMPTS)
            for by in (shift, 0 * shift)
        )
        assert [a == b for a, b in zip(made, still, strict=True)] == [True, False, False, False]
        assert new_of(view_of(loop, TINY.params, alone), PROMPTS[2:3]) == made[2:3]


def draws(how: Sampling, logits_V: np.ndarray, count: int = 4000) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    tokens = decode.sample(jnp.asarray(np.tile(logits_V, (count, 1)), jnp.float32), keys, how)
    return np.bincount(np.asarray(tokens), minlength=len(logits_V)) / count


def test_sampling_follows_the_distribution() -> None:
    logits_V = np.log([0.5, 0.25, 0.15, 0.1])
    np.testing.assert_allclose(draws(Sampling(), logits_V), [0.5, 0.25, 0.15, 0.1], atol=0.03)
    sharp = np.asarray([0.5, 0.25, 0.15, 0.1]) ** 2
    np.testing.assert_allclose(
        draws(Sampling(temperature=0.5), logits_V), sharp / sharp.sum(), atol=0.03
    )
    np.testing.assert_allclose(draws(Sampling(top_k=2), logits_V), [2 / 3, 1 / 3, 0, 0], atol=0.03)
    np.testing.assert_allclose(draws(Sampling(temperature=0), logits_V), [1, 0, 0, 0])
