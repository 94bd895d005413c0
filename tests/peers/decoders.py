"""Tiny decoders of transformers, through the files that `save_pretrained` writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from nn.pretrained import formats
from tests.golden_store import Record
from tests.peers.files import through_files
from tests.peers.packages import array, tensor

# Every size differs, so that no mix-up of dimensions passes.
GPT2 = dict(
    vocab_size=37, n_positions=11, n_embd=12, n_layer=2, n_head=3, n_inner=20
) | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
LLAMA = dict(
    vocab_size=41,
    max_position_embeddings=72,
    hidden_size=20,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=14,
)
# Of the three frequencies, one is kept, one lies on the ramp and one is divided.
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=50.0,
    factor=4.0,
    low_freq_factor=1.5,  # not our default
    high_freq_factor=5.0,
    original_max_position_embeddings=64,
)
MIXTRAL = LLAMA | dict(
    num_hidden_layers=2, num_local_experts=5, num_experts_per_tok=2, router_aux_loss_coef=0.0
)
HIDDEN = dict(
    vocab_size=37,
    max_position_embeddings=13,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
)
WINDOWS = dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"])
GEMMA = (
    LLAMA
    | WINDOWS
    | dict(num_hidden_layers=2, query_pre_attn_scalar=11, final_logit_softcapping=3.0)
    | dict(attn_logit_softcapping=2.0)
)
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt2_relu_untied": GPT2
    | dict(activation_function="relu", tie_word_embeddings=False, layer_norm_epsilon=0.05),
    "llama": LLAMA,
    "llama_tied_llama3": LLAMA | dict(tie_word_embeddings=True, rope_parameters=LLAMA3),
    "llama_bias_linear": LLAMA
    | dict(
        attention_bias=True,
        mlp_bias=True,
        num_key_value_heads=4,
        rms_norm_eps=0.05,
        rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=2.5),
    ),
    "mixtral": MIXTRAL,
    # Their balance loss takes the means over layers first; with one layer it is ours.
    "mixtral_balance_window": MIXTRAL
    | dict(
        num_hidden_layers=1,
        num_experts_per_tok=3,
        router_aux_loss_coef=0.5,
        output_router_logits=True,
        sliding_window=4,
        tie_word_embeddings=True,
    ),
    "mistral": LLAMA | dict(sliding_window=3),
    "qwen2": LLAMA | WINDOWS | dict(num_hidden_layers=2, use_sliding_window=True),
    "qwen3": LLAMA | dict(num_hidden_layers=2, tie_word_embeddings=True),
    "olmo2": LLAMA | dict(num_hidden_layers=2, hidden_size=24),
    "gemma2": GEMMA,
    "gemma3_text": GEMMA
    | dict(
        attn_logit_softcapping=None,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
        },
    ),
    "openai-gpt": {k: v for k, v in GPT2.items() if k != "n_inner"},
    "gpt_neo": dict(
        vocab_size=37,
        max_position_embeddings=13,
        hidden_size=12,
        num_layers=2,
        num_heads=3,
        attention_types=[[["global", "local"], 1]],
        window_size=3,
        intermediate_size=20,
    ),
    "gptj": GPT2 | dict(n_embd=24, rotary_dim=4),
    "gpt_neox": HIDDEN | dict(rotary_pct=0.5, rotary_emb_base=50),
    "gpt_neox_sequential": HIDDEN
    | dict(use_parallel_residual=False, attention_bias=False, rotary_pct=1.0),
    "opt": {k: v for k, v in HIDDEN.items() if k != "intermediate_size"}
    | dict(ffn_dim=20, dropout=0.0, word_embed_proj_dim=24),
    "opt_350m": {k: v for k, v in HIDDEN.items() if k != "intermediate_size"}
    | dict(ffn_dim=20, dropout=0.0, word_embed_proj_dim=10, do_layer_norm_before=False),
}
VARIANTS = tuple(OPTIONS)


def model_type(variant: str) -> str:
    """A variant's name begins with it; of two the longer."""
    known = (name for name in formats() if f"{variant}_".startswith(f"{name}_"))
    return max(known, key=len)


BATCH, LENGTH = 3, 9
LENGTHS = (9, 5, 1)  # of rows that are padded on the left
BEYOND = 100  # more positions than any of these models was made for
# Their learned or precomputed tables end.
NO_FURTHER = ("gpt2", "openai-gpt", "gpt_neo", "gptj", "opt")


def model(variant: str, seed: int) -> transformers.PreTrainedModel:
    """A model all of whose parameters are random, biases and scales too."""
    options = dict(OPTIONS[variant], bos_token_id=None, eos_token_id=None, pad_token_id=None)
    config = transformers.AutoConfig.for_model(model_type(variant), **options)
    config._attn_implementation = "eager"  # no fused kernel
    config._experts_implementation = "eager"
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return made.eval()


def odd(
    made: transformers.PreTrainedModel, ids: np.ndarray, further: bool
) -> dict[str, np.ndarray]:
    """Logits of "padded" rows, which have `LENGTHS` tokens at their ends and 0 elsewhere, of rows
    of a "single" token and, with `further`, of rows that begin at position `BEYOND`."""
    mask = (np.arange(LENGTH) >= LENGTH - np.asarray(LENGTHS)[:, None]).astype(np.int64)
    places = np.maximum(mask.cumsum(axis=1) - 1, 0)
    with torch.no_grad():
        padded = made(
            input_ids=tensor(ids), attention_mask=tensor(mask), position_ids=tensor(places)
        )
        single = made(input_ids=tensor(ids[:, :1]))
        found = {"padded": array(padded.logits) * mask[..., None], "single": array(single.logits)}
        if further:
            later = np.broadcast_to(np.arange(LENGTH) + BEYOND, ids.shape)
            beyond = made(input_ids=tensor(ids), position_ids=tensor(later.copy()))
            found["beyond"] = array(beyond.logits)
    return {f"odd/{name}": x.astype(np.float32) for name, x in found.items()}


def record(variant: str, seed: int) -> Record:
    """Inputs: "ids" (B, T) and FILE/name, the tensors of the file; outputs: "logits" (B, T, V),
    those of `odd`, "loss" (the mean over all targets, nats, and what the config adds to it) and
    GRAD/name, its gradient for each tensor."""
    made = model(variant, seed)
    ids = np.random.default_rng(seed).integers(0, made.config.vocab_size, (BATCH, LENGTH))
    result = made(input_ids=tensor(ids), labels=tensor(ids))
    result.loss.backward()
    outputs = {"logits": array(result.logits), "loss": array(result.loss)}
    outputs |= odd(made, ids, model_type(variant) not in NO_FURTHER)
    files, gradients, about = through_files(made, seed)
    about |= {"lengths": LENGTHS, "beyond": BEYOND}
    outputs |= {f"grad/{name}": x for name, x in gradients.items()}
    return Record(files | {"ids": ids.astype(np.int32)}, outputs, about)
