"""What the files of BERT's descendants have in common: keys of config.json, names of tensors.

Learned positions, layer norms after each branch, biases everywhere, a head that is tied to the
table of tokens. Which head a file has is told by `architectures` in its config.json; one that names
none is the encoder alone. Heads that a file has and the config does not are left aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nn import names
from nn.families.bert import Config
from nn.pretrained.table import Row, Table, dense, prefix, require

# What BERT, RoBERTa and ELECTRA mean when config.json leaves a key out.
DEFAULTS: Mapping[str, Any] = {
    "architectures": None,
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,  # None: hidden_dropout_prob
    "max_position_embeddings": 512,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "id2label": None,
    "num_labels": 2,
}
# Theirs -> ours; of two names for one function the first is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
# Names of older files.
LEGACY = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
# Within a layer: query, key, value, out; the norms after attention and feed-forward; those two.
BERT_LAYER = (
    (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ),
    ("attention.output.LayerNorm", "output.LayerNorm"),
    ("intermediate.dense", "output.dense"),
)
# Of one size: the rest is told by the shape of the head.
ONLY = {
    "norm_order": "post",
    "norm_bias": True,
    "bias": True,
    "position": "learned",
    "windows": (0,),
    "head_bias": True,
    "pool": "first",
    "pool_norm": False,
}


def head_from(c: Mapping[str, Any], heads: Mapping[str, str], alone: str) -> dict[str, Any]:
    """Fields of the head; heads: architecture -> ours; alone: that of a file that names none.

    Raises:
      ValueError: an architecture whose head we have not.
    """
    named = c["architectures"] or [""]
    labels = c["num_labels"] if c["id2label"] is None else len(c["id2label"])
    head = names.lookup("architecture", named[0], heads) if named[0] else alone
    return {"head": head, "num_classes": labels}


def head_to(config: Config, heads: Mapping[str, str], kind: str) -> dict[str, Any]:
    """The keys that `head_from` reads. Raises ValueError for a head that the format has not."""
    theirs = {ours: name for name, ours in heads.items()}
    found: dict[str, Any] = {
        "architectures": [names.lookup(f"head of {kind}", config.head, theirs)]
    }
    if config.num_classes != 2:
        labels = {str(i): f"LABEL_{i}" for i in range(config.num_classes)}
        found["id2label"] = labels
        found["label2id"] = {label: int(i) for i, label in labels.items()}
    return found


def padding(raw: Mapping[str, Any], default: int) -> int:
    """Field `pad_token`: -1 where config.json says that there is none.

    Raises:
      ValueError: it is no number.
    """
    found = raw["pad_token_id"] if "pad_token_id" in raw else default
    if found is not None and not isinstance(found, int):
        raise ValueError(f"pad_token_id={found!r}: must be of type int")
    return -1 if found is None else found


def fields_from(c: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our Config from a config.json with the keys of `DEFAULTS`, but those of the head
    and of padding.

    Raises:
      ValueError: a value that our encoder cannot express.
    """
    rate = c["hidden_dropout_prob"]
    require(
        "our encoder",
        is_decoder=(c["is_decoder"], False),
        add_cross_attention=(c["add_cross_attention"], False),
        position_embedding_type=(c["position_embedding_type"], "absolute"),
        tie_word_embeddings=(c["tie_word_embeddings"], True),
        classifier_dropout=(
            rate if c["classifier_dropout"] is None else c["classifier_dropout"],
            rate,
        ),
    )
    return {
        "vocab_size": c["vocab_size"],
        "context_length": c["max_position_embeddings"],
        "token_types": c["type_vocab_size"],
        "dim": c["hidden_size"],
        "num_layers": c["num_hidden_layers"],
        "num_heads": c["num_attention_heads"],
        "mlp_dim": c["intermediate_size"],
        "activation": names.lookup("hidden_act", c["hidden_act"], ACTIVATIONS),
        "norm_eps": c["layer_norm_eps"],
        "dropout": rate,
        "attention_dropout": c["attention_probs_dropout_prob"],
        "init_std": c["initializer_range"],
    }


