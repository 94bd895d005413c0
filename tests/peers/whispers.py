"""Tiny Whispers of transformers, through the files that `save_pretrained` writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from tests.golden_store import Record
from tests.peers.files import through_files
from tests.peers.packages import array, tensor

# Every size differs, so that no mix-up of dimensions passes.
WHISPER: dict[str, Any] = dict(
    vocab_size=37,
    num_mel_bins=7,
    encoder_layers=3,
    encoder_attention_heads=2,
    encoder_ffn_dim=20,
    decoder_layers=2,
    decoder_attention_heads=3,
    decoder_ffn_dim=14,
    d_model=12,
    max_source_positions=11,
    max_target_positions=13,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
    decoder_start_token_id=1,
    begin_suppress_tokens=None,
)
OPTIONS: dict[str, dict[str, Any]] = {
    "whisper": WHISPER,
    "whisper_relu_untied": WHISPER
    | dict(
        activation_function="relu",
        tie_word_embeddings=False,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
    ),
}
VARIANTS = tuple(OPTIONS)
BATCH, LENGTH = 3, 9
IGNORED = -100  # targets that transformers leaves out of the loss


def model(variant: str, seed: int) -> transformers.WhisperForConditionalGeneration:
    """A model all of whose parameters are random, biases and scales too, but the fixed ones."""
    config = transformers.WhisperConfig(**OPTIONS[variant])
    config._attn_implementation = "eager"  # no fused kernel
    made = transformers.WhisperForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if not parameter.requires_grad:
                continue
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return made.eval()


def frames(seed: int) -> np.ndarray:
    """(B, F, M), as loud as a log-mel spectrogram."""
    shape = (BATCH, 2 * WHISPER["max_source_positions"], WHISPER["num_mel_bins"])
    return np.random.default_rng(seed).uniform(-1, 1.5, shape).astype(np.float32)


def record(variant: str, seed: int) -> Record:
    """Inputs: "frames" (B, F, M), "ids" and "targets" (B, T), -100 for none, and FILE/name, the
    tensors of the file; outputs: "memory" (B, S, D), "logits" (B, T, V), "loss" (the mean over the
    targets, nats) and GRAD/name, its gradient for each tensor that is trained."""
    made = model(variant, seed)
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, made.config.vocab_size, (2, BATCH, LENGTH))
    targets[0, 4:], targets[1, 0] = IGNORED, IGNORED
    given = frames(seed)
    result = made(
        input_features=tensor(given.swapaxes(1, 2)),
        decoder_input_ids=tensor(ids),
        labels=tensor(targets),
    )
    result.loss.backward()
    memory = result.encoder_last_hidden_state
    outputs = {"memory": array(memory), "logits": array(result.logits), "loss": array(result.loss)}
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    files, gradients, about = through_files(made, seed, partial=True)
    outputs |= {f"grad/{name}": x for name, x in gradients.items() if name in trained}
    tokens = {"ids": ids.astype(np.int32), "targets": targets.astype(np.int32)}
    return Record(files | {"frames": given, **tokens}, outputs, about)
