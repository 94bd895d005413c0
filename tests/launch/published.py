"""Tiny published directories on disk, for the tests of what reads them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from launch.run import safetensors_files
from nn.families import seq2seq_transformer, transformer, whisper
from nn.pretrained import llama
from nn.pretrained.table import nest
from tests import golden_store
from tests.parity.decoders import file_of


def write(
    directory: Path, record: str = "decoders.llama", dtype: Any = None, shard_size: int = 10**9
) -> dict[str, np.ndarray]:
    """A record's config and tensors as transformers publishes them; returns the tensors."""
    found = golden_store.load(record)
    tensors = {name: x.astype(dtype or x.dtype) for name, x in file_of(found).items()}
    content = found.about["config"] | {"dtype": str(jnp.dtype(dtype or np.float32))}
    sizes = {name: (x.shape, x.dtype) for name, x in tensors.items()}
    safetensors_files.write(directory, content, sizes, tensors.items(), shard_size)
    return tensors


# A Llama that bytes can be asked of.
BYTES_LLAMA = transformer.Config(
    vocab_size=256,
    context_length=64,
    dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=24,
    activation="swiglu",
    norm="rms",
    position="rotary",
    bias=False,
    tie_embeddings=False,
)


BYTES_T5 = dataclasses.replace(
    seq2seq_transformer.PRESETS["t5-small"],
    vocab_size=256,
    dim=16,
    encoder_layers=2,
    decoder_layers=2,
    num_heads=4,
    head_dim=6,
    mlp_dim=24,
)


# A Whisper of bytes that hears 0.48 s: the end, what starts a transcript, and times from 263 on.
BYTES_WHISPER = whisper.Config(
    vocab_size=288,
    context_length=24,
    audio_context=24,
    num_mels=8,
    dim=16,
    encoder_layers=2,
    decoder_layers=2,
    num_heads=2,
    tie_embeddings=False,  # or it repeats what it read
)
WHISPER_GENERATION: dict[str, Any] = {
    "eos_token_id": 256,
    "decoder_start_token_id": 257,
    "lang_to_id": {"<|en|>": 258, "<|de|>": 259},
    "task_to_id": {"translate": 260, "transcribe": 261},
    "no_timestamps_token_id": 262,
    "suppress_tokens": [*range(32), *range(127, 256), *range(257, 263)],
    "begin_suppress_tokens": [32, 256],
}


def write_bytes_llama(directory: Path, dtype: Any, shard_size: int = 10**9) -> None:
    """A Llama of random weights, by our own exporter; its norms are float32."""
    write_bytes(directory, llama, BYTES_LLAMA, dtype, shard_size)


def write_bytes(
    directory: Path,
    format_: Any,
    config: Any,
    dtype: Any,
    shard_size: int = 10**9,
    scale: float = 0.2,
) -> None:
    rng = np.random.default_rng(0)
    table = format_.table(config)
    shapes = table.shapes().items()
    leaves = {path: rng.normal(0, scale, shape) for path, shape in shapes}
    kinds = {path: np.float32 if "norm" in path else dtype for path in leaves}
    tensors = table.from_ours(nest({path: x.astype(kinds[path]) for path, x in leaves.items()}))
    content = format_.config_to(config) | {"dtype": str(jnp.dtype(dtype))}
    sizes = {name: (x.shape, x.dtype) for name, x in tensors.items()}
    safetensors_files.write(directory, content, sizes, tensors.items(), shard_size)


def same_bytes(a: Any, b: Any) -> bool:
    """Whether two mappings of tensors have the same names, dtypes, shapes and bits."""
    return a.keys() == b.keys() and all(
        (a[n].dtype, a[n].shape, a[n].tobytes()) == (b[n].dtype, b[n].shape, b[n].tobytes())
        for n in a
    )