def fields_to(config: Config, kind: str) -> dict[str, Any]:
    """The same keys of a config.json of a kind of model, such as "BERT".

    Raises:
      ValueError: such a file cannot have a value of `config`.
    """
    require(f"a {kind} file", **{n: (getattr(config, n), wanted) for n, wanted in ONLY.items()})
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "type_vocab_size": config.token_types,
        "pad_token_id": None if config.pad_token < 0 else config.pad_token,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": activation_to(config.activation, kind),
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def activation_to(ours: str, kind: str) -> str:
    """Their name of an activation."""
    theirs = {own: name for name, own in reversed(ACTIVATIONS.items())}
    found: str = names.lookup(f"activation of {kind}", ours, theirs)
    return found


def base_of(config: Config, names_: Iterable[str] | None, base: str) -> str:
    """What stands before the encoder's tensors: nothing in files of it alone."""
    if names_ is None and config.head in ("none", "pooled"):
        return ""
    return prefix(names_, base)


def embeddings(base: str, config: Config) -> list[Row]:
    """Tables of tokens, positions and types, and their norm."""
    E, rows = config.embed_width, config.context_length + config.position_offset
    sizes = {"word": ("embed", config.vocab_size), "position": ("positions", rows)}
    if config.token_types:
        sizes["token_type"] = ("types", config.token_types)
    found = [
        Row(f"{base}embeddings.{file}_embeddings.weight", (f"{ours}/embedding",), (size, E))
        for file, (ours, size) in sizes.items()
    ]
    return found + norm(f"{base}embeddings.LayerNorm", "embed_norm", E)


def blocks(layer: str, config: Config, files: tuple[tuple[str, ...], ...]) -> list[Row]:
    """layer: name of a layer, with "{}"; files: see `BERT_LAYER`."""
    D, H, K, F = config.dim, config.num_heads, config.head_width, config.mlp_width
    projections, norms, (up, down) = files
    rows = []
    for file, ours in zip(projections, ("query", "key", "value", "out"), strict=True):
        path = f"blocks/attention/{ours}"
        shape, inputs = ((H, K, D), 2) if ours == "out" else ((D, H, K), 1)
        rows += dense(f"{layer}.{file}", f"{path}_kernel", shape, inputs, f"{path}_bias")
    for file, ours in zip(norms, ("attention", "mlp"), strict=True):
        rows += norm(f"{layer}.{file}", f"blocks/{ours}_norm", D)
    rows += linear(f"{layer}.{up}", "blocks/mlp/up", D, F)
    return rows + linear(f"{layer}.{down}", "blocks/mlp/down", F, D)


def norm(file: str, ours: str, width: int, bias: bool = True) -> list[Row]:
    leaves = {"weight": "scale", "bias": "bias"} if bias else {"weight": "scale"}
    return [Row(f"{file}.{x}", (f"{ours}/{y}",), (width,)) for x, y in leaves.items()]


def linear(file: str, ours: str, into: int, out: int, bias: bool = True) -> list[Row]:
    """Rows of our `Dense`."""
    return dense(file, f"{ours}/kernel", (into, out), 1, f"{ours}/bias" if bias else "")


def token_head(
    config: Config, transform: str, norm_: str, bias: str, head_bias: bool = True
) -> list[Row]:
    """Names of the dense layer before the logits, of its norm, and of the logits' bias."""
    D, E, norms = config.dim, config.embed_width, config.norm_bias
    return [
        *linear(transform, "transform", D, E, head_bias),
        *norm(norm_, "transform_norm", E, norms),
        Row(bias, ("head_bias",), (config.vocab_size,)),
    ]


def table(config: Config, rows: list[Row], heads: str, copies: Mapping[str, str]) -> Table:
    """heads: pattern of the names of tensors of heads, which a file may have beside those of
    `rows`; copies: see `Table`, of the head of tokens."""
    ignored = rf"(.*\.)?position_ids|{heads}"
    tied = copies if config.predicts_tokens else {}
    return Table(tuple(rows), config.num_layers, ignored, tied, legacy=LEGACY)
