"""How much of the host's memory an import takes, on files with the widths of Llama 7B.

On CPU devices the arrays themselves lie in the host's memory. So every leaf is read onto its device
and dropped before the next, and what is measured is the peak of the resident set of a process that
does nothing else, over what it was before, less the bytes of the largest leaf: all that reading
takes beside the array that it makes, pages of the mapped files among it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launch.run.safetensors_files import INDEX, Tensors
from nn.families.transformer import Config
from nn.pretrained import llama
from tests.launch.runs import ROOT

LAYERS = 4
CONFIG = Config(
    vocab_size=32000,
    context_length=2048,
    dim=4096,
    num_layers=LAYERS,
    num_heads=32,
    mlp_dim=11008,
    activation="swiglu",
    norm="rms",
    norm_eps=1e-6,
    position="rotary",
    bias=False,
    tie_embeddings=False,
)

SCRIPT = """
import json, resource, sys
import jax
from launch.run import pretrained
from launch.run.published import leaves_of, read
from launch.run.safetensors_files import Tensors
from launch.run.state import abstract_state
from nn.pretrained.table import flatten

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

directory, policy = sys.argv[1:]
run = pretrained.run_of(directory, ["optimizer.name=sgd", f"precision.policy={policy}"])
model, tensors = read(directory), Tensors(directory)
table = model.format.table(model.config, tensors)
target = leaves_of(table, flatten({"params": abstract_state(run.rule).params}))
before = peak()
largest = 0
for path, leaf in table.leaves(tensors).items():
    array = pretrained.to_mesh(leaf, target[path])
    array.block_until_ready()
    largest = max(largest, array.nbytes)
    del array
print(json.dumps({"read": peak() - before, "largest": largest}))
"""


def write_sparse(directory: Path) -> None:
    """Four files of zeros that take no room on disk, one layer in each."""
    directory.mkdir()
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(LAYERS)]
    for name, (shape, _) in llama.table(CONFIG).sizes().items():
        last = name.startswith(("lm_head", "model.norm"))
        layer = int(name.split(".")[2]) if ".layers." in name else (LAYERS - 1) * last
        shards[layer][name] = shape
    shard_of = {}
    for i, members in enumerate(shards, 1):
        header, end = {}, 0
        for name, shape in members.items():
            start, end = end, end + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        path = directory / f"model-{i:05}-of-{LAYERS:05}.safetensors"
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        shard_of |= dict.fromkeys(members, path.name)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    (directory / "config.json").write_text(json.dumps(llama.config_to(CONFIG)))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "bfloat16_params"])
def test_an_import_takes_less_than_a_file_and_a_layer(
    policy: str, tmp_path: Path, user_environment: dict[str, str]
) -> None:
    directory = tmp_path / "llama"
    write_sparse(directory)
    files = list(directory.glob("*.safetensors"))
    largest_file = max(path.stat().st_size for path in files)
    assert len(files) == 4
    assert sum(path.stat().st_blocks * 512 for path in files) < 10**6
    places = Tensors(directory).places
    layer = sum(
        2 * int(np.prod(place.shape)) for name, place in places.items() if ".layers.1." in name
    )
    assert layer > 4 * 10**8
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory), policy],
        cwd=ROOT,
        env=user_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    beside = found["read"] - found["largest"]
    assert beside < 1.3 * largest_file + layer
    # What it is in fact: the widest matrix of a layer in the file, in its chunk, on its way.
    assert beside < 0.75 * (1.3 * largest_file + layer), found
