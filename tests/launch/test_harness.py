"""The adapter for lm-evaluation-harness.

Where the package is not installed a stand-in takes the place of the two names that the adapter
needs of it: the base class, with its constructor, and the table of models.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from launch.run import language, restore, sampling, text
from launch.run.logits import Sampling

INSTALLED = importlib.util.find_spec("lm_eval") is not None


class StandIn:
    """The part of `lm_eval.api.model.LM` that subclasses see."""

    def __init__(self) -> None:
        self._rank, self._world_size, self._device = 0, 1, None
        self.cache_hook: Any = SimpleNamespace(add_partial=lambda kind, request, answer: None)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: Any = None) -> Any:
        more = additional_config or {}
        return cls(**arg_dict, **{k: v for k, v in more.items() if v is not None})


def stand_in_modules(models: dict[str, type]) -> dict[str, Any]:
    def register_model(name: str) -> Callable[[type], type]:
        return lambda cls: models.setdefault(name, cls)

    names = ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry")
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    modules["lm_eval.api.model"].LM = StandIn
    modules["lm_eval.api.registry"].register_model = register_model
    modules["lm_eval.api.registry"].get_model = models.__getitem__
    return modules


@pytest.fixture(scope="module")
def model(short_run: Path) -> Iterator[Any]:
    """A short run's model, as the harness makes it: by name, with its own further arguments."""
    with pytest.MonkeyPatch.context() as patch:
        if not INSTALLED:
            for name, module in stand_in_modules({}).items():
                patch.setitem(sys.modules, name, module)
        importlib.import_module("launch.run.harness")
        registry = importlib.import_module("lm_eval.api.registry")
        given = {"workdir": str(short_run), "mesh__tensor": 2, "mesh__data": 4}
        more = {"batch_size": "auto", "max_batch_size": None, "device": None}
        made = registry.get_model("tessera").create_from_arg_obj(given, more)
        yield made, str(short_run)
        if not INSTALLED:
            sys.modules.pop("launch.run.harness")


def asked(*args: Any) -> Any:
    """What the adapter reads of an `Instance`."""
    return SimpleNamespace(args=args)


def test_it_is_a_model_of_the_harness(model: Any) -> None:
    base = importlib.import_module("lm_eval.api.model").LM
    assert isinstance(model[0], base)
    assert not getattr(type(model[0]), "__abstractmethods__", None)
    assert dict(model[0].run.rule.task.mesh.shape)["tensor"] == 2


def test_likelihoods(model: Any) -> None:
    lm, workdir = model
    run = restore.run_of(workdir)
    own = language.of_run(run, restore.state_of(run, workdir)[0], text.Bytes(256))
    pairs = [("def f(", "x)"), ("", "import"), ("y = 2\n" * 30, "z")]
    found = lm.loglikelihood([asked(*pair) for pair in pairs])
    wanted = own.score([own.continuation(*pair) for pair in pairs])
    assert [x[0] for x in found] == pytest.approx([s.log_likelihood for s in wanted], rel=1e-5)
    assert [x[1] for x in found] == [s.greedy for s in wanted]
    assert all(type(x) is tuple and type(x[1]) is bool for x in found)
    book = "def main():\n    pass\n" * 9  # in windows
    (rolled,) = lm.loglikelihood_rolling([asked(book)])
    assert rolled == pytest.approx(own.score([own.document(book)])[0].log_likelihood, rel=1e-5)


def test_answers_go_to_the_cache(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    hook = SimpleNamespace(add_partial=lambda *entry: kept.append(entry))
    monkeypatch.setattr(model[0], "cache_hook", hook)
    found = model[0].loglikelihood([asked("a", "b")])
    assert kept == [("loglikelihood", ("a", "b"), found[0])]


def test_generation_goes_on_until_a_stop_string(model: Any) -> None:
    lm, workdir = model
    run = restore.run_of(workdir)
    params = run.rule.weights(restore.state_of(run, workdir)[0])
    trained = sampling.of_run(run, params, text.Bytes(256))
    contexts = ["def f(", "x" * 100]  # the second longer than there is room
    prompts = [trained.tokenizer.encode(context)[-58:] for context in contexts]
    how = Sampling(temperature=0.0)
    whole = sampling.Generation(trained, prompts, 6, how).complete(0).texts
    plain = {"max_gen_toks": 6, "until": []}
    stop = whole[0][2:4]
    cut = {"max_gen_toks": 6, "until": [stop, "never"], "do_sample": False, "temperature": 0.7}
    settings = [(contexts[1], plain), (contexts[0], plain), (contexts[0], cut)]
    found = lm.generate_until([asked(*pair) for pair in settings])
    assert found == [whole[1], whole[0], whole[0][: whole[0].index(stop)]]
    # One byte ends the loop itself, and is left out all the same.
    short = lm.generate_until([asked(contexts[0], {"max_new_tokens": 6, "until": whole[0][1]})])
    assert short == [whole[0][: whole[0].index(whole[0][1])]]


def test_settings_that_are_not_known_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="'num_beams': known are"):
        model[0].generate_until([asked("a", {"num_beams": 2})])
    with pytest.raises(ValueError, match="no room .* nearest: max_gen_toks=63"):
        model[0].generate_until([asked("a", {"max_gen_toks": 64})])
