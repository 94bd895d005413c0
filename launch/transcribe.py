"""Write down what is said in WAV files, with a Whisper.

The model is read from the work directory of a run, or from a directory with published weights;
windows of sound are split over its mesh. Special and suppressed tokens are those of the
generation_config.json that lies beside the weights, or did when they were imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.run import (
    arguments,
    pretrained,
    restore,
    sampling,
    sound,
    text,
    transcribing,
    transcript,
)
from launch.run.build import Run
from launch.run.checkpoint import read_metadata
from launch.run.errors import guard_input
from launch.run.safetensors_files import read_json
from launch.run.transcribing import Listener, Segment
from nn.families.whisper.presets import ENGLISH

EXAMPLE = "python -m launch.transcribe --pretrained=whisper-tiny --audio=talk.wav --timestamps"


def main(argv: Sequence[str] | None = None) -> None:
    with guard_input():
        options, spec, overrides = arguments.parse(_parser(), argv)
        if spec is not None:
            raise ValueError("--config is that of the model; only its keys can be set")
        if (options.workdir is None) == (options.pretrained is None):
            raise ValueError("give one of --workdir and --pretrained")
        if options.batch_size < 1:
            raise ValueError(f"--batch-size={options.batch_size}: must be at least 1")
        file = arguments.json_file(options)
        sounds = [sound.read(path) for path in options.audio]
        arguments.start(options)
        job = _job(options, overrides, sounds)
    languages = job.languages or _detected(options, job, sounds)
    starts = [job.start(language) for language in languages]
    written: list[list[dict[str, Any]]] = [[] for _ in sounds]
    for number, found in transcribing.segments(job.listener, job.write, job.rules, sounds, starts):
        for segment in found:
            made = _as_json(segment, job.listener.trained.tokenizer)
            written[number].append(made)
            if jax.process_index() == 0 and made["text"].strip():
                print(_line(options, number, segment, made["text"]), flush=True)
    if jax.process_index() == 0:
        files = _files(options, languages, written)
        arguments.write_json(file, {"step": job.step, "files": files})


def _parser() -> arguments.Parser:
    parser = arguments.parser("transcribe", __doc__, EXAMPLE)
    arguments.add_model(parser, "tokenizer.json and generation_config.json")
    parser.add_argument(
        "--audio", action="append", required=True, metavar="FILE.wav", help="may be repeated"
    )
    parser.add_argument(
        "--language", help="that is spoken, such as de; by default the likeliest for each file"
    )
    parser.add_argument("--task", default="transcribe", help="transcribe, or translate: to English")
    parser.add_argument("--timestamps", action="store_true", help="when each segment is said")
    parser.add_argument("--length", type=int, help="most new tokens per window; all that fit")
    parser.add_argument("--num-beams", type=int, default=1, help="beam search; 1: none")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        help="windows heard at a time; with --timestamps, of different files",
    )
    parser.add_argument("--json", metavar="FILE", help="write segments and their tokens here too")
    return parser


@dataclasses.dataclass(frozen=True)
class Job:
    """What writes down windows, checked. languages: empty where they are to be detected."""

    step: int
    listener: Listener
    write: transcribing.Write
    rules: transcript.Rules
    generation: Mapping[str, Any]
    start: Callable[[str], tuple[int, ...]]  # of a language
    languages: list[str]


def _job(options: argparse.Namespace, overrides: Sequence[str], sounds: list[np.ndarray]) -> Job:
    if options.workdir is not None:
        run = restore.run_of(options.workdir, overrides)
    else:
        run = pretrained.run_of(options.pretrained, ["optimizer.name=sgd", *overrides])
    model = run.config.model
    if "audio_context" not in model:
        raise ValueError(
            f"{options.workdir or options.pretrained}: model.family={model.family!r} hears no "
            "sound; nearest: 'whisper'"
        )
    tokenizer = sampling.tokenizer_of(run, options.tokenizer)
    generation = _generation(options, run, tokenizer)
    rules = transcript.rules(generation, options.timestamps)
    if isinstance(tokenizer, text.Bytes) and rules.end > 256:
        raise ValueError(
            f"the model writes {rules.end} tokens of text, and no tokeniser lies with its weights; "
            "name the directory of one: --tokenizer=DIR"
        )
    start = functools.partial(
        transcript.prompt, generation, task=options.task, timestamps=options.timestamps
    )
    known = [*transcript.languages(generation), "en"]
    first = start(options.language or known[0])
    length = options.length
    if length is None:
        length = model.context_length - len(first)
    sampling.check_length(model, [list(first)], length)
    if options.workdir is not None:
        state, _ = restore.state_of(run, options.workdir, options.step)
    else:
        state = pretrained.first_state(run)
    trained = sampling.of_run(run, run.rule.weights(state), tokenizer)
    rows = min(options.batch_size, transcribing.at_once(sounds, rules, model))
    listener = Listener(trained, rows)
    write = listener.writer(rules, length, options.num_beams)
    detected = options.language is None and len(known) > 1
    languages = [] if detected else [options.language or "en"] * len(sounds)
    return Job(int(state.step), listener, write, rules, generation, start, languages)


def _detected(options: argparse.Namespace, job: Job, sounds: list[np.ndarray]) -> list[str]:
    found = transcribing.languages(job.listener, sounds, job.generation)
    if jax.process_index() == 0:
        for path, language in zip(options.audio, found, strict=True):
            print(f"{path}: language {language!r}", file=sys.stderr)
    return found


def _generation(
    options: argparse.Namespace, run: Run, tokenizer: text.Tokenizer
) -> Mapping[str, Any]:
    """The content of generation_config.json; without one, what the tokeniser knows of it."""
    for directory in filter(None, (options.tokenizer, run.config.model.pretrained)):
        file = Path(directory).expanduser() / pretrained.GENERATION
        if file.is_file():
            return read_json(file)
    if options.workdir is not None:
        source = read_metadata(Path(options.workdir) / "checkpoints", options.step)
        kept = (source["pretrained"] or {}) if "pretrained" in source else {}
        if "generation_config" in kept:
            return dict(kept["generation_config"])
    special = tokenizer.added() if isinstance(tokenizer, text.Json) else {}
    found = transcript.by_name(special, english=run.config.model.vocab_size == ENGLISH)
    if jax.process_index() == 0:
        print(f"no {pretrained.GENERATION}: no token is suppressed", file=sys.stderr)
    return found


def _as_json(segment: Segment, tokenizer: text.Tokenizer) -> dict[str, Any]:
    start, end = segment.seconds
    said = tokenizer.decode(segment.tokens)
    return {"start": start, "end": end, "text": said, "tokens": segment.tokens}


def _line(options: argparse.Namespace, number: int, segment: Segment, said: str) -> str:
    """Of several files, with the name of the one."""
    parts = [f"{options.audio[number]}:"] if len(options.audio) > 1 else []
    parts += [segment.times()] if options.timestamps else []
    return " ".join([*parts, said.strip()])


def _files(
    options: argparse.Namespace, languages: list[str], written: list[list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    return [
        {
            "audio": path,
            "language": language,
            "task": options.task,
            "text": "".join(made["text"] for made in found).strip(),
            "segments": found,
        }
        for path, language, found in zip(options.audio, languages, written, strict=True)
    ]


if __name__ == "__main__":
    main()
