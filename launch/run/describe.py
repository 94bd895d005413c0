"""What `--help` prints about a config: every key, its value, its default, its comment.

Comments are read from the source that declares a key, so they are written once.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import shlex
import tokenize

from ml_collections import ConfigDict

from experiments import base
from launch.run import keys, resolve

COLUMN = 44  # where the comments start


def describe(config: ConfigDict) -> str:
    """Every key of a resolved config, section by section, as a line of help each."""
    notes, known = _declared(config)
    lines = ["Every key, its value here and, where that is another, its default:"]
    section = ""
    for name, key in known.items():
        if (own := name.rpartition(".")[0]) != section:
            section = own
            lines += ["", _heading(config, section)]
        value = keys.flatten(config)[name]
        text = f"  --config.{name}={_quoted(keys.render(value))}"
        note = notes[name] if name in notes else ""
        if value != key.default:
            note = f"{note} (default: {keys.render(key.default) or 'empty'})".strip()
        lines.append(f"{text:<{COLUMN}}  {note}".rstrip())
    return "\n".join(lines) + "\n"


def _declared(config: ConfigDict) -> tuple[dict[str, str], dict[str, keys.Key]]:
    """The comments of all keys, and the keys in the order of their declaration."""
    found = comments(inspect.getsource(base))
    notes = {name.removeprefix("config."): text for name, text in found.items()}
    known = {name: keys.base_keys()[name] for name in notes if name in keys.base_keys()}
    ordered: dict[str, keys.Key] = {}
    for name in dict.fromkeys(key.rpartition(".")[0] for key in known):
        ordered |= {key: k for key, k in known.items() if key.rpartition(".")[0] == name}
        if name in resolve.PARTS:
            picked = _picked(config, name)
            for cls in reversed(resolve.config_class(name, picked).__mro__):
                if dataclasses.is_dataclass(cls):
                    fields = comments(inspect.getsource(cls))
                    notes |= {f"{name}.{field}": text for field, text in fields.items()}
            ordered |= keys.part_keys(name, picked)
    return notes, ordered


def _picked(config: ConfigDict, section: str) -> str:
    name: str = keys.flatten(config)[resolve.PARTS[section].selector]
    return name


def _heading(config: ConfigDict, section: str) -> str:
    """The name of a section and, where a file adds keys to it, that file and what it is."""
    if section not in resolve.PARTS:
        return section
    module = resolve.module(section, _picked(config, section))
    return f"{section}: {module.__name__.replace('.', '/')}.py: {resolve.summary(module)}"


def _quoted(text: str) -> str:
    return shlex.quote(text) if text else ""


def comments(source: str) -> dict[str, str]:
    """The comment of every assignment to a name or attribute, by its dotted name.

    It stands behind the assignment, and may go on in lines of its own below; or, where there is
    nothing behind it, in the lines above.
    """
    notes: dict[int, tuple[str, bool]] = {}  # line -> text, whether the line holds nothing else
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            notes[token.start[0]] = (token.string.lstrip("# ").rstrip(), alone)
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Assign | ast.AnnAssign)]
    silent = {n.lineno for n in nodes if not _behind(notes, n)}
    found: dict[str, str] = {}
    for node in sorted(nodes, key=lambda node: node.lineno):
        if own := _behind(notes, node):
            below = _alone(notes, node.end_lineno + 1, 1)  # type: ignore[operator]
            if node.end_lineno + 1 + len(below) not in silent:  # type: ignore[operator]
                own += below
        else:
            own = _alone(notes, node.lineno - 1, -1)[::-1]
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        found.setdefault(ast.unparse(target), " ".join(own))
    return found


def _behind(notes: dict[int, tuple[str, bool]], node: ast.stmt) -> list[str]:
    """The comment at the end of a statement, in a list; an empty one without."""
    line = node.end_lineno
    return [notes[line][0]] if line in notes and not notes[line][1] else []


def _alone(notes: dict[int, tuple[str, bool]], line: int, step: int) -> list[str]:
    """The comments on lines of their own from `line` on, downwards or upwards."""
    lines = []
    while line in notes and notes[line][1]:
        lines.append(notes[line][0])
        line += step
    return lines
