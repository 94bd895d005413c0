"""Tiny encoder-decoders of transformers, through the files that `save_pretrained` writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from tests.golden_store import Record
from tests.peers.files import through_files
from tests.peers.packages import array, tensor

# Every size differs, so that no mix-up of dimensions passes; the two sides differ too.
BART = dict(
    vocab_size=37,
    max_position_embeddings=15,
    d_model=12,
    encoder_layers=3,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=3,
    encoder_ffn_dim=20,
    decoder_ffn_dim=14,
    dropout=0.0,
)
T5 = dict(
    vocab_size=41,
    d_model=12,
    d_kv=5,
    d_ff=20,
    num_layers=3,
    num_decoder_layers=2,
    num_heads=3,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=9,  # fewer than there are positions
    dropout_rate=0.0,
)
OPTIONS: dict[str, dict[str, Any]] = {
    "bart": BART,
    "bart_scaled": BART | dict(scale_embedding=True, activation_function="relu"),
    "marian": BART
    | dict(
        pad_token_id=36,
        decoder_start_token_id=36,
        scale_embedding=True,
        activation_function="swish",
    ),
    "t5": T5,
    "t5_gated_untied": T5
    | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, layer_norm_epsilon=0.05),
}
CLASSES = {
    "bart": (transformers.BartConfig, transformers.BartForConditionalGeneration),
    "marian": (transformers.MarianConfig, transformers.MarianMTModel),
    "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration),
}
VARIANTS = tuple(OPTIONS)
WITHOUT_GRADIENT = ("final_logits_bias", "k_proj.bias")
BATCH, LONGER, LENGTH = 3, 11, 7


def model(variant: str, seed: int) -> transformers.PreTrainedModel:
    """A model all of whose parameters are random, biases and scales too."""
    config_class, model_class = CLASSES[variant.partition("_")[0]]
    config = config_class(**OPTIONS[variant])
    config._attn_implementation = "eager"  # no fused kernel
    made = model_class(config)
    if variant == "t5_gated_untied":  # as published; the class ties what it makes itself
        made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight.detach().clone())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "embed_positions" in name and variant == "marian":
                continue  # sinusoids
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(0.3 * noise)
        if hasattr(made, "final_logits_bias"):
            noise = torch.randn(made.final_logits_bias.shape, generator=generator)
            made.final_logits_bias.copy_(0.3 * noise)
    return made.eval()


def batch(config: Any, seed: int) -> dict[str, np.ndarray]:
    """Inputs with padding behind, before and nowhere; tokens that the decoder reads; targets.

    None is the first, second or last one: a table of theirs has no gradient for padding.
    """
    rng = np.random.default_rng(seed)
    tokens = lambda length: rng.integers(2, config.vocab_size - 1, (BATCH, length), np.int32)  # noqa: E731
    mask = np.ones((BATCH, LONGER), np.int32)
    mask[0, 8:] = 0
    mask[1, :3] = 0
    return {
        "inputs": tokens(LONGER),
        "mask": mask,
        "decoder_inputs": tokens(LENGTH),
        "targets": tokens(LENGTH),
    }


def record(variant: str, seed: int) -> Record:
    """Inputs: those of `batch` and FILE/name, the tensors of the file; outputs: "logits" (B, T, V),
    "loss" (the mean over all targets, nats) and GRAD/name, its gradient for each tensor but those
    that have none: the head's bias, which theirs does not learn, and biases of keys, which add the
    same to all scores of a query."""
    made = model(variant, seed)
    given = batch(made.config, seed)
    result = made(
        input_ids=tensor(given["inputs"]),
        attention_mask=tensor(given["mask"]),
        decoder_input_ids=tensor(given["decoder_inputs"]),
        labels=tensor(given["targets"]).long(),
    )
    result.loss.backward()
    outputs = {"logits": array(result.logits), "loss": array(result.loss)}
    files, gradients, about = through_files(made, seed, partial=True)
    outputs |= {f"grad/{n}": x for n, x in gradients.items() if not n.endswith(WITHOUT_GRADIENT)}
    return Record(files | given, outputs, about)
