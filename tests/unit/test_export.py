"""The export: every galaxy once, with the embedding that the model gives it, its metadata, and its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.embed.export import export_embeddings
from astroclip_dist.embed.table import EmbeddingTable, Modality
from astroclip_dist.errors import DataError
from astroclip_dist.objectives import build_objective
from astroclip_dist.objectives.inputs import image_inputs, spectrum_tokens
from astroclip_dist.parallel.engines import build_engine
from astroclip_dist.parallel.process_group import join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress, save
from astroclip_dist.train.run_folder import register
from shards.sample import Sample
from shards.writing.writer import ShardWriter
from tests.random_survey import IMAGE, SPECTRUM, random_sample

GALAXIES = 50
CONFIG = """
data: {data}
run: {run}
seed: 5
length: 1 steps
batch: {{global_size: 8, lanes: 1}}
optimizer: {{lr: 1e-3}}
objective: {objective}
"""
IMAGE_ENCODER = "image: {width: 32, depth: 2, heads: 4, crop: 18, patch: 6, layer_scale: null}"
SPECTRUM_ENCODER = "spectrum: {width: 48, depth: 2, heads: 4, class_token: true}"
OBJECTIVES = {
    "clip": f"{{name: clip, {IMAGE_ENCODER}, {SPECTRUM_ENCODER}, head: {{embedding: 16}}}}",
    "dinov2": f"{{name: dinov2, {IMAGE_ENCODER}, global_views: {{count: 2, size: 18}}, "
    "local_views: {count: 2, size: 6}, head: {hidden: 16, bottleneck: 8, prototypes: 32}}",
    "masked_spectrum": f"{{name: masked_spectrum, {SPECTRUM_ENCODER}, masks: 2, mask_width: 2}}",
}
CPU = torch.device("cpu")


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


def start(folder: Path, objective: str) -> tuple[RunConfig, nn.Module]:
    """A run with one checkpoint of an untrained model, and that model."""
    config = parse_config(
        CONFIG.format(data=folder / "survey", run=folder / objective, objective=OBJECTIVES[objective]), "test"
    )
    register(Store(config.run), config)
    dataset = Dataset.open(config.data_urls, ["train"])
    model = build_objective(config, dataset, RunSteps(total=1, per_epoch=1, global_batch=8), CPU).build()
    ranks = join("cpu", 60)
    engine = build_engine(config, ranks, model)
    weights = {name.removeprefix("model."): v for name, v in engine.state().items() if name.startswith("model.")}
    for name, tensor in weights.items():
        if name.startswith("teacher."):
            tensor *= 3  # a teacher starts as its student: make it known from it
    save(Store(config.run), engine, Progress(step=1), 1)
    leave(ranks)
    model.to_empty(device="cpu").load_state_dict(weights)
    return config, model.eval()


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_survey(folder / "survey")
    return folder


@pytest.fixture(scope="module")
def run(survey: Path) -> RunConfig:
    return start(survey, "clip")[0]


def export(config: RunConfig, out: Path, data: str | None = None) -> EmbeddingTable:
    splits = ["train", "val", "test"]
    export_embeddings(config.run, [data or config.data_urls[0]], str(out), splits=splits, batch_size=8, device=CPU)
    return EmbeddingTable.read(str(out))


def plain(config: RunConfig, model: nn.Module, key: str) -> dict[Modality, Tensor]:
    """What one galaxy's embeddings are to be: its own forward pass, alone."""
    objective, sample = config.objective, random_sample(key)
    images, spectra = torch.from_numpy(sample.image)[None], torch.from_numpy(sample.spectrum)[None]
    with torch.no_grad():
        if objective.name == "dinov2":
            return {
                "image": F.normalize(
                    model.teacher.encoder.encode([image_inputs(images, objective.image)])[0][0, 0], dim=0
                )
            }
        tokens = spectrum_tokens(spectra, objective.spectrum)
        if objective.name == "masked_spectrum":
            return {"spectrum": F.normalize(model.encoder(tokens)[0, 1:].mean(dim=0), dim=0)}
        image, spectrum, _ = model(image_inputs(images, objective.image), tokens)
        return {"image": image[0], "spectrum": spectrum[0]}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_galaxy_once_with_its_own_embeddings(survey: Path, tmp_path: Path, objective: str) -> None:
    config, model = start(survey, objective)
    table = export(config, tmp_path / "out")
    sizes = {"clip": {"image": 16, "spectrum": 16}, "dinov2": {"image": 32}, "masked_spectrum": {"spectrum": 48}}
    assert table.manifest.objective == objective
    assert table.manifest.sizes == sizes[objective]
    assert sorted(table.strings("key")) == sorted(f"random-{number}" for number in range(GALAXIES))
    for at, key in enumerate(table.strings("key")):
        number = int(key.removeprefix("random-"))
        there = {"image": number % 7, "spectrum": number % 11 - 1}
        for modality, expected in plain(config, model, key).items():
            vector = table.embeddings[modality][at]
            if there[modality]:
                np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)
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
    assert table.manifest.dataset == run.data_urls


