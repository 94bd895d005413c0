"""Continue prompts with a trained model.

The model is read from the work directory of a run; rows are split over its mesh.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from launch.run import arguments, restore
from launch.run.decode import Sampling
from launch.run.errors import guard_input

EXAMPLE = "python -m launch.generate --workdir=runs/bytes_gpt --prompt='def main(' --length=200"


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.parser("generate", __doc__, EXAMPLE)
    parser.add_argument("--workdir", required=True, help="directory of a run")
    parser.add_argument("--prompt", action="append", help="text to continue; may be repeated")
    parser.add_argument("--prompts", metavar="FILE", help="a file with one prompt per line")
    parser.add_argument("--length", type=int, default=200, help="most new tokens per prompt")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from this probability mass")
    parser.add_argument("--greedy", action="store_true", help="the same as --temperature=0")
    parser.add_argument("--stop", default="", help="bytes that end a completion, such as '\\n'")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--step", type=int, help="checkpoint to read; the newest by default")
    with guard_input():
        options, spec, overrides = arguments.parse(parser, argv)
        if spec is not None:
            raise ValueError("--config is that of the run in --workdir; only its keys can be set")
        prompts = list(options.prompt or [])
        if options.prompts:
            with open(options.prompts, encoding="utf-8") as file:
                prompts += [line.rstrip("\n") for line in file]
        how = Sampling(
            temperature=0.0 if options.greedy else options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            stop=tuple(options.stop.encode().decode("unicode_escape").encode("latin-1")),
        )
        arguments.start(options)
        from launch.run import sampling

        run = restore.run_of(options.workdir, overrides)
        tokens = sampling.tokens_of(run, prompts or [""])
        sampling.check_length(run, tokens, options.length)
        state, _ = restore.state_of(run, options.workdir, options.step)
    made = sampling.complete(
        run, run.rule.weights(state), tokens, options.length, how, options.seed
    )
    if jax.process_index() == 0:
        for prompt, completion in zip(prompts or [""], made.texts, strict=True):
            print(f"{prompt}{completion}")
            print("-" * 40)
        rate = made.new_tokens / made.seconds
        print(f"{made.new_tokens} tokens, {rate:.0f} tokens/s, step {int(state.step)}")


if __name__ == "__main__":
    main()
