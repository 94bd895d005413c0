"""What the files of Llama's descendants have in common: keys of config.json, names of tensors.

RMS norms, rotary positions, grouped-query attention, an output head of its own unless it is tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nn import names
from nn.families.transformer import Config
from nn.pretrained.table import Row, Table, dense

LAYER = "model.layers.{}"


def fields_from(c: Mapping[str, Any], activations: Mapping[str, str]) -> dict[str, Any]:
    """Fields of our Config from a whole config.json; activations: theirs -> ours, gated."""
    dim, heads = c["hidden_size"], c["num_attention_heads"]
    kv_heads, width = c["num_key_value_heads"], c["head_dim"]
    return {
        "vocab_size": c["vocab_size"],
        "context_length": c["max_position_embeddings"],
        "dim": dim,
        "num_layers": c["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": 0 if kv_heads in (None, heads) else kv_heads,
        "head_dim": 0 if width is None or width * heads == dim else width,
        "mlp_dim": c["intermediate_size"],
        "activation": names.lookup("hidden_act", c["hidden_act"], activations),
        "norm": "rms",
        "norm_eps": c["rms_norm_eps"],
        "position": "rotary",
        "tie_embeddings": c["tie_word_embeddings"],
        "init_std": c["initializer_range"],
    }


def fields_to(config: Config, activations: Mapping[str, str], kind: str) -> dict[str, Any]:
    """The same keys of a config.json of a kind of model, such as "Llama". It names no special
    tokens: those are the tokenizer's."""
    # Of two names for one function the first is written.
    theirs = {ours: name for name, ours in reversed(list(activations.items()))}
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": names.lookup(f"activation of {kind}", config.activation, theirs),
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rope_theta,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def table(config: Config, feed_forward: list[Row], experts: int = 0) -> Table:
    """Everything but the feed-forward blocks, and those."""
    D, H, G, K = config.dim, config.num_heads, config.kv_heads, config.head_width
    rows = [
        Row("model.embed_tokens.weight", ("embed/embedding",), (config.vocab_size, D)),
        Row("model.norm.weight", ("final_norm/scale",), (D,)),
    ]
    for file, ours in (("input", "attention"), ("post_attention", "mlp")):
        rows.append(Row(f"{LAYER}.{file}_layernorm.weight", (f"blocks/{ours}_norm/scale",), (D,)))
    for file, ours, shape, inputs in (
        ("q", "query", (D, H, K), 1),
        ("k", "key", (D, G, K), 1),
        ("v", "value", (D, G, K), 1),
        ("o", "out", (H, K, D), 2),
    ):
        path = f"blocks/attention/{ours}"
        bias = f"{path}_bias" if config.bias else ""
        rows += dense(f"{LAYER}.self_attn.{file}_proj", f"{path}_kernel", shape, inputs, bias)
    rows += feed_forward
    if not config.tie_embeddings:
        rows += dense("lm_head", "output/kernel", (D, config.vocab_size), 1)
    copies = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {}
    frequencies = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    return Table(tuple(rows), config.num_layers, frequencies, copies, experts=experts)
