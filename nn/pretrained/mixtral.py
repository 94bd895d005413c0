"""Jiang et al. 2024, Mixtral: files of transformers' MixtralForCausalLM, in both directions.

Attention, norms, embeddings and rotary positions are stored as Llama's. Each expert has tensors of
its own, w1 (gate), w3 (up) and w2 (down), which we stack along a first dimension.

The published coefficient of the balance loss is that of transformers' loss, which takes the means
over layers before the product; ours adds up over layers (Fedus et al. 2022), hence the division.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nn import names
from nn.families.transformer import Config
from nn.pretrained.table import Params, Row, Table, dense, read, require

# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,  # None: hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
}
ACTIVATIONS = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    rope = {"rope_theta": c["rope_theta"], "rope_type": "default"} | (c["rope_parameters"] or {})
    require(
        "our transformer",
        attention_dropout=(c["attention_dropout"], 0.0),
        # Theirs disturbs what the experts see too.
        router_jitter_noise=(c["router_jitter_noise"], 0.0),
        rope_scaling=(c["rope_scaling"], None),
        rope_type=(rope["rope_type"], "default"),
    )
    dim, heads = c["hidden_size"], c["num_attention_heads"]
    kv_heads, width = c["num_key_value_heads"], c["head_dim"]
    return Config(
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        dim=dim,
        num_layers=c["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=0 if kv_heads in (None, heads) else kv_heads,
        head_dim=0 if width is None or width * heads == dim else width,
        mlp_dim=c["intermediate_size"],
        activation=names.lookup("hidden_act", c["hidden_act"], ACTIVATIONS),
        norm="rms",
        norm_eps=c["rms_norm_eps"],
        position="rotary",
        rope_theta=float(rope["rope_theta"]),
        bias=False,
        tie_embeddings=c["tie_word_embeddings"],
        window=c["sliding_window"] or 0,
        init_std=c["initializer_range"],
        num_experts=c["num_local_experts"],
        experts_per_token=c["num_experts_per_tok"],
        router_balance_loss=c["router_aux_loss_coef"] / c["num_hidden_layers"],
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens: those are the tokenizer's.

    Raises:
      ValueError: a Mixtral cannot have a value of `config`.
    """
    plain = Config(num_experts=max(config.num_experts, 1), experts_per_token=1)
    fixed = (
        *("expert_dim", "shared_experts", "router_scores", "router_normalize", "router_scale"),
        *("router_groups", "router_bias_rate", "router_jitter", "router_z_loss"),
        "router_capacity",
    )
    require(
        "a Mixtral file",
        norm=(config.norm, "rms"),
        position=(config.position, "rotary"),
        rope_scaling=(config.rope_scaling, "none"),
        bias=(config.bias, False),
        dropout=(config.dropout, 0.0),
        num_experts=(config.num_experts, plain.num_experts),
        **{name: (getattr(config, name), getattr(plain, name)) for name in fixed},
    )
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}
    return {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": names.lookup("activation of Mixtral", config.activation, theirs),
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "attention_dropout": config.dropout,
        "sliding_window": config.window or None,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "num_experts_per_tok": config.experts_per_token,
        "num_local_experts": config.num_experts,
        "router_aux_loss_coef": config.router_balance_loss * config.num_layers,
        "router_jitter_noise": 0.0,
        "output_router_logits": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def to_ours(tensors: Mapping[str, np.ndarray], config: Config) -> Params:
    """Parameters of `nn.families.transformer` from the tensors of a file.

    Raises:
      ValueError: a tensor is missing, unknown or of the wrong shape.
    """
    return _table(config).to_ours(tensors)


def from_ours(params: Params, config: Config) -> dict[str, np.ndarray]:
    """The tensors of a file, named as transformers writes them.

    Raises:
      ValueError: a parameter is missing, unknown or of the wrong shape.
    """
    return _table(config).from_ours(params)


def _table(config: Config) -> Table:
    config_to(config)  # refuses what a Mixtral cannot be
    D, H, G, K = config.dim, config.num_heads, config.kv_heads, config.head_width
    E, F = config.num_experts, config.mlp_width
    rows = [
        Row("model.embed_tokens.weight", ("embed/embedding",), (config.vocab_size, D)),
        Row("model.norm.weight", ("final_norm/scale",), (D,)),
    ]
    layer = "model.layers.{}"
    for file, ours in (("input", "attention"), ("post_attention", "mlp")):
        rows.append(Row(f"{layer}.{file}_layernorm.weight", (f"blocks/{ours}_norm/scale",), (D,)))
    for file, ours, shape, inputs in (
        ("q", "query", (D, H, K), 1),
        ("k", "key", (D, G, K), 1),
        ("v", "value", (D, G, K), 1),
        ("o", "out", (H, K, D), 2),
    ):
        path = f"blocks/attention/{ours}_kernel"
        rows += dense(f"{layer}.self_attn.{file}_proj", path, shape, inputs)
    moe = f"{layer}.block_sparse_moe"
    rows += dense(f"{moe}.gate", "blocks/moe/router_kernel", (D, E), 1)
    for file, ours, matrix in (
        ("w1", "gate", (D, F)),
        ("w2", "down", (F, D)),
        ("w3", "up", (D, F)),
    ):
        path = f"blocks/moe/{ours}_kernel"
        rows += dense(f"{moe}.experts.{{}}.{file}", path, matrix, 1)
    if not config.tie_embeddings:
        rows += dense("lm_head", "output/kernel", (D, config.vocab_size), 1)
    copies = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {}
    frequencies = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    return Table(tuple(rows), config.num_layers, frequencies, copies, experts=E)
