"""Whisper: convolutions and a stack that hear, a stack that writes and looks at what was heard.

Radford et al. 2022, "Robust speech recognition via large-scale weak supervision", section 2.2.

Legend: B batch, N samples of sound, F frames of its spectrogram, M mel bands, S positions of the
encoder (half of F), T of the decoder (or of either), D residual width, V vocabulary (v: this
shard's part).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nn import activations, initializers
from nn.families.whisper.config import Config
from nn.layers import block, embed, norm
from nn.layers.block import Seen
from nn.layers.cache import Cache
from nn.layers.conv import Conv
from nn.layers.dropout import Dropout
from nn.layers.position import sinusoids
from nn.layers.spectrogram import log_mel
from nn.layers.stack import Aux, run
from nn.parallel import BATCH_AXES, Layer, axis_size, enter, leave, psum, split_axis, vary
from nn.parallel.collectives import local_slice, varying
from nn.parallel.mesh import current_rules
from nn.parallel.pipeline import PIPE, between_stages, share
from nn.parallel.sequence import columns, gathered, order
from nn.parallel.tensor import sequence_axes
from nn.parallel.weight import Weight

TOKENS = ("batch", "tokens", None)  # dimensions of the residual stream, for dropout


class Stem(Layer):
    """From a spectrogram to vectors, one for every two frames, at their fixed positions."""

    config: Config
    dtype: Any = jnp.float32

    def setup(self) -> None:
        dim = self.config.dim
        self.conv_1 = Conv(dim, (3,), padding=1, names=(None, "channels"))
        self.conv_2 = Conv(dim, (3,), 2, padding=1, names=("channels", "conv_in"), in_features=dim)

    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Frames (B, F, M), or sound (B, N), to (B, S, D) and the positions (1, S).

        Each shard of `context` is given all of the sound, which is little beside the rest of its
        work, and keeps its own positions, however those are laid out.
        Raises ValueError for inputs that do not suit the config or do not divide over `context`.
        """
        c = self.config
        split = "context" in varying(inputs)  # else every shard holds all positions
        whole = gathered(inputs, 1) if split else inputs
        frames_BFM = log_mel(whole, c.num_mels) if whole.ndim == 2 else whole
        self._check(frames_BFM)
        gelu = activations.get("gelu")
        x_BSD = self.conv_2(gelu(self.conv_1(frames_BFM.astype(self.dtype))))
        places_S = jnp.arange(x_BSD.shape[1])
        if split:
            laid = order(x_BSD.shape[1], axis_size("context"), current_rules().layout)
            places_S = local_slice(jnp.asarray(laid), "context", 0)
            x_BSD = jnp.take(x_BSD, places_S, axis=1)
        x_BSD, positions_1S = gelu(leave(x_BSD)), places_S[None]
        fixed_1SD = sinusoids(leave(positions_1S), c.dim, endpoint=True)
        return x_BSD + fixed_1SD.astype(self.dtype), positions_1S

    def _check(self, frames_BFM: jax.Array) -> None:
        c = self.config
        if frames_BFM.ndim != 3 or frames_BFM.shape[2] != c.num_mels:
            raise ValueError(
                f"model.num_mels={c.num_mels}: inputs must be frames (batch, frames, {c.num_mels}) "
                f"or sound (batch, samples), got shape {frames_BFM.shape}"
            )
        if frames_BFM.shape[1] > 2 * c.audio_context:
            raise ValueError(
                f"{frames_BFM.shape[1]} frames, but model.audio_context={c.audio_context} has "
                f"room for {2 * c.audio_context}"
            )


class Side(Layer):
    """One of the two stacks, with the dropout before it and the norm after it."""

    config: Config
    spec: block.Spec
    train: bool = False

    def setup(self) -> None:
        c = self.config
        self.dropout = Dropout(c.dropout, TOKENS, self.train)
        remat = (c.remat, c.remat_names, c.scan_unroll)
        self.blocks = block.stack(self.spec, self.train, *remat)
        self.final_norm = norm.make("layer", c.norm_eps, True, "final_norm")

    def __call__(
        self,
        x_BTD: jax.Array,
        axes: tuple[str, ...],
        *context: jax.Array | None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None, Aux]:
        """From vectors to the output of the last block, before `final_norm`.

        axes: of the mesh, which split the positions between blocks.
        context: positions and segments, and for the decoder memory and its segments.
        """
        x_BTD = self.dropout(vary(x_BTD, (*BATCH_AXES, *axes)))

        def derive(context: tuple[Any, ...]) -> tuple[Seen]:
            positions_BT, segments_BT, memory_BSD, memory_segments_BS = context
            return (Seen(positions_BT, segments_BT, (), memory_BSD, memory_segments_BS),)

        (x_BTD, cache), aux = run(self.blocks, self.spec.layers, (x_BTD, cache), context, derive)
        return x_BTD, cache, aux


