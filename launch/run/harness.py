"""A language model of ours for lm-evaluation-harness (`lm_eval`), where that is installed.

    import lm_eval
    from launch.run import harness  # registers the name "tessera"
    lm_eval.simple_evaluate("tessera", {"workdir": "runs/bytes_gpt"}, tasks=["lambada_openai"])

Every process of a run on several hosts does the same and gets the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from launch.run import language, sampling, text
from launch.run.language import Language
from launch.run.logits import Sampling

NEW_TOKENS = 256  # of generated text where a request does not say
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SETTINGS = {"until", "do_sample", "temperature", "top_k", "top_p", *LENGTHS}


@register_model("tessera")
class TesseraLM(LM):
    """Requests are `lm_eval.api.instance.Instance`s, of which only `args` is read."""

    def __init__(
        self,
        workdir: str | None = None,
        pretrained: str | None = None,
        step: int | str | None = None,
        tokenizer: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **overrides: Any,
    ) -> None:
        """The model of a run, or published weights.

        Args:
          workdir, step: directory of the run, and its checkpoint; the newest by default.
          pretrained: in place of it, a directory with config.json, safetensors and a tokeniser.
          tokenizer: directory of a tokeniser, for a run; bytes by default.
          batch_size: windows of a batch; the run's by default, and for "auto".
          max_batch_size, device: not used: the size is never searched for, and the mesh, that of
            the run, is on the devices that JAX sees.
          overrides: keys of the run's config with "__" for ".", such as mesh__tensor=2.
        Raises what `language.open_model` and `language.of_run` raise.
        """
        super().__init__()
        texts = [f"{name.replace('__', '.')}={value}" for name, value in overrides.items()]
        number = None if step is None else int(step)
        self.run, state = language.open_model(workdir, pretrained, texts, number)
        self.tokenizer = sampling.tokenizer_of(self.run, tokenizer or pretrained)
        rows = None if batch_size in (None, "auto") else int(str(batch_size))
        self.language: Language = language.of_run(self.run, state, self.tokenizer, rows)
        self.trained = sampling.of_run(self.run, self.run.rule.weights(state), self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """For the names of cached requests, whose texts are as they came: no tokeniser's."""
        return "tessera"

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(ln p(continuation | context), whether greedy decoding gives it) per request."""
        asked = [self.language.continuation(*request.args) for request in requests]
        found = [(score.log_likelihood, score.greedy) for score in self.language.score(asked)]
        self._keep("loglikelihood", requests, found)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """ln p(text) per request, in windows that share no scored or context token but one."""
        asked = [self.language.document(*request.args) for request in requests]
        found = [score.log_likelihood for score in self.language.score(asked)]
        self._keep("loglikelihood_rolling", requests, found)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation per request, up to the first of its stop strings.

        A context that leaves no room for the new tokens loses its beginning.
        """
        found = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):  # those with the same settings together
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in groups.values():
            numbers.sort(key=lambda n: len(requests[n].args[0]))
            for begin in range(0, len(numbers), self.language.scorer.rows):
                part = numbers[begin : begin + self.language.scorer.rows]
                texts = self._generate([requests[n].args[0] for n in part], requests[part[0]])
                for number, made in zip(part, texts, strict=True):
                    found[number] = made
        self._keep("generate_until", requests, found)
        return found

    def _generate(self, contexts: list[str], like: Any) -> list[str]:
        settings: Mapping[str, Any] = like.args[1]
        stops = _stops(settings)
        length = next((int(settings[name]) for name in LENGTHS if name in settings), NEW_TOKENS)
        room = self.language.scorer.context - length
        if room < 1:
            raise ValueError(
                f"{length} new tokens leave no room for a prompt in the context of "
                f"{self.language.scorer.context}; nearest: max_gen_toks={room + length - 1}"
            )
        encoded = [self.language.encode(stop) for stop in stops]
        ends = tuple(stop[0] for stop in encoded if len(stop) == 1)
        how = _sampling(settings, self.tokenizer.stop + ends)
        vocabulary = self.run.config.model.vocab_size
        prompts = [t[-room:] for t in text.encode(self.tokenizer, contexts, vocabulary)]
        generation = sampling.Generation(self.trained, prompts, length, how)
        return [_cut(made, stops) for made in generation.complete(self.run.config.seed).texts]

    def _keep(self, kind: str, requests: Sequence[Any], answers: Sequence[Any]) -> None:
        """Answers for the harness's cache, where it keeps one."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)


def _stops(settings: Mapping[str, Any]) -> list[str]:
    """The stop strings of a request. Raises ValueError on a setting that is not known."""
    unknown = settings.keys() - SETTINGS
    if unknown:
        raise ValueError(f"generation setting {sorted(unknown)[0]!r}: known are {sorted(SETTINGS)}")
    until = settings["until"] if "until" in settings else []
    return [stop for stop in ([until] if isinstance(until, str) else until or []) if stop]


def _sampling(settings: Mapping[str, Any], stop: tuple[int, ...]) -> Sampling:
    """Greedy unless `do_sample`, or a temperature without it, says otherwise."""
    temperature = float(settings["temperature"]) if "temperature" in settings else 0.0
    if "do_sample" in settings:
        asked = bool(settings["do_sample"])
        temperature = (temperature if "temperature" in settings else 1.0) if asked else 0.0
    top_k = int(settings["top_k"]) if "top_k" in settings else 0
    top_p = float(settings["top_p"]) if "top_p" in settings else 1.0
    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p, stop=stop)


def _cut(made: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return made[: min((made.index(stop) for stop in stops if stop in made), default=len(made))]
