"""What a run ran on: versions, devices, source revision, flags."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    *("tessera", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
    *("ml-collections", "tensorflow-datasets", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"),
)
# Named one by one or by prefix: other variables may hold secrets.
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NPROC", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")
FLAG_PREFIXES = ("JAX_", "NCCL_", "XLA_PYTHON_CLIENT_")


def describe(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What env.json holds."""
    devices = jax.devices()
    return {
        "time": time.time(),
        "command": list(sys.argv if argv is None else argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "devices": {
            "backend": jax.default_backend(),
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
            "host_cores": os.cpu_count(),
        },
        "source": revision(),
        "flags": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in FLAGS or name.startswith(FLAG_PREFIXES)
        },
    }


def versions() -> dict[str, str]:
    """The versions of the packages that are installed and matter."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision(directory: Path = Path(__file__).parent) -> dict[str, Any]:
    """The git commit of the source and whether files differ from it; empty outside a checkout."""
    try:
        commit = _git(directory, "rev-parse", "HEAD").strip()
        dirty = bool(_git(directory, "status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "dirty": dirty}


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout
