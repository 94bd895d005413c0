"""Jiang et al. 2024, Mixtral: files of transformers' MixtralForCausalLM, in both directions.

Attention, norms, embeddings and rotary positions are stored as Llama's. Each expert has tensors of
its own, w1 (gate), w3 (up) and w2 (down), which we stack along a first dimension.

The published coefficient of the balance loss is that of transformers' loss, which takes the means
over layers before the product; ours adds up over layers (Fedus et al. 2022), hence the division.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Table, dense, read, require

MODEL_TYPES = ("mixtral",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    **decoder.DEFAULTS,
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    # Their jitter disturbs what the experts see too.
    require("our transformer", router_jitter_noise=(c["router_jitter_noise"], 0.0))
    return Config(
        **decoder.fields_from(c),
        bias=False,
        windows=decoder.windows_from(c),
        num_experts=c["num_local_experts"],
        experts_per_token=c["num_experts_per_tok"],
        router_balance_loss=c["router_aux_loss_coef"] / c["num_hidden_layers"],
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      ValueError: a Mixtral cannot have a value of `config`.
    """
    if not config.num_experts:
        raise ValueError("num_experts=0: a Mixtral file has some; nearest: model_type 'llama'")
    raw = decoder.fields_to(config, "Mixtral") | {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "sliding_window": decoder.windows_to(config, "Mixtral")["sliding_window"],
        "num_experts_per_tok": config.experts_per_token,
        "num_local_experts": config.num_experts,
        "router_aux_loss_coef": config.router_balance_loss * config.num_layers,
        "router_jitter_noise": 0.0,
        "output_router_logits": False,
    }
    return decoder.held("a Mixtral file", config, raw, config_from)


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a Mixtral cannot have a value of `config`.
    """
    config_to(config)
    D, E, F = config.dim, config.num_experts, config.mlp_width
    moe = f"{decoder.LAYER}.block_sparse_moe"
    rows = dense(f"{moe}.gate", "blocks/moe/router_kernel", (D, E), 1)
    for file, ours, matrix in (
        ("w1", "gate", (D, F)),
        ("w2", "down", (F, D)),
        ("w3", "up", (D, F)),
    ):
        path = f"blocks/moe/{ours}_kernel"
        rows += dense(f"{moe}.experts.{{}}.{file}", path, matrix, 1)
    return decoder.table(config, rows)
