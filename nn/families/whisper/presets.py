"""The published sizes by name (Radford et al. 2022, table 1, and later versions)."""

from __future__ import annotations

from nn.families.whisper.config import Config

MULTILINGUAL, ENGLISH, CANTONESE = 51865, 51864, 51866  # tokens; the last of version 3


def _whisper(
    dim: int, layers: int, decoder_layers: int = 0, vocabulary: int = MULTILINGUAL, mels: int = 80
) -> Config:
    return Config(
        vocab_size=vocabulary,
        num_mels=mels,
        dim=dim,
        encoder_layers=layers,
        decoder_layers=decoder_layers or layers,
        num_heads=dim // 64,
    )


PRESETS = {
    "tiny": _whisper(384, 4),
    "tiny.en": _whisper(384, 4, vocabulary=ENGLISH),
    "base": _whisper(512, 6),
    "base.en": _whisper(512, 6, vocabulary=ENGLISH),
    "small": _whisper(768, 12),
    "small.en": _whisper(768, 12, vocabulary=ENGLISH),
    "medium": _whisper(1024, 24),
    "medium.en": _whisper(1024, 24, vocabulary=ENGLISH),
    "large-v2": _whisper(1280, 32),
    "large-v3": _whisper(1280, 32, vocabulary=CANTONESE, mels=128),
    "large-v3-turbo": _whisper(1280, 32, 4, vocabulary=CANTONESE, mels=128),
}
