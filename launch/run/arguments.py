"""What the entry points share of the command line: parsing, devices, and the ends of a run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.cluster import distributed
from launch.run import config as configs
from launch.run import describe
from launch.run.errors import BAD_INPUT, DONE


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"error: {self.prog}: {message}", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def plain_parser(command: str, doc: str, example: str) -> Parser:
    """A parser without flags."""
    return Parser(
        prog=f"python -m launch.{command}",
        description=doc.partition("\n")[0],
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parser(command: str, doc: str, example: str) -> Parser:
    """A parser of a command that uses devices: with `--simulate` and the flags of a cluster."""
    made = plain_parser(command, doc, example)
    made.add_argument(
        "--simulate", type=int, default=0, metavar="N", help="N CPU devices in place of real ones"
    )
    distributed.add_arguments(made)
    return made


def add_model(made: Parser, beside: str) -> None:
    """The flags that name a trained model, and its tokeniser; beside: what lies with that."""
    made.add_argument("--workdir", metavar="DIR", help="directory of a run")
    made.add_argument(
        "--pretrained", metavar="DIR", help="with config.json, safetensors and a tokeniser"
    )
    made.add_argument("--step", type=int, help="checkpoint to read; the newest by default")
    made.add_argument(
        "--tokenizer", metavar="DIR", help=f"with {beside}; by default that with the weights"
    )


def parse(
    made: Parser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, str | None, list[str]]:
    """The arguments, the experiment that `--config` names, and the overrides of its keys.

    Raises ValueError for a flag without its value.
    """
    spec, overrides, rest = configs.split_arguments(sys.argv[1:] if argv is None else list(argv))
    if {"-h", "--help"} & set(rest):
        made.print_help()
        config = configs.defaults() if spec is None else configs.load(spec, overrides)
        print(f"\n{describe.describe(config)}")
        raise SystemExit(DONE)
    return made.parse_args(rest), spec, overrides


def start(arguments: argparse.Namespace) -> None:
    """Make the devices: simulated ones, a cluster's, or those of this machine."""
    if arguments.simulate:
        distributed.simulate(arguments.simulate)
    distributed.initialize(arguments)


def json_file(options: argparse.Namespace) -> Path | None:
    """The file that `--json` names; see `output_file`."""
    return output_file("--json", options.json)


def output_file(flag: str, path: str | None) -> Path | None:
    """A file that a flag names, if it does. Raises FileNotFoundError without its directory."""
    if not path:
        return None
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{flag}={path}: no directory {folder}")
    return Path(path)


def write_json(file: Path | None, values: Mapping[str, Any]) -> None:
    """Write what was measured where `json_file` says, if anywhere."""
    if file is not None:
        file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
