"""Masked and replaced tokens: what is chosen, what becomes of it, and the losses."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nn import parallel
from nn.families import bert
from nn.objectives import masked_token, replaced_token
from tests.batches import masked_token as masked_batch
from tests.batches import replaced_token as replaced_batch

KEY = jax.random.key(0)
VOCABULARY, MASK, SPECIAL = 40, 7, (3, 11)
OPTIONS = masked_token.Config(mask_token=MASK, special_tokens=SPECIAL)


def setting(head: str) -> tuple[Any, Any]:
    config = dataclasses.replace(bert.tiny(), head=head, num_layers=2)
    model = bert.Model(config)
    variables = parallel.unbox(jax.jit(model.init)(KEY, *bert.example(config, 2)))
    return model, {"params": variables["params"]}


def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, whether each may be chosen, what is seen, and whether it is chosen."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (400, 300)).astype(np.int32)
    segments = (np.arange(300) < rng.integers(200, 301, (400, 1))).astype(np.int32)
    mask = (rng.random(tokens.shape) > 0.2).astype(np.float32)
    may = (segments > 0) & (mask > 0) & ~np.isin(tokens, SPECIAL)
    batch = {"inputs": jnp.asarray(tokens), "segments": segments, "mask": mask}
    seen, chosen = masked_token.corrupted(OPTIONS, batch, VOCABULARY, KEY)
    return tokens, may, np.asarray(seen), np.asarray(chosen) > 0


def test_what_is_chosen_is_fifteen_percent_of_what_may_be() -> None:
    tokens, may, seen, chosen = drawn()
    assert not (chosen & ~may).any()
    np.testing.assert_array_equal(seen[~chosen], tokens[~chosen])
    assert stats.binomtest(int(chosen.sum()), int(may.sum()), 0.15).pvalue > 1e-3
    # Every token, every column and every row as often as the others.
    for place in (tokens, *np.indices(tokens.shape)):
        found, allowed = (np.bincount(place[x]) for x in (chosen, may))
        found, allowed = found[allowed > 0], allowed[allowed > 0]
        expected = allowed * found.sum() / allowed.sum()
        assert stats.chisquare(found, expected).pvalue > 1e-3


def test_what_becomes_of_it_is_eighty_ten_ten() -> None:
    tokens, may, seen, chosen = drawn()
    kept = (seen == tokens) & (tokens != MASK) & chosen
    hidden = (seen == MASK) & (tokens != MASK) & chosen
    other = chosen & (tokens != MASK) & ~kept & ~hidden
    counts = np.asarray([hidden.sum(), other.sum(), kept.sum()])
    # A replacement may be the mask token or the token itself.
    shares = np.asarray([0.8 + 0.1 / VOCABULARY, 0.1 - 0.2 / VOCABULARY, 0.1 + 0.1 / VOCABULARY])
    assert stats.chisquare(counts, shares * counts.sum()).pvalue > 1e-3
    # Any token in its place, but for those two alike.
    frequency = np.bincount(seen[other], minlength=VOCABULARY)
    assert frequency[MASK] == 0
    assert stats.chisquare(np.delete(frequency, MASK)).pvalue > 1e-3
    # Neighbours do not know of each other.
    both = may[:, 1:] & may[:, :-1]
    pairs = np.histogram2d(chosen[:, 1:][both], chosen[:, :-1][both], 2)[0]
    assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_another_key_chooses_others() -> None:
    tokens = jnp.zeros((8, 64), jnp.int32)
    batch = {"inputs": tokens, "mask": jnp.ones(tokens.shape)}
    first, again, other = (
        masked_token.corrupted(OPTIONS, batch, VOCABULARY, jax.random.key(i))[1] for i in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_loss_is_that_of_the_chosen_tokens_and_of_the_sentences() -> None:
    model, variables = setting("masked_token_and_next_sentence")
    batch = masked_batch.batch(bert, model.config, 8)
    options = masked_token.Config(special_tokens=(5,), rate=0.4)
    sums = jax.jit(
        lambda variables: masked_token.sums(options, model, variables, batch, KEY, train=False)[0]
    )(variables)
    key = jax.random.fold_in(KEY, 1)
    seen, chosen = masked_token.corrupted(options, batch, model.config.vocab_size, key)
    assert (np.asarray(seen)[np.asarray(chosen) > 0] == model.config.vocab_size - 1).mean() > 0.5
    tokens, pair = jax.jit(model.apply)(variables, seen, None, batch["segments"], batch["types"])

    def nll(logits: jax.Array, labels: np.ndarray) -> np.ndarray:
        return -np.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]

    each = nll(tokens, batch["inputs"])
    rows = np.asarray(batch["mask"]).any(axis=1)
    assert not rows.all()
    sentences = nll(pair, batch["next_sentence"])[rows].mean()
    expected = (each * chosen).sum() / chosen.sum() + sentences
    total, count = sums["loss"]
    assert float(total / count) == pytest.approx(float(expected), rel=1e-5)
    assert float(count) == float(chosen.sum())
    total, count = sums["next_sentence_loss"]
    assert float(total / count) == pytest.approx(float(sentences), rel=1e-5)
    hits = (np.argmax(tokens, -1) == batch["inputs"]) * chosen
    assert float(sums["accuracy"][0]) == float(hits.sum())


def test_chunks_change_nothing() -> None:
    model, variables = setting("masked_token")
    batch = masked_batch.batch(bert, model.config, 4)

    def loss(chunks: int) -> float:
        options = masked_token.Config(chunks=chunks)
        sums = jax.jit(
            lambda variables: masked_token.sums(options, model, variables, batch, KEY, False)[0]
        )(variables)
        return float(sums["loss"][0])

    assert loss(4) == pytest.approx(loss(1), rel=1e-6)


def test_replaced_tokens() -> None:
    model, variables = setting("replaced_token")
    batch = replaced_batch.batch(bert, model.config, 4)
    options = replaced_token.Config()
    sums, _ = replaced_token.sums(options, model, variables, batch, KEY, train=False)
    logits = np.asarray(
        model.apply(variables, batch["inputs"], None, batch["segments"], batch["types"]), np.float64
    )
    replaced = batch["inputs"] != batch["targets"]
    nll = np.log1p(np.exp(np.where(replaced, -logits, logits)))
    mask = batch["mask"]
    total, count = sums["loss"]
    assert float(total / count) == pytest.approx((nll * mask).sum() / mask.sum(), rel=1e-5)
    hits = ((logits > 0) == replaced) * mask
    assert float(sums["accuracy"][0]) == pytest.approx(hits.sum())
    assert float(sums["replaced"][0]) == pytest.approx((replaced * mask).sum())


def test_what_does_not_fit_is_refused() -> None:
    model, variables = setting("masked_token")
    batch = masked_batch.batch(bert, model.config, 4)
    sentences = batch | {"next_sentence": np.zeros(4, np.int32)}
    for options, given, message in (
        (masked_token.Config(mask_token=96), batch, "not in the vocabulary of 96; nearest: 95"),
        (masked_token.Config(), sentences, "nearest: 'masked_token_and_next_sentence'"),
    ):
        with pytest.raises(ValueError, match=message):
            masked_token.sums(options, model, variables, given, KEY, train=False)
    with pytest.raises(ValueError, match="head='masked_token' finds no .*; nearest: 'replaced_tok"):
        replaced_token.sums(replaced_token.Config(), model, variables, batch, KEY, train=False)
    with pytest.raises(ValueError, match=r"objective.rate=0.0: must be in \(0, 1\]"):
        masked_token.Config(rate=0.0)
    with pytest.raises(ValueError, match=r"hidden=0.8, objective.replaced=0.3: shares of one"):
        masked_token.Config(replaced=0.3)
    with pytest.raises(ValueError, match="objective.chunks=0: must be at least 1"):
        masked_token.Config(chunks=0)
