"""The shape of the project: who may import whom, how long a thing may be, what lies where.

Imports are read from the source with `ast`, those inside functions too. To add a package, add its
row to `MAY_IMPORT`; an exception to a limit needs its reason beside it.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nn", "experiments", "launch")
TOP_LEVEL = {
    *(".ci", ".gitignore", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"),
    *("constraints.txt", "pyproject.toml", *PACKAGES, "notebooks", "tests"),
}

# A part is a file or folder directly in nn or launch; "launch" alone is its entry points.
_BASE = {"nn.names", "nn.activations", "nn.initializers", "nn.parallel"}
_MODELS = _BASE | {"nn.layers", "nn.families"}
_TASKS = _BASE | {"nn.losses", "nn.objectives"}
_NN = _MODELS | _TASKS
_ALL_NN = _NN | {"nn.optim", "nn.learning", "nn.pretrained", "nn.analysis"}
_MACHINERY = {"launch.run", "launch.data", "launch.cluster", "experiments"}
MAY_IMPORT: dict[str, set[str]] = {
    "nn": set(),
    "nn.names": set(),
    "nn.activations": {"nn.names"},
    "nn.initializers": {"nn.names"},
    "nn.parallel": {"nn.names"},
    "nn.layers": _BASE,
    "nn.families": _BASE | {"nn.layers"},
    "nn.losses": _BASE,
    "nn.objectives": _BASE | {"nn.losses"},
    "nn.optim": _NN,
    "nn.learning": _NN | {"nn.optim"},
    "nn.pretrained": _NN,
    "nn.analysis": _NN | {"nn.optim", "nn.learning", "nn.pretrained"},
    "experiments": set(),
    "launch.data": set(),
    "launch.cluster": _NN,
    "launch.run": _ALL_NN | {"launch.data", "launch.cluster", "experiments"},
    "launch.bench": _ALL_NN | _MACHINERY,
    "launch.sweeping": _ALL_NN | _MACHINERY,
    "launch.laws": _ALL_NN | _MACHINERY | {"launch.sweeping"},
    "launch": _ALL_NN | _MACHINERY | {"launch.bench", "launch.sweeping", "launch.laws"},
}
SIBLINGS_APART = ("nn.families", "nn.pretrained")  # their files never import each other

# What comes from outside, by the name that is imported; the standard library is free for launch.
NN_OUTSIDE = {"jax", "flax", "optax", "numpy"}
ANALYSIS_OUTSIDE = {"scipy"}  # nn.analysis too
# nn computes: it reads no file, environment or clock, prints nothing and starts nothing.
NN_NOT_STANDARD = {
    *("io", "logging", "multiprocessing", "os", "pathlib", "shutil", "signal", "socket"),
    *("subprocess", "sys", "tempfile", "threading", "time", "urllib", "warnings"),
}
NOWHERE = {"pickle", "shelve", "dill", "tensorflow"}  # unsafe to load from; not in the base install
EXPERIMENTS_STANDARD = {"__future__", "collections", "itertools", "math", "random", "typing"}
# The benchmark's peers, each imported in a process of its own, and what another package imports.
NEEDS_EXTRA = re.compile(r"launch\.bench\.(\w+_peer|torch_job)|launch\.run\.harness")

MAX_FILE = 400  # lines
MAX_FUNCTION = 60  # lines
LONG_FILES: dict[str, str] = {}  # path -> reason
LONG_FUNCTIONS: dict[str, str] = {}  # path:name -> reason

# In pieces, so that this file passes its own test.
HOSTS = re.compile(
    r"py" r"pi\.org|python" r"hosted|download\.py" r"torch|anaconda" r"\.org|npm" r"js\."
    r"|/releases/" r"download|jax-" r"releases|https?://[^\s\"']*\." r"whl",
    re.IGNORECASE,
)  # fmt: skip


@functools.cache
def project_files() -> list[Path]:
    """Every file of the project, relative to its root: what git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode == 0:
        names = [name for name in git.stdout.split("\0") if name]
    else:  # an unpacked archive
        ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        skip = {p for p in paths if any(p.match(pattern) for pattern in ignored)}
        names = [str(path) for path in paths if not skip & {path, *path.parents}]
    return sorted(Path(name) for name in names if (ROOT / name).is_file())


