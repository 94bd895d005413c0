"""The `tessera` command: `tessera train ...` is `python -m launch.train ...`.

A command is a file of this folder that is neither private nor this one.

  tessera train --config=experiments/bytes_gpt.py --workdir=runs/bytes_gpt
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence

import launch
from launch.run import errors
from nn import names


def commands() -> list[str]:
    """The entry points: the modules of `launch`, by name."""
    found = (module.name for module in pkgutil.iter_modules(launch.__path__) if not module.ispkg)
    return sorted(name for name in found if name != "cli" and not name.startswith("_"))


def summary(command: str) -> str:
    """The first line of an entry point's docstring, read without importing it."""
    spec = importlib.util.find_spec(f"launch.{command}")
    if spec is None or spec.origin is None:
        return ""
    with open(spec.origin, encoding="utf-8") as file:
        docstring = ast.get_docstring(ast.parse(file.read()))
    return docstring.splitlines()[0] if docstring else ""


def usage() -> str:
    """What `tessera --help` prints."""
    rows = [f"  {name:<12} {summary(name)}".rstrip() for name in commands()]
    lines = ["usage: tessera COMMAND [ARGUMENT ...]", "", *rows, ""]
    return "\n".join([*lines, "`tessera COMMAND --help` prints the arguments of a command."])


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run the command that the first argument names on the others; returns its exit code.

    No command prints the usage and returns 2, an unknown one exits with 2 and the nearest name.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if given else sys.stderr)
        return errors.DONE if given else errors.BAD_INPUT
    command, *rest = given
    with errors.guard_input():
        if command not in commands():
            raise names.unknown("command", command, commands())
    sys.argv = [f"tessera {command}", *rest]
    exit_code: int | None = importlib.import_module(f"launch.{command}").main()
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())
