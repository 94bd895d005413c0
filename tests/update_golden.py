"""Write golden files anew: `python -m tests.update_golden configs losses collectives`.

Look at the difference before you commit it: it shows whom a change of a default touches.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def configs() -> dict[str, str]:
    """The resolved config of every experiment, with each of its arguments: file -> text."""
    from launch.run import config, resolve

    found = {}
    for experiment in resolve.experiments():
        module = resolve.load_experiment(resolve.find_experiment(experiment)[0])
        arguments = list(module.ARGUMENTS) if hasattr(module, "ARGUMENTS") else [""]
        for argument in arguments:
            name = "-".join(filter(None, (Path(experiment).stem, argument)))
            spec = f"{experiment}:{argument}" if argument else experiment
            found[f"configs/{name}.json"] = config.to_json(config.load(spec))
    return found


def losses() -> dict[str, str]:
    """The losses of three short runs on the machine that every test sees."""
    from tests import conftest, golden_runs

    assert conftest.DEVICES == 8
    return {f"losses/{name}.json": golden_runs.text(name) for name in golden_runs.RUNS}


def collectives() -> dict[str, str]:
    """How many collectives the step of every family asks for on every mesh."""
    from tests import conftest, matrix

    assert conftest.DEVICES == 8
    import jax

    steps: dict[str, dict[str, dict[str, int]]] = {}
    for name, mesh in matrix.runs():
        steps.setdefault(name, {})[mesh] = matrix.counts(matrix.trace(name, mesh)[0])
    version = ".".join(jax.__version__.split(".")[:2])
    return {
        f"collectives/{name.replace(' ', '_')}.json": json.dumps(
            {"jax": version, "name": name, "steps": found}, indent=1
        )
        + "\n"
        for name, found in steps.items()
    }


def compiled() -> dict[str, str]:
    """The reports of steps that are compiled for machines that are not there."""
    from tests import golden_compile

    return {f"compile/{name}.json": golden_compile.text(name) for name in golden_compile.REPORTS}


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "configs": configs,
    "losses": losses,
    "collectives": collectives,
    "compile": compiled,
}


def update(kind: str, root: Path = GOLDEN) -> list[Path]:
    """Write the golden files of one kind and delete those that nothing makes any more."""
    made = KINDS[kind]()
    for name, text in made.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    written = [root / name for name in made]
    for folder in {path.parent for path in written}:
        for stale in set(folder.iterdir()) - set(written):
            stale.unlink()
    return written


def main() -> int:
    kinds = sys.argv[1:]
    if not kinds or not set(kinds) <= KINDS.keys():
        print(f"usage: python -m tests.update_golden {'|'.join(KINDS)}", file=sys.stderr)
        return 2
    for kind in kinds:
        for path in update(kind):
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
