"""What the alignment feeds its encoders, by its configuration: augmentation options, inverse variances, z-scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.config.augmentation import ViewRecipe
from astroclip_dist.config.model import SpectrumEncoder
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.augment import augment
from astroclip_dist.data.draws import stream_key
from astroclip_dist.data.ordering.order import Cursor, Order
from astroclip_dist.data.preprocessing.images import stretch
from astroclip_dist.data.preprocessing.spectra import slice_spectra
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.stream import Batch, Stream
from astroclip_dist.embed.export import export_embeddings
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.objectives import build_objective
from astroclip_dist.objectives.clip import ClipObjective, Pairs
from astroclip_dist.objectives.inputs import image_inputs, spectrum_tokens
from astroclip_dist.parallel.engines import build_engine
from astroclip_dist.parallel.process_group import join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress, save
from astroclip_dist.train.run_folder import register
from shards.writing.writer import ShardWriter
from tests.random_survey import IMAGE, SPECTRUM, random_sample, write_random_survey

CONFIG = """
run: unused
data: {data}
seed: 4
length: 1 steps
batch: {{global_size: 8, lanes: 1}}
optimizer: {{lr: 1e-3}}
objective:
  image: {{width: 32, depth: 1, heads: 4, crop: 18, patch: 6{image}}}
  spectrum: {{width: 32, depth: 1, heads: 4{spectrum}}}
  augmentation: {augmentation}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("random-survey")
    write_random_survey(str(folder), 16)
    return folder.as_uri()


def configure(data: str, image: str = "", spectrum: str = "", augmentation: str = "{}") -> RunConfig:
    return parse_config(CONFIG.format(data=data, image=image, spectrum=spectrum, augmentation=augmentation), "test")


def objective_for(config: RunConfig, dataset: Dataset) -> ClipObjective:
    steps = RunSteps(total=1, per_epoch=1, global_batch=8)
    objective = build_objective(config, dataset, steps, torch.device("cpu"))
    assert isinstance(objective, ClipObjective)
    return objective


def prepared(config: RunConfig) -> tuple[ClipObjective, Batch, Pairs]:
    dataset = Dataset.open([str(config.data[0])], ["train"])
    objective = objective_for(config, dataset)
    order = Order(dataset.shard_samples, seed=0, lanes=1, global_batch=8, window_shards=1)
    with Stream(dataset, order, objective.members, rank=0, world_size=1, cursor=Cursor()) as stream:
        batch = next(stream)
    return objective, batch, objective.prepare(batch)


def test_every_augmentation_can_be_switched_on(data: str) -> None:
    options = (
        "{random_crop: false, jitter: 2, flips_and_quarter_turns: false, flips: true, rotation: true, "
        "size_scale: [0.9, 1.1], beyond_edge: zero, blur: 0.5, noise: 0.5, "
        "apply_probability: upstream_inverted, reddening: true}"
    )
    config = configure(data, augmentation=options)
    _, batch, inputs = prepared(config)
    recipe = ViewRecipe(size=18, **config.objective.augmentation.model_dump())
    expected = augment(batch.members["image"], batch.draw_ids, stream_key("image view", 4), recipe)
    torch.testing.assert_close(inputs.images, stretch(expected, "rgb"), rtol=0, atol=1e-6)
    assert not torch.equal(inputs.images, prepared(configure(data))[2].images)


def test_inverse_variances_are_read_where_they_are_asked_for(data: str) -> None:
    assert list(prepared(configure(data))[0].members) == ["image", "spectrum"]
    config = configure(data, spectrum=", ivar_aware: true, weighted_mean: true")
    objective, batch, inputs = prepared(config)
    assert list(objective.members) == ["image", "spectrum", "ivar"]
    batch.members["ivar"][:, 30:60] = 0
    expected = slice_spectra(batch.members["spectrum"], 20, 10, batch.members["ivar"], weighted_mean=True)
    masked = objective.prepare(batch).spectra
    assert torch.equal(masked, expected)
    assert not torch.equal(masked, inputs.spectra)
    encoder = objective.config.spectrum
    assert torch.equal(spectrum_tokens(batch.members["spectrum"], encoder, batch.members["ivar"]), expected)
    with pytest.raises(DataError, match="needs the inverse variances"):
        spectrum_tokens(batch.members["spectrum"], encoder)


def test_embeddings_are_made_with_the_inverse_variances(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export reads them too, for a model that was trained with them, and refuses a dataset without."""
    config = configure(data, spectrum=", ivar_aware: true").model_copy(update={"run": str(tmp_path / "run")})
    register(Store(config.run), config)
    ranks = join("cpu", 60)
    model = objective_for(config, Dataset.open([data], ["train"])).build()
    save(Store(config.run), build_engine(config, ranks, model), Progress(step=1), 1)
    leave(ranks)
    read: list[Tensor | None] = []

    def spy(spectra: Tensor, encoder: SpectrumEncoder, ivar: Tensor | None) -> Tensor:
        read.append(ivar)
        return spectrum_tokens(spectra, encoder, ivar)

    monkeypatch.setattr("astroclip_dist.embed.embedder.spectrum_tokens", spy)
    cpu = torch.device("cpu")
    export_embeddings(config.run, [data], str(tmp_path / "out"), splits=["train"], batch_size=8, device=cpu)
    assert [ivar is not None and bool((ivar == 400).all()) for ivar in read] == [True, True]
    with ShardWriter(str(tmp_path / "bare"), IMAGE, SPECTRUM, False, {}, split_fractions={"train": 1.0}) as writer:
        sample = random_sample("bare")
        sample.ivar = None
        writer.add(sample)
        writer.finish()
    with pytest.raises(DataError, match="ivar"):
        export_embeddings(
            config.run, [str(tmp_path / "bare")], str(tmp_path / "two"), splits=["train"], batch_size=8, device=cpu
        )


def test_zscore_of_training_and_evaluation(data: str) -> None:
    config = configure(data, image=", stretch: zscore, zscore: {mean: [0, 1, 2], std: [1, 2, 4]}")
    objective, batch, inputs = prepared(config)
    crop = batch.members["image"][:, :, 3:21, 3:21]
    expected = (crop - torch.tensor([0.0, 1, 2]).view(3, 1, 1)) / torch.tensor([1.0, 2, 4]).view(3, 1, 1)
    torch.testing.assert_close(image_inputs(batch.members["image"], objective.config.image), expected)
    assert inputs.images.shape == expected.shape
    assert np.isfinite(inputs.images.numpy()).all()


@pytest.mark.parametrize(
    ("part", "text", "mend"),
    [
        ("image", ", stretch: zscore", "astroclip shards info"),
        ("image", ", zscore: {mean: [0, 1, 2], std: [1, 2, 4]}", "only it does"),
        ("image", ", stretch: zscore, zscore: {mean: [0, 1, 2], std: [1, 2, 0]}", "greater than 0"),
        ("spectrum", ", weighted_mean: true", "ivar_aware: true"),
    ],
)
def test_options_that_need_each_other(part: str, text: str, mend: str) -> None:
    with pytest.raises(ConfigError, match=mend):
        configure("/nowhere", **{part: text})
