"""Wang & Komatsuzaki 2021, GPT-J: files of transformers' GPTJForCausalLM, in both directions.

Attention and feed-forward stand side by side behind one norm. The rotary embedding turns the first
rotary_dim features of a head, neighbours in pairs. The head is not tied and has a bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn import names as names_
from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Row, Table, dense, prefix, read, require

MODEL_TYPES = ("gptj",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "gptj",
    "vocab_size": 50400,
    "n_positions": 2048,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "n_inner": None,  # None: 4 * n_embd
    "activation_function": "gelu_new",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    require(
        "our transformer",
        embd_pdrop=(c["embd_pdrop"], c["resid_pdrop"]),
        tie_word_embeddings=(c["tie_word_embeddings"], False),
    )
    activation = c["activation_function"]
    return Config(
        vocab_size=c["vocab_size"],
        context_length=c["n_positions"],
        dim=c["n_embd"],
        num_layers=c["n_layer"],
        num_heads=c["n_head"],
        mlp_dim=c["n_inner"] or 0,
        activation=names_.lookup("activation_function", activation, decoder.PLAIN),
        norm_eps=c["layer_norm_epsilon"],
        parallel="one_norm",
        position="rotary",
        rope_dim=c["rotary_dim"],
        rope_interleaved=True,
        unbiased=decoder.PROJECTIONS,
        head_bias=True,
        tie_embeddings=False,
        dropout=c["resid_pdrop"],
        attention_dropout=decoder.rate_from(c["attn_pdrop"], c["resid_pdrop"]),
        init_std=c["initializer_range"],
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens: those are the tokenizer's.

    Raises:
      ValueError: a GPT-J cannot have a value of `config`.
    """
    raw = {
        "model_type": "gptj",
        "architectures": ["GPTJForCausalLM"],
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "rotary_dim": config.rope_dim or config.head_width,
        "n_inner": config.mlp_dim or None,
        "activation_function": decoder.activation_to(config, decoder.PLAIN, "GPT-J"),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_rate,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return decoder.held("a GPT-J file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a GPT-J cannot have a value of `config`.
    """
    config_to(config)
    base = prefix(names, "transformer.")
    D, V, layer = config.dim, config.vocab_size, f"{base}h.{{}}"
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    rows = [
        Row(f"{base}wte.weight", ("embed/embedding",), (V, D)),
        *decoder.norm(f"{layer}.ln_1", "blocks/attention_norm", D),
        *decoder.attention(config, f"{layer}.attn", projections),
        *decoder.feed_forward(config, up=f"{layer}.mlp.fc_in", down=f"{layer}.mlp.fc_out"),
        *decoder.norm(f"{base}ln_f", "final_norm", D),
        *dense("lm_head", "output/kernel", (D, V), 1, "head_bias"),
    ]
    masks = r"(transformer\.)?h\.\d+\.attn\.((masked_)?bias|embed_positions)"
    return Table(tuple(rows), config.num_layers, masks)
