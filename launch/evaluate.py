"""Measure a trained model on a split of its data set, or a language model on a file of texts."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from launch.run import arguments, language, report, sampling, texttasks
from launch.run.build import Run, loader, open_data
from launch.run.errors import guard_input
from launch.run.evaluation import Evaluation
from launch.run.likelihood import check_stride

Head = dict[str, Any]  # what was measured on what
Work = Callable[[], texttasks.Result]  # after this, an error is no matter of the input

EXAMPLE = """python -m launch.evaluate --workdir=runs/bytes_gpt --split=test --json=test.json
  python -m launch.evaluate --workdir=runs/bytes_gpt --task=perplexity --data=book.txt
  python -m launch.evaluate --task=wer --data=transcripts.jsonl --items=errors.jsonl"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.parser("evaluate", __doc__, EXAMPLE)
    parser.add_argument("--workdir", metavar="DIR", help="directory of a run")
    parser.add_argument(
        "--pretrained", metavar="DIR", help="with config.json, safetensors and a tokeniser"
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="with tokenizer.json or a sentencepiece model, for a run"
    )
    parser.add_argument("--split", choices=("train", "validation", "test"), help="default: test")
    parser.add_argument("--step", type=int, help="checkpoint to read; the newest by default")
    parser.add_argument("--task", choices=tuple(texttasks.FIELDS), help="in place of a split")
    parser.add_argument("--data", metavar="FILE", help="JSON lines: see launch/run/texttasks.py")
    parser.add_argument(
        "--stride", type=int, metavar="N", help="of windows of a long text; default: half a context"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="rows of a batch of --task")
    parser.add_argument("--items", metavar="FILE", help="write each item's own result, JSON lines")
    parser.add_argument("--json", metavar="FILE", help="write the result here too")
    with guard_input():
        options, spec, overrides = arguments.parse(parser, argv)
        if spec is not None:
            raise ValueError("--config is that of the model; only its keys can be set")
        _check(options)
        file = arguments.json_file(options)
        lines = arguments.output_file("--items", options.items)
        measure = _split if options.task is None else _task
        head, work = measure(options, overrides)
    values, items = work()
    if jax.process_index() == 0:
        if "step" in head:
            print(f"step {head['step']}")
        print(report.table({options.task or head["split"]: values}))
        arguments.write_json(file, head | _finite(values))
        if lines is not None:
            lines.write_text("".join(_lines(items)), encoding="utf-8")
    return 0


def _check(options: argparse.Namespace) -> None:
    """ValueError where the flags do not go together."""
    if options.task is None:
        for name in ("data", "stride", "batch", "items", "tokenizer"):
            if getattr(options, name) is not None:
                tasks = " | ".join(texttasks.FIELDS)
                raise ValueError(f"--{name} goes with --task={tasks}")
    else:
        if options.data is None:
            raise ValueError(f"--task={options.task} needs --data=FILE")
        if options.split is not None:
            raise ValueError(f"--split={options.split} is of a run's own data; drop it or --task")
        if options.stride is not None and options.task != "perplexity":
            raise ValueError(f"--stride={options.stride} goes with --task=perplexity")
    if options.batch is not None and options.batch < 1:
        raise ValueError(f"--batch={options.batch}: must be at least 1")
    if options.task is None and options.pretrained is not None:
        raise ValueError(f"--pretrained={options.pretrained} has no data of its own; add --task")


def _split(options: argparse.Namespace, overrides: list[str]) -> tuple[Head, Work]:
    """Means over a split of the run's data set."""
    split = options.split or "test"
    run, state = _open(options, overrides)
    data = loader(run.config, open_data(run.config, split), train=False)

    def work() -> texttasks.Result:
        return Evaluation(run).means(state, data) | report.baselines(run, split), []

    return {"step": int(state.step), "split": split}, work


def _task(options: argparse.Namespace, overrides: list[str]) -> tuple[Head, Work]:
    """What a task finds on a file."""
    task = options.task
    items = texttasks.read(options.data, task)
    head: Head = {"task": task, "data": options.data}
    if task == "wer":
        return head, lambda: texttasks.word_errors(items)
    run, state = _open(options, overrides)
    tokenizer = sampling.tokenizer_of(run, options.tokenizer or options.pretrained)
    model = language.of_run(run, state, tokenizer, options.batch)
    context = model.scorer.context
    default = max(context // 2, 1) if task == "perplexity" else context
    stride = default if options.stride is None else options.stride
    check_stride(stride, context)
    requests = texttasks.requests(task, model, items)

    def work() -> texttasks.Result:
        return texttasks.SUMMARIES[task](items, model.score(requests, stride))

    return {"step": int(state.step), **head, "context": context, "stride": stride}, work


def _open(options: argparse.Namespace, overrides: list[str]) -> tuple[Run, Any]:
    """The run of --workdir or --pretrained, and its state."""
    arguments.start(options)
    return language.open_model(options.workdir, options.pretrained, overrides, options.step)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """The values, null in place of what JSON has no number for."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }


def _lines(items: Iterable[dict[str, Any]]) -> list[str]:
    return [json.dumps({"item": n, **_finite(item)}) + "\n" for n, item in enumerate(items)]


if __name__ == "__main__":
    raise SystemExit(main())
