"""Black et al. 2022, GPT-NeoX: files of transformers' GPTNeoXForCausalLM, in both directions.

Attention and feed-forward stand side by side behind norms of their own, unless
use_parallel_residual is off. `query_key_value` holds, head by head, queries, keys and values. The
rotary embedding turns a part of each head. The head of a file is `embed_out`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nn import names as names_
from nn.families.transformer import Config
from nn.pretrained import decoder
from nn.pretrained.table import Row, Table, dense, read

MODEL_TYPES = ("gpt_neox",)
FAMILY = "transformer"
# What the format means when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "model_type": "gpt_neox",
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "attention_bias": True,
    "tie_word_embeddings": False,
}


def config_from(raw: Mapping[str, Any]) -> Config:
    """The config of a model from the content of its config.json.

    Raises:
      ValueError: a value that is wrong, or that our transformer cannot express.
    """
    c = read(raw, DEFAULTS)
    rope = {"partial_rotary_factor": c["rotary_pct"]} | decoder.rope_of(
        c | {"rope_theta": c["rotary_emb_base"]}
    )
    turned = int(c["hidden_size"] // c["num_attention_heads"] * rope["partial_rotary_factor"])
    whole = rope | {"partial_rotary_factor": 1.0}
    return Config(
        vocab_size=c["vocab_size"],
        context_length=c["max_position_embeddings"],
        dim=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        mlp_dim=0 if c["intermediate_size"] == 4 * c["hidden_size"] else c["intermediate_size"],
        activation=names_.lookup("hidden_act", c["hidden_act"], decoder.PLAIN),
        norm_eps=c["layer_norm_eps"],
        parallel="two_norms" if c["use_parallel_residual"] else "none",
        position="rotary",
        rope_dim=turned,
        **decoder.rope_from(whole, c["max_position_embeddings"]),
        **decoder.biases_from(decoder.PROJECTIONS if c["attention_bias"] else (), mlp=True),
        tie_embeddings=c["tie_word_embeddings"],
        dropout=c["hidden_dropout"],
        attention_dropout=decoder.rate_from(c["attention_dropout"], c["hidden_dropout"]),
        init_std=c["initializer_range"],
    )


def config_to(config: Config) -> dict[str, Any]:
    """The content of config.json. It names no special tokens: those are the tokenizer's.

    Raises:
      ValueError: a GPT-NeoX cannot have a value of `config`.
    """
    share = (config.rope_dim or config.head_width) / config.head_width
    rope = decoder.rope_to(config, "GPT-NeoX")
    raw = {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": decoder.activation_to(config, decoder.PLAIN, "GPT-NeoX"),
        "rotary_pct": share,
        "rotary_emb_base": config.rope_theta,
        "rope_scaling": rope["rope_scaling"],
        "rope_parameters": rope["rope_parameters"] | {"partial_rotary_factor": share},
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_rate,
        "max_position_embeddings": config.context_length,
        "initializer_range": config.init_std,
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel == "two_norms",
        "attention_bias": decoder.biased(config, "query"),
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return decoder.held("a GPT-NeoX file", config, raw, config_from)


@dataclasses.dataclass(frozen=True)
class Heads(Row):
    """(H, 3, K, ...) of a file as three leaves whose heads and head width are `shape`'s last two.

    In the file the three are merged into one first dimension, behind which, for kernels, the input
    stands.
    """

    @property
    def file_shape(self) -> tuple[int, ...]:
        heads, width = self.shape[-2:]
        return (heads * len(self.ours) * width, *self.shape[:-2])

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        heads, width = self.shape[-2:]
        parts = tensor.reshape(heads, len(self.ours), width, *self.shape[:-2])
        if len(self.shape) > 2:
            parts = np.moveaxis(parts, -1, 0)
        return [parts[..., i, :] for i in range(len(self.ours))]

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        parts = np.stack(leaves, axis=-2)
        if len(self.shape) > 2:
            parts = np.moveaxis(parts, 0, -1)
        return np.ascontiguousarray(parts.reshape(self.file_shape))


def table(config: Config, names: Iterable[str] | None = None) -> Table:
    """What lies where.

    Raises:
      ValueError: a GPT-NeoX cannot have a value of `config`.
    """
    config_to(config)
    D, H, K, V = config.dim, config.num_heads, config.head_width, config.vocab_size
    layer, path = "gpt_neox.layers.{}", "blocks/attention"
    kernels = tuple(f"{path}/{x}_kernel" for x in decoder.PROJECTIONS[:3])
    fused = f"{layer}.attention.query_key_value"
    rows: list[Row] = [
        Row("gpt_neox.embed_in.weight", ("embed/embedding",), (V, D)),
        *decoder.norm(f"{layer}.input_layernorm", "blocks/attention_norm", D),
        *decoder.norm(f"{layer}.post_attention_layernorm", "blocks/mlp_norm", D),
        Heads(f"{fused}.weight", kernels, (D, H, K)),
        *dense(
            f"{layer}.attention.dense",
            f"{path}/out_kernel",
            (H, K, D),
            2,
            f"{path}/out_bias" if decoder.biased(config, "out") else "",
        ),
        *decoder.feed_forward(
            config, up=f"{layer}.mlp.dense_h_to_4h", down=f"{layer}.mlp.dense_4h_to_h"
        ),
        *decoder.norm("gpt_neox.final_layer_norm", "final_norm", D),
    ]
    if decoder.biased(config, "query"):
        biases = tuple(f"{path}/{x}_bias" for x in decoder.PROJECTIONS[:3])
        rows.append(Heads(f"{fused}.bias", biases, (H, K)))
    if not config.tie_embeddings:
        rows += dense("embed_out", "output/kernel", (D, V), 1)
    copies = {"embed_out.weight": "gpt_neox.embed_in.weight"} if config.tie_embeddings else {}
    masks = r"gpt_neox\.layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)"
    return Table(tuple(rows), config.num_layers, masks, copies)
