"""The transformers peer: `GPT2LMHeadModel`, a training step and `generate` with its cache."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from launch.bench import torch_job
from launch.bench.job import Job
from launch.bench.workloads import Text

torch_job.repair_torchvision()
import transformers  # noqa: E402

device = torch_job.device
VERSIONS = {"transformers": transformers.__version__}


def decoder(size: Text, where: str) -> Job:
    """A training step of GPT-2."""
    model = _model(size)
    tokens = torch.from_numpy(size.tokens()).long().to(torch_job.place(where))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()

    def loss(run: torch.nn.Module) -> torch.Tensor:
        logits = run(inputs, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), targets)

    return torch_job.trainer(model, loss, where, VERSIONS)


def generate(size: Text, where: str, cache: str | None = None) -> Job:
    """A whole greedy generation after prompts of `length` tokens; cache: theirs is dynamic."""
    target = torch_job.place(where)
    dtype = torch.float32 if where == "cpu" else torch.bfloat16
    model = _model(size).to(target, dtype).eval()
    prompts = torch.from_numpy(size.tokens()[:, :-1]).long().to(target)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=size.new_tokens,
                min_new_tokens=size.new_tokens,
                do_sample=False,
                use_cache=True,
                cache_implementation=cache,
                pad_token_id=0,
            )

    assert run().shape == (size.batch, size.length + size.new_tokens)
    return torch_job.function(run, where, VERSIONS, model)


def _model(size: Text) -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=size.vocabulary,
            n_positions=size.length + size.new_tokens,
            n_embd=size.dim,
            n_layer=size.layers,
            n_head=size.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
    )
