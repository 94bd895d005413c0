"""Notebooks: each lies beside the text it is made from, holds no outputs, and runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/tessera-nn/tessera/blob/main/notebooks"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
    assert [p.stem for p in sorted((ROOT / "notebooks").glob("*.py"))] == [
        p.stem for p in NOTEBOOKS
    ]


@each
def test_a_notebook_is_what_its_text_says(path: Path) -> None:
    """After a change of the text: jupytext --to ipynb --update notebooks/NAME.py."""
    made, text = nbformat.read(path, 4), jupytext.read(path.with_suffix(".py"))
    nbformat.validate(made)
    cells, wanted = ([(c.cell_type, c.source) for c in book.cells] for book in (made, text))
    assert cells == wanted, test_a_notebook_is_what_its_text_says.__doc__


@each
def test_a_notebook_holds_no_outputs(path: Path) -> None:
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [c.source for c in code if c.outputs or c.execution_count is not None] == []


@each
def test_a_notebook_opens_in_colab(path: Path) -> None:
    first = nbformat.read(path, 4).cells[0]
    assert first.cell_type == "markdown"
    assert f"]({COLAB}/{path.name})" in first.source


def executed(name: str, folder: Path, environment: dict[str, str]) -> str:
    """What a notebook prints at toy size, in a kernel of its own outside the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(ROOT / "notebooks" / f"{name}.ipynb")],
        cwd=folder,
        # Nearly all the time goes to compiling; less optimisation halves it.
        env={**environment, "SMOKE": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_quickstart_runs(tmp_path: Path, user_environment: dict[str, str]) -> None:
    printed = executed("quickstart", tmp_path, user_environment)
    assert "nearest: 'swiglu'" in printed  # the error that teaches
    assert "on cpu, 8 devices" in printed
    assert printed.count("image/png") == 2  # the curve, the attention maps
    assert "(128, 8)   ('tensor', 'fsdp')" in printed  # where the embedding table lies
    assert "CPU 7" in printed  # in the picture of its shards


def test_transformers_runs(tmp_path: Path, user_environment: dict[str, str]) -> None:
    printed = executed("transformers", tmp_path, user_environment)
    assert printed.count("image/png") == 3  # attention, lens, patching
    assert "blocks/attention/attention  (2, 1, 4, 17, 17)" in printed
    assert "first text" in printed
    assert "qwermylknjhpqwerm -> " in printed


@pytest.mark.slow
def test_scaling_laws_runs(tmp_path: Path, user_environment: dict[str, str]) -> None:
    printed = executed("scaling_laws", tmp_path, user_environment)
    assert "N and D do not vary apart" in printed
    assert "the minimum was not seen; add smaller models" in printed
    assert "100% of 72 starts" in printed
    assert "9 done" in printed
    assert printed.count("image/png") == 1


EXECUTE = """
import sys
import nbclient, nbformat
book = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(book, timeout=500, kernel_name="python3").execute()
for cell in book.cells:
    for output in cell.outputs if cell.cell_type == "code" else []:
        if output.output_type == "stream":
            print(output.text)
        else:
            print(*output.data, output.data["text/plain"])
"""