def python_files(*folders: str) -> list[Path]:
    """The project's Python files, of all its folders or only of those named."""
    files = [path for path in project_files() if path.suffix == ".py"]
    return [path for path in files if not folders or path.parts[0] in folders]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def module_of(path: Path) -> str:
    """nn/parallel/__init__.py -> nn.parallel."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in python_files(*PACKAGES)}


def part_of(module: str) -> str:
    """nn.layers.norm -> nn.layers; launch.train -> launch; experiments.x -> experiments."""
    first, *rest = module.split(".")
    if first == "experiments" or not rest:
        return first
    part = f"{first}.{rest[0]}"
    is_file = part in MODULES and MODULES[part].name != "__init__.py"
    return first if first == "launch" and is_file else part


def imports(tree: ast.Module, top_only: bool = False) -> Iterator[str]:
    """Names of the modules that a file imports; `from nn import names` gives nn.names."""
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


INTERNAL = {
    module: {name for name in imports(tree_of(path)) if name.split(".")[0] in PACKAGES}
    for module, path in MODULES.items()
}


def outside(module: str, top_only: bool = False) -> set[str]:
    """Top-level names that a module imports from outside the project, standard library included."""
    names = {name.split(".")[0] for name in imports(tree_of(MODULES[module]), top_only)}
    return names - set(PACKAGES) - {"__future__"}


def test_the_tests_see_the_project() -> None:
    """Guards the rest against passing because nothing was found."""
    assert {"nn.names", "nn.parallel.mesh", "launch.cli", "experiments.base"} <= set(MODULES)
    assert "nn.names" in INTERNAL["launch.cli"]
    assert part_of("launch.cli") == "launch"
    assert part_of("launch.run.errors") == "launch.run"
    assert part_of("nn.names") == "nn.names"


@pytest.mark.parametrize("part", sorted({part_of(module) for module in MODULES}))
def test_imports_go_one_way(part: str) -> None:
    assert part in MAY_IMPORT, f"{part} has no row in MAY_IMPORT"
    allowed = MAY_IMPORT[part]
    found = [(m, name) for m in MODULES if part_of(m) == part for name in INTERNAL[m]]
    assert [pair for pair in found if part_of(pair[1]) not in allowed | {part}] == []
    if part == "launch":  # what two entry points share belongs in launch/run
        assert [(m, name) for m, name in found if part_of(name) == part and name != part] == []


def test_no_two_packages_import_each_other() -> None:
    edges = {(part_of(module), part_of(name)) for module in MODULES for name in INTERNAL[module]}
    assert [(a, b) for a, b in edges if a < b and (b, a) in edges] == []


def test_no_import_goes_round() -> None:
    graph = {module: found - {module} for module, found in INTERNAL.items()}
    graphlib.TopologicalSorter(graph).prepare()


def _is_shared(path: Path) -> bool:
    """Of nn.pretrained: what tables are made with, and what those of one lineage have in common."""
    formats = path.match("nn/pretrained/*.py") and path.name != "__init__.py"
    return formats and "\nMODEL_TYPES = " not in path.read_text("utf-8")


def test_siblings_never_import_each_other() -> None:
    """One level down: a family that is a folder is one family. They share by nn/layers."""
    wrong = []
    for module, found in INTERNAL.items():
        if part_of(module) in SIBLINGS_APART:
            own = ".".join(module.split(".")[:3])
            apart = {n for n in found if n not in MODULES or not _is_shared(MODULES[n])}
            others = [n for n in apart if part_of(n) == part_of(module) and not _within(n, own)]
            wrong += [(module, name) for name in others]
    assert wrong == []


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_nn_is_never_imported_bare() -> None:
    """`nn` is the usual alias of Linen: write `from nn.layers import ...`."""
    wrong = [
        f"{path}:{node.lineno}"
        for path in python_files()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Import)
        and any(_within(alias.name, "nn") and not alias.asname for alias in node.names)
    ]
    assert wrong == []


def test_nn_imports_little_and_touches_no_machine() -> None:
    wrong = {}
    for module in MODULES:
        if module.split(".")[0] == "nn":
            allowed = NN_OUTSIDE | (sys.stdlib_module_names - NN_NOT_STANDARD)
            extra = ANALYSIS_OUTSIDE if part_of(module) == "nn.analysis" else set()
            wrong[module] = outside(module) - allowed - extra
    assert {module: names for module, names in wrong.items() if names} == {}


def test_experiments_import_ml_collections_only() -> None:
    used = {module: outside(module) for module in MODULES if part_of(module) == "experiments"}
    allowed = EXPERIMENTS_STANDARD | {"ml_collections"}
    assert {module: names - allowed for module, names in used.items() if names - allowed} == {}


def test_the_base_install_suffices_to_import_launch() -> None:
    """Extras are imported where they are used, inside a function."""
    declared = base_dependencies()
    owners = metadata.packages_distributions()
    wrong = []
    for module in MODULES:
        if module.split(".")[0] == "launch" and not NEEDS_EXTRA.fullmatch(module):
            for name in outside(module, top_only=True) - sys.stdlib_module_names:
                owned_by = {_plain(owner) for owner in owners.get(name, [name])}
                wrong += [] if owned_by & declared else [(module, name)]
            needing = filter(NEEDS_EXTRA.fullmatch, imports(tree_of(MODULES[module]), True))
            wrong += [(module, name) for name in needing]
    assert wrong == []


def base_dependencies() -> set[str]:
    """Names of the distributions that `pip install tessera` asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {_plain(re.split(r"[^\w.-]", name)[0]) for name in project["dependencies"]}


