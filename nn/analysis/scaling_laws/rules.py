"""Published rules for learning rate and batch, as functions of size, tokens or compute.

Each was fitted to one recipe (optimiser, schedule, tokenizer, count of parameters): a place to
start a grid, never a proof that a run is tuned (`tuning.py` looks for that).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A peak learning rate of Adam and a batch in tokens; None where a rule is silent."""

    lr: float
    batch: float
    warmup: float | None = None  # tokens
    beta2: float | None = None


def step_law(N: float, D: float) -> Recipe:
    """Li et al. 2025 (arXiv:2503.04715): lr = 1.79 N^-0.713 D^0.307, batch = 0.58 D^0.571.

    N without embeddings.
    """
    return Recipe(lr=1.79 * N**-0.713 * D**0.307, batch=0.58 * D**0.571)


def deepseek(C: float) -> Recipe:
    """DeepSeek-AI 2024 (arXiv:2401.02954), lr = 0.3118 C^-0.125, batch = 0.292 C^0.3271.

    C = M D with M their FLOPs per token (`deepseek_allocation`).
    """
    return Recipe(lr=0.3118 * C**-0.125, batch=0.2920 * C**0.3271)


def deepseek_allocation(C: float) -> tuple[float, float]:
    """(M, D): FLOPs per token M = 72 L d^2 + 12 L d s and tokens, for C = M D; equation 4."""
    return 0.1715 * C**0.5243, 5.8316 * C**0.4757


def porian(N: float) -> Recipe:
    """Porian et al. 2024 (arXiv:2406.19146), as the OLMo project runs it.

    lr = 0.0047 (N/108e6)^(-1/3), batch = 160 x 2048 (N/108e6)^(2/3) tokens, warm-up of N tokens,
    beta2 = 0.99 for batches under half a million tokens, 0.95 above.
    """
    relative = N / 108e6
    batch = 160 * 2048 * relative ** (2 / 3)
    beta2 = 0.99 if batch < 0.5e6 else 0.95
    return Recipe(lr=0.0047 * relative ** (-1 / 3), batch=batch, warmup=N, beta2=beta2)


def power_lines_batch(D: float, D_reference: float, batch_reference: float) -> float:
    """Bergsma et al. 2025 (arXiv:2505.13738): the best batch grows as D^0.383, from a known one."""
    return batch_reference * (D / D_reference) ** 0.383
