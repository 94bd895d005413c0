"""Training FLOPs of a dense decoder, exactly and by the rules of thumb.

Per sequence and forward pass (Hoffmann et al. 2022, arXiv:2203.15556, appendix F):

    Q, K, V projections   6 s d (k h)        softmax               3 h s^2
    logits of attention   2 s^2 (k h)        mix of the values     2 s^2 (k h)
    output projection     2 s (k h) d        feed-forward block    4 s d f
    embedding             2 s V d            logits of the vocabulary  2 s d V

and three times that for a training step (backward = 2 forward). The appendix says that embedding
and logits are counted, but the ratios exact / 6ND of its table A4 come out, to every digit, only
without them: `appendix_f` leaves them out unless asked. N is `Decoder.n_appendix_f`.

A head that is a matrix product belongs into the exact count (`exact`): at small scale it dominates.

Legend: s sequence length, d model width, k width of a head, h heads, f width of the feed-forward
block, V vocabulary, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decoder:
    """The shape of a dense decoder with multi-head attention, one block after another."""

    layers: int
    d_model: int
    ffw_size: int
    kv_size: int  # width of one head
    n_heads: int
    vocabulary: int = 32_000
    gated: bool = False  # a third matrix in the feed-forward block (SwiGLU)

    @property
    def d_attention(self) -> int:
        """Width of all heads together."""
        return self.kv_size * self.n_heads

    @property
    def n_nonemb(self) -> int:
        """Weights of the blocks' matrices; biases and norms are left out."""
        per_layer = 4 * self.d_model * self.d_attention
        per_layer += (3 if self.gated else 2) * self.d_model * self.ffw_size
        return self.layers * per_layer

    @property
    def n_matmul(self) -> int:
        """Weights that take part in a matrix product: blocks and head."""
        return self.n_nonemb + self.vocabulary * self.d_model

    @property
    def n_total(self) -> int:
        """All matrices, embedding and head apart (untied)."""
        return self.n_nonemb + 2 * self.vocabulary * self.d_model

    @property
    def n_appendix_f(self) -> int:
        """N as table A4 counts it: all that a Transformer-XL with tied embeddings holds.

        Besides the matrices: projections of relative positions and their two biases, biases of the
        output projection and of the feed-forward block, gains of the norms, a bias of the logits.
        """
        d, kh, f = self.d_model, self.d_attention, self.ffw_size
        per_layer = d * kh + 2 * kh + (d + f + d) + 2 * d
        ends = self.vocabulary * d + d + self.vocabulary
        return self.n_nonemb + self.layers * per_layer + ends


# The six models of table A4 (shapes from table A9), by their printed size.
TABLE_A4 = {
    "74M": Decoder(10, 640, 2560, 64, 10),
    "306M": Decoder(20, 1024, 4096, 64, 16),
    "552M": Decoder(24, 1280, 5120, 128, 10),
    "1.1B": Decoder(26, 1792, 7168, 128, 14),
    "1.6B": Decoder(28, 2048, 8192, 128, 16),
    "6.8B": Decoder(40, 3584, 14336, 128, 28),
}


def appendix_f(
    shape: Decoder, sequence: int, *, embedding: bool = False, head: bool = False
) -> int:
    """Training FLOPs of one sequence by the list above, optionally with embedding and logits."""
    s, d, kh = sequence, shape.d_model, shape.d_attention
    attention = 6 * s * d * kh + 2 * s * s * kh + 3 * shape.n_heads * s * s
    attention += 2 * s * s * kh + 2 * s * kh * d
    feed_forward = (6 if shape.gated else 4) * s * d * shape.ffw_size
    ends = 2 * s * d * shape.vocabulary
    forward = shape.layers * (attention + feed_forward) + ends * (int(embedding) + int(head))
    return 3 * forward


def exact(shape: Decoder, sequence: int, *, skips_mask: bool = False) -> float:
    """Training FLOPs per token: 3 [2 N_matmul + 4 L s d_attention].

    `skips_mask`: halves the products of attention, only for a kernel that really leaves out the
    blocks above the diagonal. Softmax, norms and activations are left out, as is usual.
    """
    products = 4 * shape.layers * sequence * shape.d_attention
    return 3.0 * (2 * shape.n_matmul + products * (0.5 if skips_mask else 1.0))


def six_nd(parameters: float, tokens: float) -> float:
    """6 N D: say which parameters were counted (see `table.CONVENTIONS`)."""
    return 6.0 * parameters * tokens


def kaplan_forward(shape: Decoder, sequence: int) -> int:
    """Forward FLOPs per token by Kaplan et al. 2020: 2 N_nonemb + 2 L s d_attention.

    Their table 1 counts the mask's half only (2 L s d, not 4) and neither embedding nor head.
    """
    return 2 * shape.n_nonemb + 2 * shape.layers * sequence * shape.d_attention
