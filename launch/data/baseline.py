"""How well counting does: the number that a trained model must beat."""

from __future__ import annotations

import numpy as np

from launch.data.packing import Stream


def bigram_bits(train: Stream, evaluated: Stream, vocabulary: int) -> float:
    """Bits per token of p(b | a) = (count(a, b) + 1) / (count(a) + vocabulary) (add-one smoothing).

    Counted on `train` and averaged over the pairs of `evaluated`, both inside documents only: these
    pairs are the targets whose mask is 1 in the packed rows, so the figure compares with a model's.
    """
    counts = _pairs(train, vocabulary)
    probabilities = (counts + 1) / (counts.sum(axis=1, keepdims=True) + vocabulary)
    weights = _pairs(evaluated, vocabulary)
    return float(-(weights * np.log2(probabilities)).sum() / weights.sum())


def _pairs(stream: Stream, vocabulary: int) -> np.ndarray:
    """(vocabulary, vocabulary) counts of neighbours in the same document."""
    inside = stream.continues()
    first = stream.tokens[:-1][inside].astype(np.int64)
    second = stream.tokens[1:][inside].astype(np.int64)
    pairs = np.bincount(first * vocabulary + second, minlength=vocabulary**2)
    return pairs.reshape(vocabulary, vocabulary)
