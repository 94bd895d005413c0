"""Convert between published directories (config.json and safetensors) and work directories.

import makes a work directory that the other commands open, export writes what transformers loads,
check compares the outputs of a directory with those of transformers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax

from launch.bench import outputs
from launch.run import arguments, exporting, pretrained, published
from launch.run.errors import guard_input
from launch.run.safetensors_files import parse_size

EXAMPLE = """python -m launch.convert import --from=llama-3.2-1b --to=runs/llama
  python -m launch.convert export --from=runs/llama --to=exported --dtype=bfloat16
  python -m launch.convert check --from=exported --simulate=8 --config.mesh.tensor=4"""
ACTIONS = ("import", "export", "check")
ONLY = {"step": "export", "model_type": "export", "dtype": "export", "shard_size": "export"}
DIFFERENT = 1  # exit code of a check that found a difference


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.parser("convert", __doc__, EXAMPLE)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("--from", dest="source", required=True, help="directory to read")
    parser.add_argument("--to", dest="target", help="directory to make; not for check")
    parser.add_argument("--family", help="of nn/families; that of config.json by default")
    parser.add_argument("--dtype", help="export: of the tensors; as imported by default")
    parser.add_argument("--shard-size", help="export: most bytes of a file, 5GB by default")
    parser.add_argument("--model-type", help="export: of config.json; the first that fits")
    parser.add_argument("--step", type=int, help="export: checkpoint to read; the newest")
    with guard_input():
        options, spec, overrides = arguments.parse(parser, argv)
        _check(options, spec)
        shard_size = parse_size(options.shard_size or "5GB")
        arguments.start(options)
        if options.action == "export":
            text, good = _export(options, overrides, shard_size), True
        elif options.action == "import":
            text, good = exporting.import_(options.source, options.target, overrides, spec), True
        else:
            exact = ["optimizer.name=sgd", "precision.policy=float32"]
            run = pretrained.run_of(options.source, [*exact, *overrides], spec)
            text, good = outputs.report(run)
    if jax.process_index() == 0:
        print(text)
    return 0 if good else DIFFERENT


def _export(options: argparse.Namespace, overrides: Sequence[str], shard_size: int) -> str:
    return exporting.export(
        options.source,
        options.target,
        overrides,
        family=options.family or "",
        step=options.step,
        model_type=options.model_type or "",
        dtype=options.dtype or "",
        shard_size=shard_size,
    )


def _check(options: argparse.Namespace, spec: str | None) -> None:
    """What can be wrong with the arguments alone, and with the family."""
    if (options.target is None) != (options.action == "check"):
        verb = "takes no" if options.action == "check" else "needs"
        raise ValueError(f"{options.action} {verb} --to, as in:\n{EXAMPLE}")
    for name, action in ONLY.items():
        if getattr(options, name) is not None and options.action != action:
            raise ValueError(f"--{name.replace('_', '-')} is for {action}, not {options.action}")
    if options.action == "export":
        if spec is not None:
            raise ValueError("--config is that of the run in --from; only its keys can be set")
    elif options.family:
        published.read(options.source).check_family(options.family, "--family")


if __name__ == "__main__":
    raise SystemExit(main())
