"""Continue prompts with a trained model, or answer them with an encoder-decoder.

The model is read from the work directory of a run, or from a directory with published weights; rows
are split over its mesh.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from launch.run import arguments, encoding, pretrained, restore, sampling, stream, text
from launch.run.errors import guard_input
from launch.run.logits import Sampling
from launch.run.sampling import Completion, Generation, Show, Trained

EXAMPLE = "python -m launch.generate --workdir=runs/bytes_gpt --prompt='def main(' --length=200"


def main(argv: Sequence[str] | None = None) -> None:
    with guard_input():
        options, spec, overrides = arguments.parse(_parser(), argv)
        if spec is not None:
            raise ValueError("--config is that of the model; only its keys can be set")
        if (options.workdir is None) == (options.pretrained is None):
            raise ValueError("give one of --workdir and --pretrained")
        prompts = _prompts(options)
        how = _sampling(options)
        file = arguments.json_file(options)
        arguments.start(options)
        generation, step = _generation(options, overrides, prompts, how)
    heads = prompts
    if generation.sources is not None:  # an answer stands below its source
        heads = [f"{prompt}\n" for prompt in prompts]
    made = generation.complete(options.seed, _show(options, heads, generation))
    if jax.process_index() == 0:
        if not options.stream:
            for head, completion in zip(heads, made.texts, strict=True):
                print(f"{head}{completion}\n{stream.RULE}")
        print(f"{made.summary()}, step {step}")
        result = {"step": step, "completions": _completions(prompts, made), **made.as_json()}
        arguments.write_json(file, result)


def _parser() -> arguments.Parser:
    parser = arguments.parser("generate", __doc__, EXAMPLE)
    arguments.add_model(parser, "tokenizer.json or a sentencepiece model")
    parser.add_argument("--prompt", action="append", help="text to continue; may be repeated")
    parser.add_argument("--prompts", metavar="FILE", help="a file with one prompt per line")
    parser.add_argument("--length", type=int, default=200, help="most new tokens per prompt")
    parser.add_argument(
        "--temperature", type=float, help="0: always the likeliest; 0.8, with --num-beams 0"
    )
    parser.add_argument("--greedy", action="store_true", help="the same as --temperature=0")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from this probability mass")
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="draw from tokens this likely beside the likeliest"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="on tokens that are there; 1: none"
    )
    parser.add_argument("--num-beams", type=int, default=1, help="beam search; 1: none")
    parser.add_argument(
        "--length-penalty", type=float, default=1.0, help="exponent of a beam's length"
    )
    parser.add_argument(
        "--early-stopping", action="store_true", help="end with the first finished beams"
    )
    parser.add_argument(
        "--draft", metavar="DIR", help="run or weights of a small model that drafts tokens"
    )
    parser.add_argument("--draft-length", type=int, default=4, help="tokens drafted at a time")
    parser.add_argument("--stop", default="", help="text that ends a completion, such as '\\n'")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--stream", action="store_true", help="print tokens as they come")
    parser.add_argument("--json", metavar="FILE", help="write completions and figures here too")
    return parser


def _prompts(options: argparse.Namespace) -> list[str]:
    prompts = list(options.prompt or [])
    if options.prompts:
        with open(options.prompts, encoding="utf-8") as file:
            prompts += [line.rstrip("\n") for line in file]
    return prompts or [""]


def _sampling(options: argparse.Namespace) -> Sampling:
    """What is asked for, less the tokens that stop, which only the tokeniser can tell."""
    if options.stream and options.num_beams > 1:
        raise ValueError(
            f"--stream with --num-beams={options.num_beams}: the best beam is known at the end; "
            "nearest: one of the two"
        )
    temperature = options.temperature
    if temperature is None:
        temperature = 0.0 if options.num_beams > 1 else 0.8
    return Sampling(
        temperature=0.0 if options.greedy else temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        beams=options.num_beams,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
    )


def _generation(
    options: argparse.Namespace, overrides: Sequence[str], prompts: list[str], how: Sampling
) -> tuple[Generation, int]:
    """What is to be made, checked, and the step of the checkpoint."""
    if options.workdir is not None:
        run = restore.run_of(options.workdir, overrides)
    else:
        run = pretrained.run_of(options.pretrained, ["optimizer.name=sgd", *overrides])
    tokenizer = sampling.tokenizer_of(run, options.tokenizer)
    rows = text.encode(tokenizer, prompts, run.config.model.vocab_size)
    sources = rows if encoding.reads_sources(run.rule.task.model) else None
    if sources is not None:
        sampling.check_length(run.config.model, sources, 1)
        rows = [[run.config.model.start_token]] * len(prompts)
    sampling.check_length(run.config.model, rows, options.length)
    ends = options.stop.encode().decode("unicode_escape").encode("latin-1")
    how = dataclasses.replace(how, stop=tokenizer.stop + text.stop_tokens(tokenizer, ends))
    if options.workdir is not None:
        state, _ = restore.state_of(run, options.workdir, options.step)
    else:
        state = pretrained.first_state(run)
    trained = sampling.of_run(run, run.rule.weights(state), tokenizer)
    draft = None if options.draft is None else _draft(options.draft, trained)
    generation = sampling.Generation(
        trained, rows, options.length, how, draft, options.draft_length, sources
    )
    return generation, int(state.step)


def _draft(directory: str, trained: Trained) -> Trained:
    """Another model, of a run where the directory has checkpoints, on the mesh of the first."""
    mesh = [f"mesh.{axis}={size}" for axis, size in trained.mesh.shape.items()]
    if (Path(directory) / "checkpoints").is_dir():
        run = restore.run_of(directory, mesh)
        state, _ = restore.state_of(run, directory)
    else:
        run, state = pretrained.load(directory, mesh)
    return sampling.of_run(run, run.rule.weights(state), trained.tokenizer)


def _show(options: argparse.Namespace, prompts: list[str], generation: Generation) -> Show | None:
    if not options.stream:
        return None
    if jax.process_index():  # the same steps, unseen
        return lambda rows, done: None
    return stream.Printer(prompts, generation.prompts, generation.trained.tokenizer)


def _completions(prompts: list[str], made: Completion) -> list[dict[str, object]]:
    rows = zip(prompts, made.texts, made.tokens, strict=True)
    return [{"prompt": prompt, "text": text, "tokens": new} for prompt, text, new in rows]


if __name__ == "__main__":
    main()
