"""Texts in, log-likelihoods out: a scorer of tokens with the tokeniser of its model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from launch.run import pretrained, restore
from launch.run.build import Run
from launch.run.likelihood import Request, Score, Scorer
from launch.run.text import Tokenizer


@dataclasses.dataclass(frozen=True)
class Language:
    """A language model.

    encode: text -> tokens, none of them special. prefix: what every text begins with for the model;
    an empty text too, so that its first token has something before it.
    """

    scorer: Scorer
    encode: Callable[[str], list[int]]
    prefix: tuple[int, ...]
    # Whether a text that is not empty begins with the prefix too where it is only a context.
    always: bool = False

    def document(self, content: str) -> Request:
        """All tokens of a text, after the prefix."""
        return Request([*self.prefix, *self.encode(content)], len(self.prefix))

    def continuation(self, context: str, content: str) -> Request:
        """The tokens of `content` after those of `context`; the prefix where that is empty.

        Both are encoded together, and scored is what differs from the context alone: a token that
        lies across the border, such as a space with the word after it, counts as continuation.

        Raises:
          ValueError: a continuation without tokens.
        """
        before = [*(self.prefix if self.always or not context else ())]
        alone, both = self.encode(context), self.encode(context + content)
        common = 0
        while common < min(len(alone), len(both)) and alone[common] == both[common]:
            common += 1
        if common == len(both):
            raise ValueError(f"the continuation {content!r} adds no token to its context")
        if not before and not common:  # the first token of the context is another one now
            before = [*self.prefix]
        return Request([*before, *both], len(before) + common)

    def score(self, requests: Sequence[Request], stride: int | None = None) -> list[Score]:
        """See `Scorer.score`."""
        return self.scorer.score(requests, stride)


def open_model(
    workdir: str | None,
    pretrained_from: str | None,
    overrides: Sequence[str] = (),
    step: int | None = None,
) -> tuple[Run, Any]:
    """The run and the state of a work directory, or of a directory with published weights.

    Raises:
      ValueError: not exactly one of the two; what `restore` and `pretrained` raise.
    """
    if (workdir is None) == (pretrained_from is None):
        raise ValueError("give one of --workdir and --pretrained")
    if workdir is None:
        if step is not None:
            raise ValueError(f"--step={step}: published weights have no checkpoints; drop it")
        return pretrained.load(str(pretrained_from), overrides)
    run = restore.run_of(workdir, overrides)
    return run, restore.state_of(run, workdir, step)[0]


def of_run(run: Run, state: Any, tokenizer: Tokenizer, rows: int | None = None) -> Language:
    """The model of a run, in a state of it, on the run's mesh.

    rows: of a batch; the run's own by default.

    Raises:
      ValueError: a model that predicts no next token.
    """
    model = run.config.model
    if not hasattr(run.rule.task.objective, "CODES") or "vocab_size" not in model:
        raise ValueError(
            f"objective.name={run.config.objective.name!r} gives texts no likelihood; "
            "nearest: a run with objective.name='next_token'"
        )
    length = model.context_length if "context_length" in model else run.config.data.sequence_length
    variables = {"params": run.rule.weights(state), **state.variables}
    scorer = Scorer(run.rule.task, variables, length, rows or run.config.data.batch_size)
    return of_tokenizer(scorer, tokenizer, model.vocab_size)


def of_tokenizer(scorer: Scorer, tokenizer: Tokenizer, vocabulary: int) -> Language:
    """A language whose prefix is what the tokeniser puts before a text, else an empty text."""

    def encode(content: str) -> list[int]:
        tokens = tokenizer.plain(content)
        if tokens and max(tokens) >= vocabulary:
            raise ValueError(
                f"token {max(tokens)} of a text: the model has {vocabulary}; "
                "the tokeniser is that of another model"
            )
        return tokens

    probe = tokenizer.plain("a")
    whole = tokenizer.encode("a")
    places = range(len(whole) - len(probe) + 1)
    before = whole[: next((i for i in places if whole[i : i + len(probe)] == probe), 0)]
    return Language(scorer, encode, tuple(before or tokenizer.encode("")), bool(before))
