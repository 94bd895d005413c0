"""Does what was tuned on a small model hold for a large one? Sizes of activations, and best rates.

`coordinates` is the coordinate check: what each module gives, after some steps, must not grow or
vanish with the width. `rates` trains every width at every learning rate: the best one must stay
where it is. Both compare rules of `scale`, on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from launch.run import arguments, transfer, transfer_report
from launch.run import config as configs
from launch.run.errors import guard_input
from nn import names

EXAMPLE = (
    "python -m launch.transfer rates --config=experiments/bytes_gpt.py --base=dim=32,mlp_dim=96 "
    "--times=1,2,4,8 --steps=200"
)
COMMANDS = dict.fromkeys(("coordinates", "rates"))


def parser() -> arguments.Parser:
    made = arguments.plain_parser("transfer", __doc__, EXAMPLE)
    made.add_argument("command", help="coordinates | rates")
    made.add_argument(
        "--base", metavar="FIELDS", help="sizes of the narrowest; config's scale.base"
    )
    made.add_argument("--times", default="1,2,4,8", metavar="N,N", help="what multiplies them")
    made.add_argument("--rules", default="mup,standard", metavar="RULE,RULE", help="to compare")
    made.add_argument("--steps", type=int, metavar="N", help="coordinates: 10; rates: the config's")
    made.add_argument(
        "--rates", metavar="R,R", help="learning rates; the config's times 1/8 to 8, if not given"
    )
    made.add_argument("--json", metavar="FILE", help="write the result here too")
    made.add_argument("--plot", metavar="FILE", help="draw it, as a PNG")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    with guard_input():
        options, spec, overrides = arguments.parse(parser(), argv)
        names.lookup("command", options.command, COMMANDS)
        if spec is None:
            raise ValueError(f"--config is needed, as in: {EXAMPLE}")
        file = arguments.json_file(options)
        picture = arguments.output_file("--plot", options.plot)
        config = configs.load(spec, overrides)
        check = options.command == "coordinates"
        grid = transfer.Grid(
            config,
            options.base or config.scale.base,
            _numbers("--times", options.times, int),
            tuple(options.rules.split(",")),
            options.steps or (10 if check else config.train.steps),
        )
        grid = grid.steady() if check else grid
        rate = config.optimizer.learning_rate
        tried = tuple(rate * 2.0**i for i in range(-3, 4))
        if options.rates:
            tried = _numbers("--rates", options.rates, float)
        for rule in grid.rules:
            grid.model(rule, grid.times[0])  # what cannot be is refused before anything is compiled
    result: dict[str, Any]
    if check:
        result = transfer.coordinates(grid)
        print(transfer_report.coordinates_text(result))
    else:
        result = transfer.rates(grid, tried, print)
        print(transfer_report.rates_text(result))
    if picture is not None:
        draw = transfer_report.plot_coordinates if check else transfer_report.plot_rates
        draw(result, picture)
    arguments.write_json(file, result)
    return 0


def _numbers(flag: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{flag}={text}: numbers between commas, as in 1,2,4") from None


if __name__ == "__main__":
    raise SystemExit(main())
