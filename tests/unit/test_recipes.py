"""Recipes: every configuration loads as its own head says, fits its dataset, and has the numbers of the docs."""

from __future__ import annotations

import re
import shlex

import pytest
import torch

from astroclip_dist.config import RunConfig, load_config
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.objectives import Setting, objective_of
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"
PATHS = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if path.relative_to(CONFIGS).parts[0] not in ("jobs", "pipelines")
)
FAMILIES = ("paper", "upstream", "16xH100")
STAGES = {"Images": "image", "Spectra": "spectrum", "Alignment": "align"}


def command_of(name: str) -> list[str]:
    """Words after ``astroclip train configs/NAME`` in the head of a configuration."""
    text = re.sub(r"\\\n", " ", (CONFIGS / name).read_text().replace("\n#", "\n"))
    commands = [shlex.split(line) for line in re.findall(rf"^ +astroclip train configs/{name} .*$", text, re.MULTILINE)]
    assert len(commands) == 1, "The head of a configuration says how it is started, once."
    return commands[0][3:]


def recipe(name: str, *overrides: str) -> RunConfig:
    return load_config(CONFIGS / name, [*command_of(name), *overrides])


def setting_of(config: RunConfig) -> Setting:
    """For images and spectra of the sizes that the surveys have."""
    steps = RunSteps(total=100, per_epoch=10, global_batch=config.batch.global_size)
    return Setting(config, ImageLayout(), SpectrumLayout(), False, steps, torch.device("cpu"))


def value_of(config: RunConfig, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", PATHS)
def test_loads_by_the_command_in_its_head_and_says_what_it_is_for(name: str) -> None:
    recipe(name)
    assert {"data", "run"} <= {word.partition("=")[0] for word in command_of(name)}
    text = (CONFIGS / name).read_text()
    assert "\n# Numbers: " in text
    assert "\n# Expected: " in text


@pytest.mark.parametrize("name", PATHS)
def test_builds_its_model_for_images_and_spectra_of_the_surveys(name: str) -> None:
    module = objective_of(setting_of(recipe(name))).build()
    assert all(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("stage", STAGES.values())
@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_the_default_may_go_on_with_fewer_gpus(stage: str, workers: int) -> None:
    objective_of(setting_of(recipe(f"16xH100/{stage}.yaml", f"workers={workers}")))


@pytest.mark.parametrize("family", [*FAMILIES, "demo"])
def test_the_third_stage_has_the_encoders_of_the_first_two(family: str) -> None:
    align = recipe(f"{family}/align.yaml").objective.model_dump()
    assert align["image"] == recipe(f"{family}/image.yaml").objective.model_dump()["image"]
    assert align["spectrum"] == recipe(f"{family}/spectrum.yaml").objective.model_dump()["spectrum"]


def table_of(title: str) -> list[tuple[str, tuple[str, ...]]]:
    """Rows of the docs that name a setting: its key, and the cells of the three families."""
    section = (REPOSITORY / "docs" / "recipes.md").read_text().split(f"\n### {title}\n")[1].split("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if "|" in line]
    keys = [(re.search(r"`([a-z0-9_.]+)`", row[0]), row) for row in rows]
    return [(key[1], tuple(row[1:4])) for key, row in keys if key]


@pytest.mark.parametrize("title", STAGES)
def test_tables_of_the_docs_have_the_numbers_of_the_configurations(title: str) -> None:
    checked = dict.fromkeys(FAMILIES, 0)
    for key, cells in table_of(title):
        for family, cell in zip(FAMILIES, cells, strict=True):
            # The quoted value that a cell begins with; what follows explains. Some have none: it cannot be expressed.
            value = re.match(r"(?:[a-z]+: )?`([^`]+)`", cell)
            if value:
                name = f"{family}/{STAGES[title]}.yaml"
                # The same value, however it is written: 1.25 epochs or 1_250 steps are not, 1e-4 and 0.0001 are.
                assert value_of(recipe(name), key) == value_of(recipe(name, f"{key}={value[1]}"), key), f"{name}: {key}"
                checked[family] += 1
    assert min(checked.values()) >= 6
