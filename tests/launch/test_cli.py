"""The `tessera` command finds the files of launch/ by itself and passes everything on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import launch
from launch import cli, plan
from launch import compile as compiling

ENTRY_POINT = '''"""Echo the arguments.

More that the list of commands leaves out.
"""
import sys


def main():
    print(sys.argv)
    return 7
'''


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a command that exists only during the test."""
    (tmp_path / "echo_test.py").write_text(ENTRY_POINT)
    (tmp_path / "_private.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    monkeypatch.setattr(launch, "__path__", [*launch.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "argv", ["tessera"])
    monkeypatch.delitem(sys.modules, "launch.echo_test", raising=False)
    return "echo_test"


def test_commands_are_the_files_of_launch(echo: str) -> None:
    folder = Path(launch.__file__).parent
    expected = {path.stem for path in folder.glob("*.py")} - {"__init__", "cli"}
    assert set(cli.commands()) == expected | {echo}


def test_command_gets_its_arguments_and_gives_its_exit_code(
    echo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([echo, "--config=a b", "--help"]) == 7
    assert capsys.readouterr().out == "['tessera echo_test', '--config=a b', '--help']\n"


def test_help_lists_every_command_with_its_first_line(
    echo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert f"  {echo:<12} Echo the arguments.\n" in out
    assert "leaves out" not in out
    for name in cli.commands():
        assert f"  {name} " in out, f"launch/{name}.py needs a docstring"


@pytest.mark.parametrize("command", [compiling.parser, plan.parser])
def test_what_uses_no_device_has_no_flags_for_them(command: Any) -> None:
    text = command().format_help()
    assert "--json" in text
    assert "--simulate" not in text and "--coordinator" not in text


def test_no_command_prints_the_usage_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: tessera COMMAND" in capsys.readouterr().err


def test_unknown_command_names_the_nearest(echo: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["ecoh_test"])
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "unknown command 'ecoh_test'" in err
    assert "nearest: 'echo_test'" in err


def test_as_a_user_would(tmp_path: Path, user_environment: dict[str, str]) -> None:
    """The installed script, from another directory; quick, since nothing imports JAX for it."""
    script = Path(sys.executable).parent / "tessera"
    run = subprocess.run(
        [script, "no-such-thing"],
        cwd=tmp_path,
        env=user_environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("error: unknown command 'no-such-thing'")


def test_help_needs_no_jax(user_environment: dict[str, str]) -> None:
    code = (
        "import sys; from launch import cli; cli.main(['--help']); sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=user_environment, check=True, timeout=60)
