"""The reports of `launch.compile` that are kept in git: name -> arguments.

    python -m tests.update_golden compile              all of them, which takes half an hour
    python -m tests.golden_compile llama3-8b.v5p-64    some of them

They need libtpu and the CUDA plug-in, and no accelerator: `make test-compilers` puts both into
.venv/compilers, which goes into PYTHONPATH. To add one, add its line and run the second command.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden" / "compile"

_8B = "--config=experiments/llama3.py:8b"


def _weak(topology: str, devices: int, fsdp: int) -> list[str]:
    """Llama 3 8B with one row of 8192 tokens per device, copies over data."""
    settings = {"data.batch_size": devices, "mesh.fsdp": fsdp, "mesh.data": devices // fsdp}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return [_8B, f"--topology={topology}", *flags]


# On a TPU no more than dim / 128 = 32 devices share a weight: smaller shares are no whole tiles,
# and the compiler then makes every all-gather an all-reduce of twice the bytes.
REPORTS = {
    "llama3-8b.v5p-64": _weak("v5p:4x4x4", 64, 32),
    "llama3-8b.v5p-256": _weak("v5p:4x8x8", 256, 32),
    "llama3-8b.v5p-1024": _weak("v5p:8x8x16", 1024, 32),
    "llama3-8b.v5p-4096": _weak("v5p:16x16x16", 4096, 32),
    "llama3-8b.v6e-256": _weak("v6e:16x16", 256, 32),
    "llama3-8b.h200-64": _weak("h200:8x8", 64, 64),
    "mixtral-8x7b.v5p-512": ["--config=experiments/mixtral.py:8x7b", "--topology=v5p:8x8x8"],
    "llama3-405b.v5p-4096": [
        "--config=experiments/llama3.py:405b-pipeline",
        "--topology=v5p:16x16x16",
    ],
}


def text(name: str) -> str:
    """Compile one of REPORTS; raises CalledProcessError where it cannot be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "launch.compile", *REPORTS[name], f"--json={path}"]
        subprocess.run(command, cwd=ROOT, check=True)
        return path.read_text("utf-8")


def main() -> int:
    for name in sys.argv[1:]:
        made = text(name)  # before the old one is touched
        (GOLDEN / f"{name}.json").write_text(made, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
