"""FLOPs of training: against the published table, and against each other."""

from __future__ import annotations

import pytest

from nn.analysis.scaling_laws import flops

# Hoffmann et al. 2022, table A4: exact / 6ND, and the sizes that it prints.
RATIOS = {"74M": 1.025, "306M": 1.101, "552M": 1.083, "1.1B": 1.044, "1.6B": 1.033, "6.8B": 0.994}
S = 2048


@pytest.mark.parametrize("name", RATIOS)
def test_table_a4_of_chinchilla(name: str) -> None:
    shape = flops.TABLE_A4[name]
    ratio = flops.appendix_f(shape, S) / flops.six_nd(shape.n_appendix_f, S)
    assert round(ratio, 3) == RATIOS[name]


def test_the_head_is_what_the_printed_ratios_leave_out() -> None:
    for name, ratio in (("74M", 1.302), ("6.8B", 1.011)):
        shape = flops.TABLE_A4[name]
        with_head = flops.appendix_f(shape, S, head=True) / flops.six_nd(shape.n_appendix_f, S)
        assert round(with_head, 3) == ratio


def test_exact_flops_are_those_of_the_appendix_but_for_the_softmax() -> None:
    shape = flops.TABLE_A4["552M"]
    softmax = 3 * 3 * shape.layers * shape.n_heads * S
    expected = flops.appendix_f(shape, S, head=True) / S - softmax
    assert flops.exact(shape, S) == pytest.approx(expected, rel=1e-12)
    attention = 3 * 4 * shape.layers * S * shape.d_attention
    assert flops.exact(shape, S) - flops.exact(shape, S, skips_mask=True) == attention / 2


def test_kaplan_counts_half_the_attention_and_no_head() -> None:
    shape = flops.TABLE_A4["552M"]
    head = 2 * shape.vocabulary * shape.d_model
    assert 3 * (flops.kaplan_forward(shape, S) + head) == flops.exact(shape, S, skips_mask=True)
