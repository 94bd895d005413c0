"""Tiny encoders of transformers, through the files that `save_pretrained` writes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import transformers

from tests.golden_store import Record
from tests.peers.files import through_files
from tests.peers.packages import array, tensor

# Every size differs, so that no mix-up of dimensions passes.
BERT: dict[str, Any] = dict(
    vocab_size=37,
    max_position_embeddings=13,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    type_vocab_size=2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
DISTILBERT: dict[str, Any] = dict(
    vocab_size=37,
    max_position_embeddings=13,
    dim=12,
    n_layers=2,
    n_heads=3,
    hidden_dim=20,
    dropout=0.0,
    attention_dropout=0.0,
    seq_classif_dropout=0.0,
)
THETAS = {"full_attention": 50.0, "sliding_attention": 7.0}
MODERNBERT: dict[str, Any] = dict(
    vocab_size=37,
    max_position_embeddings=13,
    hidden_size=12,
    num_hidden_layers=5,
    num_attention_heads=3,
    intermediate_size=14,
    local_attention=4,
    pad_token_id=0,
    cls_token_id=None,
    sep_token_id=None,
    rope_parameters={k: {"rope_type": "default", "rope_theta": x} for k, x in THETAS.items()},
)
LABELS = {"id2label": {i: f"LABEL_{i}" for i in range(5)}}
# model_type, what comes after the name of its classes, options
VARIANTS_OF: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "ForPreTraining", BERT),
    "bert_relu_eps": ("Bert", "ForMaskedLM", BERT | dict(hidden_act="relu", layer_norm_eps=0.05)),
    "bert_base": ("Bert", "Model", BERT),
    "bert_class": ("Bert", "ForSequenceClassification", BERT | LABELS),
    "roberta": ("Roberta", "ForMaskedLM", BERT | dict(max_position_embeddings=15)),
    "roberta_class": ("Roberta", "ForSequenceClassification", BERT),
    "distilbert": ("DistilBert", "ForMaskedLM", DISTILBERT),
    "distilbert_class": ("DistilBert", "ForSequenceClassification", DISTILBERT | LABELS),
    "electra": ("Electra", "ForPreTraining", BERT | dict(embedding_size=8, hidden_act="relu")),
    "electra_generator": ("Electra", "ForMaskedLM", BERT | dict(embedding_size=8)),
    "electra_class": ("Electra", "ForSequenceClassification", BERT | dict(embedding_size=12)),
    "modernbert": ("ModernBert", "ForMaskedLM", MODERNBERT),
    "modernbert_class": (
        "ModernBert",
        "ForSequenceClassification",
        MODERNBERT | LABELS | dict(classifier_pooling="mean", attention_bias=True, mlp_bias=True),
    ),
    "modernbert_biased": (
        "ModernBert",
        "ForMaskedLM",
        MODERNBERT
        | dict(norm_bias=True, classifier_bias=True, hidden_activation="silu")
        | dict(classifier_activation="relu", norm_eps=0.05),
    ),
}
VARIANTS = tuple(VARIANTS_OF)
# Added to the scores of all keys alike: the gradient is zero but for rounding.
SILENT = re.compile(r"\.(key|k_lin)\.bias$")
LENGTHS = (9, 5, 1)  # real tokens of each row; where no row is pooled, the second begins late


def classes(variant: str) -> tuple[Any, Any]:
    """Classes of the config and of the model."""
    name, kind, _ = VARIANTS_OF[variant]
    return getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}{kind}")


def model(variant: str, seed: int) -> transformers.PreTrainedModel:
    """A model all of whose parameters are random, biases and scales too."""
    config_class, model_class = classes(variant)
    special = dict(bos_token_id=None, eos_token_id=None)
    config = config_class(**{**special, **VARIANTS_OF[variant][2]})
    config._attn_implementation = "eager"
    made = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return made.eval()


def batch(variant: str, vocab_size: int, pad: int, seed: int) -> dict[str, np.ndarray]:
    """ids, mask (1: real), types where there are any, and labels of every kind."""
    name, kind, _ = VARIANTS_OF[variant]
    rng = np.random.default_rng(seed)
    column, lengths = np.arange(max(LENGTHS))[None], np.asarray(LENGTHS)[:, None]
    mask = column < lengths
    if kind == "ForMaskedLM":
        mask[1] = mask[1][::-1]
    made = {
        "ids": np.where(mask, rng.integers(2, vocab_size, mask.shape), pad),
        "mask": mask,
        "tokens": np.where(mask, rng.integers(0, vocab_size, mask.shape), -100),
        "replaced": rng.integers(0, 2, mask.shape),
        "row": rng.integers(0, 2, len(mask)),
    }
    if name in ("Bert", "Electra"):
        made["types"] = rng.integers(0, 2, mask.shape)
    return {key: x.astype(np.int32) for key, x in made.items()}


def run(made: transformers.PreTrainedModel, given: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Outputs by name, those of padding zero, and the loss."""
    kind = type(made).__name__
    long = {name: tensor(x.astype(np.int64)) for name, x in given.items()}
    inputs = {"input_ids": long["ids"], "attention_mask": long["mask"]}
    if "types" in long:
        inputs["token_type_ids"] = long["types"]
    real = long["mask"][..., None].float()
    if kind.endswith("Model"):
        pooled = made(**inputs).pooler_output
        return {"logits": pooled}, pooled.square().mean()
    if kind.endswith("BertForPreTraining"):
        labels = {"labels": long["tokens"], "next_sentence_label": long["row"]}
        out = made(**inputs, **labels)
        logits = {"logits": out.prediction_logits * real, "pair": out.seq_relationship_logits}
        return logits, out.loss
    if kind.endswith("ForPreTraining"):
        out = made(**inputs, labels=long["replaced"])
        return {"logits": out.logits * real[..., 0]}, out.loss
    if kind.endswith("ForSequenceClassification"):
        out = made(**inputs, labels=long["row"])
        return {"logits": out.logits}, out.loss
    out = made(**inputs, labels=long["tokens"])
    return {"logits": out.logits * real}, out.loss


def record(variant: str, seed: int) -> Record:
    """Inputs: those of `batch`, and FILE/name, the tensors of the file; outputs: what `run` gives,
    "loss" (nats) and GRAD/name, its gradient for each tensor."""
    made = model(variant, seed)
    given = batch(variant, made.config.vocab_size, made.config.pad_token_id, seed)
    logits, loss = run(made, given)
    loss.backward()
    outputs = {name: array(x) for name, x in logits.items()} | {"loss": array(loss)}
    files, gradients, about = through_files(made, seed)
    outputs |= {f"grad/{name}": x for name, x in gradients.items() if not SILENT.search(name)}
    return Record(files | given, outputs, about)