@pytest.mark.parametrize("modality", ["image", "spectrum"])
def test_dataset_of_one_modality(run: RunConfig, tmp_path: Path, modality: str) -> None:
    layouts = (IMAGE, None) if modality == "image" else (None, SPECTRUM)
    write_survey(tmp_path / "survey", *layouts)
    table = export(run, tmp_path / "out", str(tmp_path / "survey"))
    assert table.manifest.modalities == (modality,)
    assert table.has(modality).all()


def test_dataset_of_another_layout_names_the_first_tensor_that_does_not_fit(run: RunConfig, tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "survey"), None, SpectrumLayout(size=200), False, {}) as writer:
        writer.add(Sample("one", spectrum=np.ones(200, np.float32)))
        writer.finish()
    wanted = r"model.spectrum_encoder.position: shape \(1, 13, 48\). It needs shape \(1, 21, 48\)"
    with pytest.raises(DataError, match=wanted):
        export(run, tmp_path / "out", str(tmp_path / "survey"))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(("objective", "wanted"), [("dinov2", "embeds images"), ("masked_spectrum", "embeds spectra")])
def test_dataset_without_what_the_run_embeds(survey: Path, tmp_path: Path, objective: str, wanted: str) -> None:
    write_survey(tmp_path / "survey", *((None, SPECTRUM) if objective == "dinov2" else (IMAGE, None)))
    with pytest.raises(DataError, match=f"A run of {objective} {wanted}"):
        export(start(survey, objective)[0], tmp_path / "out", str(tmp_path / "survey"))


def test_galaxies_that_are_not_finite_are_left_out_and_named(
    run: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ShardWriter(str(tmp_path / "survey"), IMAGE, SPECTRUM, False, {}) as writer:
        for number in range(3):
            sample = random_sample(f"random-{number}")
            sample.ivar = None
            if number == 1:
                sample.spectrum *= 3e37  # finite, but its variance is not
            writer.add(sample)
        writer.finish()
    table = export(run, tmp_path / "out", str(tmp_path / "survey"))
    bad = table.strings("key") == "random-1"
    np.testing.assert_array_equal(table.has("spectrum"), ~bad)
    assert table.has("image").all()
    warnings = [record.getMessage() for record in caplog.records if record.name == "astroclip_dist.embed.export"]
    assert len(warnings) == 1
    assert "spectrum of galaxy random-1" in warnings[0]


def test_embeddings_are_never_overwritten_and_appear_last(run: RunConfig, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    with pytest.raises(DataError, match="there already"):
        export(run, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [part["name"] for part in manifest["parts"]] == ["part-00000.parquet"]


def test_a_run_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete checkpoint"):
        export_embeddings(
            str(tmp_path), [str(tmp_path)], str(tmp_path / "out"), splits=["train"], batch_size=8, device=CPU
        )