def _plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_nothing_unsafe_or_heavy() -> None:
    wrong = {module: outside(module) & NOWHERE for module in MODULES}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_no_default_where_a_config_is_read() -> None:
    """A setting has one default, in its dataclass or in experiments/base.py."""
    wrong = []
    for path in python_files():
        for node in ast.walk(tree_of(path)):
            match node:
                case ast.Call(func=ast.Attribute(value=target, attr="get")):
                    pass
                case ast.Call(func=ast.Name(id="getattr"), args=[target, _, _]):
                    pass
                case _:
                    continue
            if _is_config(ast.unparse(target)):
                wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []


def _is_config(expression: str) -> bool:
    """config, self.config, config.model, config["model"], model_config, cfg ..."""
    return bool(re.search(r"(^|[._])(config|cfg)($|[.\[])", expression))


def test_files_are_short() -> None:
    lines = {
        str(p): len((ROOT / p).read_text(encoding="utf-8").splitlines()) for p in python_files()
    }
    assert {path: n for path, n in lines.items() if n > MAX_FILE}.keys() == LONG_FILES.keys()


def test_functions_are_short() -> None:
    """Docstrings count. A function that is short again leaves the table of exceptions."""
    long = {
        f"{path}:{node.name}": node.end_lineno - node.lineno + 1
        for path in python_files()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= MAX_FUNCTION  # type: ignore[operator]
    }
    assert long.keys() == LONG_FUNCTIONS.keys(), long


def test_every_folder_of_a_package_is_one() -> None:
    """Without __init__.py a folder is left out of the wheel, silently."""
    folders = {path.parent for path in python_files(*PACKAGES)}
    assert [str(f) for f in folders if not (ROOT / f / "__init__.py").is_file()] == []


def test_every_module_says_what_it_is() -> None:
    trees = {module: tree_of(path) for module, path in MODULES.items()}
    assert [m for m, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


def test_top_level_holds_nothing_else() -> None:
    assert {path.parts[0] for path in project_files()} - TOP_LEVEL == set()


def test_no_file_names_a_package_host() -> None:
    """Where packages come from is the user's configuration of pip."""
    wrong = []
    for path in project_files():
        text = (ROOT / path).read_bytes().decode("utf-8", errors="replace")
        wrong += [(str(path), found.group()) for found in HOSTS.finditer(text)]
    assert wrong == []


def test_constraints_are_exact() -> None:
    """name==version, with a Python version where one release does not serve all."""
    line_of = re.compile(r'([a-z0-9-]+)==[\w.!]+( ; python_version (<|>=) "3\.\d+")?')
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not line_of.fullmatch(line)] == []
    names = [line.split("==")[0] for line in pins]
    assert names == sorted(names)
    assert base_dependencies() <= set(names)