class Model(Layer):
    """Sound and tokens to logits. `encode`, `hidden` and `head` are its parts, for losses over
    chunks and for generation."""

    config: Config
    dtype: Any = jnp.float32  # compute dtype
    train: bool = False  # dropout on

    def setup(self) -> None:
        c = self.config
        init = initializers.normal(c.init_std)
        self.stem = Stem(c, self.dtype)
        self.encoder = Side(c, c.encoder, self.train)
        self.embed = embed.Embed(c.vocab_size, c.dim, self.dtype, init)
        self.positions = embed.PositionTable(c.context_length, c.dim, init)
        self.decoder = Side(c, c.decoder, self.train)
        if not c.tie_embeddings:
            self.output = embed.Head(c.vocab_size, c.dim, init)

    def encode(self, inputs: jax.Array, segments_BS: jax.Array | None = None) -> jax.Array:
        """What the decoder looks at, (B, S, D): all positions of this shard of `context`, on all
        stages of `pipe`.

        Args:
          inputs: log-mel frames (B, F, M), or sound (B, N): see `nn.layers.spectrogram`. Whisper is
            trained on 30 s, silence included.
          segments_BS: utterance of each position, 0 for padding; a position hears its own only.
        Raises:
          ValueError: more frames than the encoder has positions for, or of another number of bands.
        """
        split = "context" in varying(inputs)
        axes = tuple(axis for axis in sequence_axes() if split or axis != "context")
        x_BSD, positions_1S = self.stem(inputs)
        x_BSD, _, _ = self.encoder(x_BSD, axes, positions_1S, segments_BS, None, None)
        # A pipeline has it on its last stage; it is zero on the others.
        return enter(self.encoder.final_norm(psum(x_BSD, PIPE)), "heads")

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        cache: Cache | None = None,
        memory: jax.Array | None = None,
        memory_segments: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, Aux]:
        """Final states of the decoder, the cache, and what the blocks add to the loss.

        States are (B, T, D), with the positions that `nn.families.transformer.Model.hidden` tells.

        Args:
          tokens_BT: what the decoder has written so far, behind the tokens that start it.
          positions_BT: of each token in its transcript; 0, 1, ... by default.
          segments_BT: transcript of each token, 0 for padding.
          cache: keys and values so far; it is written at `positions_BT`, and with those of the
            memory where one is given, which then need not be given again.
          memory: what `encode` made of the sound, (B, S, D).
          memory_segments: of its positions, (B, S): a token looks at those of its own segment, or,
            without `segments_BT`, at those of segment 1.
        """
        cached = cache is not None
        if positions_BT is None:
            number = jnp.arange if cached else columns
            positions_BT = number(tokens_BT.shape[1])[None] + jnp.zeros_like(tokens_BT)
        if memory is not None:
            # Typed as what is made of it, so that its gradient is summed once, not in every layer.
            heads = split_axis("heads", self.config.decoder.heads)
            memory = vary(between_stages(memory), [heads] if heads else [])
        x_BTD = self.embed(between_stages(tokens_BT))
        x_BTD = x_BTD + self.positions(positions_BT, self.dtype)
        axes = () if cached else sequence_axes()
        context = (positions_BT, segments_BT, memory, memory_segments)
        x_BTD, cache, aux = self.decoder(x_BTD, axes, *context, cache=cache)
        states_BTD = self.decoder.final_norm(share(x_BTD, states=True))
        return embed.head_input(states_BTD, self.config.vocab_size), cache, aux

    def head(self, x_BTD: jax.Array, weight: Weight | None = None) -> jax.Array:
        """Logits of this shard's part of the vocabulary, (B, T, D) -> (B, T, v).

        weight: `head_weight`, for a loop over pieces of x.
        """
        return (self.embed.attend if self.config.tie_embeddings else self.output)(x_BTD, weight)

    def head_weight(self, like: jax.Array) -> Weight:
        """The matrix of the head, gathered over fsdp, in the dtype of `like`."""
        held = self.embed.table if self.config.tie_embeddings else self.output.kernel
        return held.gathered(like)

    def head_positions(self, *per_position: jax.Array) -> list[jax.Array]:
        """Of arrays (B, T) with one entry per position, those that go with `hidden`."""
        return [embed.head_positions(x_BT, self.config.vocab_size) for x_BT in per_position]

    def __call__(
        self,
        inputs: jax.Array,
        targets_BT: jax.Array,
        segments_BS: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits (B, T, v) of what follows each of `targets_BT`, which start with a token that is
        no target. Sows "attention" and "residual" per layer."""
        memory_BSD = self.encode(inputs, segments_BS)
        hidden_BTD, _, _ = self.hidden(
            targets_BT,
            segments_BT=segments_BT,
            memory=memory_BSD,
            memory_segments=segments_BS,
        )
        return self.head(hidden_BTD)

    def empty_cache(self, batch: int, length: int, memory_length: int = 0, ahead: int = 0) -> Cache:
        """Room for `length` positions of `batch` rows and, with `memory_length`, for the keys and
        values of a memory; this shard's heads only. ahead: see `nn.layers.block.Spec.cache`."""
        return self.config.decoder.cache(batch, length, self.dtype, memory_length, ahead)
