"""Real galaxies through the whole path, by the commands that a person types."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def astroclip(*arguments: str | Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "astroclip_dist.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Path:
    """The eleven real pairs, built, overfitted and embedded."""
    folder = tmp_path_factory.mktemp("real")
    data, run = folder / "pairs", folder / "run"
    astroclip("shards", "build", "pairs", real_data / "pairs" / "pairs.csv", data, "--splits", "1", "0", "0")
    astroclip("train", REPOSITORY / "configs" / "real_pairs.yaml", f"data={data}", f"run={run}")
    astroclip("embed", run, data, folder / "embeddings")
    return folder


def test_every_real_image_finds_its_own_spectrum_and_back(folder: Path) -> None:
    report = folder / "report.html"
    astroclip("evaluate", folder / "embeddings", report, "--run", folder / "run")
    recall = json.loads((folder / "results.json").read_text())["cross_modal"]
    assert {direction: result["recall"]["1"] for direction, result in recall.items()} == {
        "image to spectrum": 1.0,
        "spectrum to image": 1.0,
    }
    assert all(result["candidates"] == 11 for result in recall.values())
    assert report.read_text().count("data:image/png;base64,") >= 3


def test_search_gives_the_galaxy_itself_first_across_modalities(folder: Path) -> None:
    answer = astroclip(
        "search", folder / "embeddings", "--key", "ngc6154", "--query", "image", "--among", "spectrum", "--json"
    )
    neighbours = json.loads(answer)
    assert neighbours[0]["key"] == "ngc6154"
    assert neighbours[0]["redshift"] == pytest.approx(0.019894758)
    assert len(neighbours) == 8


def test_the_dataset_is_sound_and_can_be_looked_at(folder: Path) -> None:
    assert json.loads(astroclip("shards", "verify", folder / "pairs", "--json"))["sound"]
    assert (folder / "pairs" / "contact-sheet.png").read_bytes().startswith(b"\x89PNG")
