"""The export: every galaxy once, with the embedding that the model gives it, its metadata, and its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.data.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.embed.export import export_embeddings
from astroclip_dist.embed.table import EmbeddingTable
from astroclip_dist.errors import DataError
from astroclip_dist.models.two_tower import TwoTower
from astroclip_dist.objectives.clip import evaluation_inputs
from astroclip_dist.parallel.engines import build_engine
from astroclip_dist.parallel.process_group import join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress, load_weights, save
from astroclip_dist.train.run_folder import register
from shards.sample import Sample
from shards.writing.writer import ShardWriter
from tests.random_survey import IMAGE, SPECTRUM, random_sample

GALAXIES = 50
CONFIG = """
data: {data}
run: {run}
length: 1 steps
batch: {{global_size: 8, lanes: 1}}
optimizer: {{lr: 1e-3}}
objective:
  image: {{width: 32, depth: 1, heads: 4, crop: 18, patch: 6}}
  spectrum: {{width: 32, depth: 1, heads: 4}}
  head: {{embedding: 16}}
"""


def write_survey(folder: Path, image: ImageLayout | None = IMAGE, spectrum: SpectrumLayout | None = SPECTRUM) -> None:
    """Galaxies of which every seventh lacks the image and every eleventh the spectrum, where both are kept at all."""
    with ShardWriter(str(folder), image, spectrum, False, {}, samples_per_shard=20) as writer:
        for number in range(GALAXIES):
            sample = random_sample(f"random-{number}")
            sample.ivar = None
            sample.metadata |= {"number": number, "name": f"galaxy {number}"}
            if image is None or (spectrum is not None and number % 7 == 0):
                sample.image = None
            if spectrum is None or (image is not None and number % 11 == 1):
                sample.spectrum = None
            writer.add(sample)
        writer.finish()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run with one checkpoint of an untrained model."""
    folder = tmp_path_factory.mktemp("export")
    write_survey(folder / "survey")
    config = parse_config(CONFIG.format(data=folder / "survey", run=folder / "run"), "test")
    store = Store(config.run)
    register(store, config)
    ranks = join("cpu", 60)
    torch.manual_seed(5)
    save(store, build_engine(config, ranks, TwoTower(config.objective, IMAGE, SPECTRUM)), Progress(step=1), 1)
    leave(ranks)
    return config


def export(config: RunConfig, out: Path, data: str | None = None) -> EmbeddingTable:
    cpu = torch.device("cpu")
    splits = ["train", "val", "test"]
    export_embeddings(config.run, [data or config.data[0]], str(out), splits=splits, batch_size=8, device=cpu)
    return EmbeddingTable.read(str(out))


def test_every_galaxy_once_with_its_own_embeddings(run: RunConfig, tmp_path: Path) -> None:
    table = export(run, tmp_path / "out")
    model = TwoTower(run.objective, IMAGE, SPECTRUM).eval()
    load_weights(Store(run.run).join("checkpoints/step-000000001"), model)
    assert sorted(table.strings("key")) == sorted(f"random-{number}" for number in range(GALAXIES))
    for at, key in enumerate(table.strings("key")):
        sample = random_sample(key)
        number = int(key.removeprefix("random-"))
        images, spectra = torch.from_numpy(sample.image)[None], torch.from_numpy(sample.spectrum)[None]
        with torch.no_grad():
            image, spectrum, _ = model(*evaluation_inputs(images, spectra, run.objective))
        found = table.embeddings["image"][at], table.embeddings["spectrum"][at]
        for there, vector, expected in zip((number % 7, number % 11 - 1), found, (image, spectrum), strict=True):
            if there:
                np.testing.assert_allclose(vector, expected[0].numpy(), atol=1e-5)
                assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
            else:
                assert np.isnan(vector).all()


def test_metadata_and_place_come_along(run: RunConfig, tmp_path: Path) -> None:
    table = export(run, tmp_path / "out")
    assert table.columns.schema.field("name").type == pa.string()
    numbers = table.numbers("number")
    for key, name, number in zip(table.strings("key"), table.strings("name"), numbers, strict=True):
        assert (key, name) == (f"random-{number:.0f}", f"galaxy {number:.0f}")
    assert set(table.strings("split")) == {"train", "val", "test"}
    assert table.manifest.run["url"] == run.run
    assert table.manifest.dataset == run.data


@pytest.mark.parametrize("modality", ["image", "spectrum"])
def test_dataset_of_one_modality(run: RunConfig, tmp_path: Path, modality: str) -> None:
    layouts = (IMAGE, None) if modality == "image" else (None, SPECTRUM)
    write_survey(tmp_path / "survey", *layouts)
    table = export(run, tmp_path / "out", str(tmp_path / "survey"))
    assert table.manifest.modalities == (modality,)
    assert table.has(modality).all()


def test_dataset_of_another_layout(run: RunConfig, tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "survey"), None, SpectrumLayout(size=200), False, {}) as writer:
        writer.add(Sample("one", spectrum=np.ones(200, np.float32)))
        writer.finish()
    with pytest.raises(DataError, match="not the one that the model was trained on"):
        export(run, tmp_path / "out", str(tmp_path / "survey"))


def test_embeddings_are_never_overwritten_and_appear_last(run: RunConfig, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    with pytest.raises(DataError, match="there already"):
        export(run, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [part["name"] for part in manifest["parts"]] == ["part-00000.parquet"]


def test_a_run_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete checkpoint"):
        export_embeddings(
            str(tmp_path), [str(tmp_path)], str(tmp_path / "out"), splits=["train"], batch_size=8, device="cpu"
        )
