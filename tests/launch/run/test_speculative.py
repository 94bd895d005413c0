"""Speculative decoding against decoding without a draft, in text and in distribution."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from launch.run import decode, logits
from launch.run.logits import Sampling
from launch.run.speculative import Speculative
from tests.launch.run.rows_of_tokens import PROMPTS, Tiny, inputs_of, mesh_of, new_of, view_of

TINY = Tiny()
NEW = 9
GREEDY = Sampling(temperature=0, repetition_penalty=1.3)


@functools.cache
def params(noise: float) -> dict[str, object]:
    """The model, and as its draft the same one with noise on its weights."""
    leaves, tree = jax.tree.flatten(TINY.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    near = [
        x + noise * x.std() * jax.random.normal(key, x.shape)
        for x, key in zip(leaves, keys, strict=True)
    ]
    return {"model": TINY.params, "draft": jax.tree.unflatten(tree, near)}


def drafted(
    how: Sampling, noise: float, prompts: list[list[int]], rows: list[int] | None = None, k: int = 3
) -> dict[str, np.ndarray]:
    loop = Speculative(TINY.model, TINY.model, how, NEW, k)
    return view_of(loop, params(noise), inputs_of(prompts, rows))


@functools.cache
def plain(stop: tuple[int, ...] = ()) -> list[list[int]]:
    how = Sampling(temperature=0, repetition_penalty=1.3, stop=stop)
    loop = decode.loop_of(TINY.model, NEW, how)
    return new_of(view_of(loop, TINY.params, inputs_of(PROMPTS)), PROMPTS)


@pytest.mark.parametrize("noise", [0.0, 0.1, 3.0])
def test_greedy_text_is_that_without_a_draft(noise: float) -> None:
    view = drafted(GREEDY, noise, PROMPTS)
    assert new_of(view, PROMPTS) == plain()
    share = view["accepted"].sum() / view["offered"].sum()
    low, high = {0.0: (1, 1), 0.1: (0.2, 0.9), 3.0: (0, 0.1)}[noise]
    assert low <= share <= high
    # With all of the draft kept, 8 tokens after the first take 2 rounds of 3 + 1.
    assert (view["offered"] == 6).all() == (noise == 0)


def test_a_window_is_no_shorter_than_what_is_taken_back() -> None:
    """The caches wrap, with draft tokens in them that were refused."""
    narrow = Tiny(windows=(4,))
    plain = new_of(
        view_of(decode.loop_of(narrow.model, NEW, GREEDY), narrow.params, inputs_of(PROMPTS)),
        PROMPTS,
    )
    loop = Speculative(narrow.model, narrow.model, GREEDY, NEW, 3)
    view = view_of(loop, params(0.1) | {"model": narrow.params}, inputs_of(PROMPTS))
    assert new_of(view, PROMPTS) == plain
    assert 0 < view["accepted"].sum() < view["offered"].sum()


def test_a_stop_token_ends_a_row_wherever_it_is_in_the_draft() -> None:
    free = plain()
    for place in (1, 3):
        stop = (free[2][place],)
        view = drafted(Sampling(temperature=0, repetition_penalty=1.3, stop=stop), 0.1, PROMPTS)
        assert new_of(view, PROMPTS) == plain(stop)
        assert len(new_of(view, PROMPTS)[2]) <= place + 1


def test_a_row_does_not_depend_on_its_company_or_the_mesh() -> None:
    how = Sampling(top_p=0.9)
    together = new_of(drafted(how, 0.1, PROMPTS), PROMPTS)
    assert new_of(drafted(how, 0.1, PROMPTS[2:3], [2]), PROMPTS[2:3]) == together[2:3]
    mesh, specs = mesh_of(TINY.named, data=2, tensor=2)
    loop = Speculative(TINY.model, TINY.model, how, NEW, 3)
    split = view_of(loop, params(0.1), inputs_of(PROMPTS), mesh, {"model": specs, "draft": specs})
    assert new_of(split, PROMPTS) == together


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=0.7, top_k=4, min_p=0.05)])
def test_draws_have_the_distribution_of_the_large_model(how: Sampling) -> None:
    """Chi-square over all texts of 3 tokens of 5; the draft alone would be far off."""
    large, small = Tiny(vocab_size=5, scale=2.0), Tiny(vocab_size=5, scale=2.0, seed=1)
    count, prompt = 4000, [1, 3]
    inputs = inputs_of([prompt])
    inputs = inputs.replace(
        prompts_BP=jnp.tile(inputs.prompts_BP, (count, 1)),
        lengths_B=jnp.tile(inputs.lengths_B, count),
        rows_B=jnp.arange(count),
    )
    loop = Speculative(large.model, small.model, how, 3, 2)
    view = view_of(loop, {"model": large.params, "draft": small.params}, inputs)
    share = view["accepted"].sum() / view["offered"].sum()
    assert 0.2 < share < 0.9
    drawn = view["tokens"][:, 2:]
    seen = np.bincount(drawn @ np.asarray([25, 5, 1]), minlength=125)

    def chances(model: Tiny) -> np.ndarray:
        starts = [list(s) for n in range(3) for s in itertools.product(range(5), repeat=n)]
        x = jnp.asarray(model.logits([[*prompt, *start] for start in starts]))
        p = np.asarray(jax.nn.softmax(logits.shaped(x, how)), np.float64)
        table = {tuple(start): row for start, row in zip(starts, p, strict=True)}
        texts = itertools.product(range(5), repeat=3)
        return np.asarray([table[()][a] * table[a,][b] * table[a, b][c] for a, b, c in texts])

    def p_value(expected: np.ndarray) -> float:
        often = expected * count >= 5
        pooled = [np.append(x[often], x[~often].sum()) for x in (seen, expected * count)]
        there = pooled[1] > 0
        seen_here, expected_here = pooled[0][there], pooled[1][there]
        expected_here *= seen_here.sum() / expected_here.sum()
        return float(scipy.stats.chisquare(seen_here, expected_here).pvalue)

    assert not seen[chances(large) == 0].any()
    assert p_value(chances(large)) > 0.01
    assert p_value(chances(small)) < 1e-9


def test_what_does_not_go_together_is_refused() -> None:
    other = Tiny(vocab_size=95)
    with pytest.raises(ValueError, match="95 tokens: must be the 96"):
        Speculative(TINY.model, other.model, Sampling(), NEW, 3)
    with pytest.raises(ValueError, match="nearest: --num-beams=1"):
        Speculative(TINY.model, TINY.model, Sampling(temperature=0, beams=2), NEW, 3)
    with pytest.raises(ValueError, match="--draft-length=0: must be at least 1"):
        Speculative(TINY.model, TINY.model, Sampling(), NEW, 0)
