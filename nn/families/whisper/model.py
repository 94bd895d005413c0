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
from nn.layers.conv import Conv
from nn.layers.encoder_decoder import Around, EncoderDecoder, Side
from nn.layers.position import sinusoids
from nn.layers.spectrogram import log_mel
from nn.parallel import Layer, axis_size, enter, leave
from nn.parallel.collectives import local_slice, varying
from nn.parallel.mesh import current_rules
from nn.parallel.sequence import gathered, order
from nn.parallel.tensor import sequence_axes


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


class Model(EncoderDecoder):
    """Sound and tokens to logits. `encode`, `hidden` and `head` are its parts, for losses over
    chunks and for generation."""

    config: Config
    dtype: Any = jnp.float32  # compute dtype
    train: bool = False  # dropout on

    def setup(self) -> None:
        c = self.config
        ends: dict[str, Any] = {"tied": c.tie_embeddings, "factor": c.logit_factor}
        self.make_ends(c.dim, self.dtype, initializers.normal(c.init_std), **ends)
        self.stem = Stem(c, self.dtype)
        remat = (c.remat, c.remat_names, c.scan_unroll)
        self.encoder = Side(c.encoder, Around(), remat, self.dtype, self.train)
        writes = Around("learned", c.context_length)
        self.decoder = Side(c.decoder, writes, remat, self.dtype, self.train)

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
        x_BSD, _, _ = self.encoder(x_BSD, positions_1S, axes, segments_BS, None, None)
        return enter(self.encoder.after(x_BSD, shared=False), "heads")
