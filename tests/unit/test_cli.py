"""The command: what it prints, how it exits, and that what README and configurations promise is so."""

from __future__ import annotations

import re

import pytest

from astroclip_dist.cli import main
from astroclip_dist.config import load_config, parse_config
from tests.conftest import REPOSITORY

EXAMPLE = re.compile(r"^\$ astroclip (.+)\n((?:error: .+\n)+)", re.MULTILINE)


def test_config_show_prints_what_loads_back_to_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    path = REPOSITORY / "configs" / "demo" / "align.yaml"
    assert main(["config", "show", str(path), "seed=9"]) == 0
    assert parse_config(capsys.readouterr().out, "shown") == load_config(path, ["seed=9"])


def test_errors_shown_in_the_readme_are_those_that_appear(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    examples = EXAMPLE.findall((REPOSITORY / "README.md").read_text())
    assert len(examples) >= 2
    for command, expected in examples:
        assert main(command.split()) == 2
        assert capsys.readouterr().err == expected


@pytest.mark.parametrize("command", ["shards build mock", "shards verify", "train", "embed", "search", "evaluate"])
def test_commands_of_the_readme_have_the_options_that_it_uses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    used = re.findall(rf"astroclip {command}(.*)", (REPOSITORY / "README.md").read_text())
    assert used
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    described = capsys.readouterr().out
    for option in re.findall(r"--[a-z-]+", " ".join(used)):
        assert option in described


def test_unknown_command_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2


def test_options_may_stand_between_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(REPOSITORY / "configs" / "demo" / "align.yaml")
    assert main(["train", path, "seed=1", "--json", "workers=3"]) == 2
    assert "error: workers: 3." in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["train", path, "--dryrun", "seed=2"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --dryrun" in capsys.readouterr().err
