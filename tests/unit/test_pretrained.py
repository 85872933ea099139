"""Encoders that start from pre-trained ones: exactly those weights, or an error that names what differs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.objectives import Setting, objective_of
from astroclip_dist.parallel.engines import build_engine
from astroclip_dist.parallel.process_group import Ranks, join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import CheckpointReader, Progress, resolve_checkpoint, save
from astroclip_dist.train.pretrained import pretrained_values
from astroclip_dist.train.run_folder import register
from tests.rank_pool import RankPool
from tests.tiny_pair import whole_state

IMAGE = "width: 16, depth: 2, heads: 2, crop: 24, patch: 12"
SPECTRUM = "width: 16, depth: 1, heads: 2, slice_size: 100, slice_stride: 50"
DINO = (
    f"{{name: dinov2, image: {{{IMAGE}}}, global_views: {{count: 2, size: 24}}, local_views: {{count: 2, size: 12}}, "
    "head: {layers: 2, hidden: 8, bottleneck: 4, prototypes: 16}}"
)
MASKED = f"{{name: masked_spectrum, spectrum: {{{SPECTRUM}}}, mask_width: 3}}"
BINS = 1000


def configure(run: str, objective: str, engine: str = "ddp", workers: int = 1) -> RunConfig:
    text = (
        f"{{data: unused, run: {run}, length: 10 steps, device: cpu, workers: {workers}, engine: {{name: {engine}}}, "
        f"batch: {{global_size: 16, lanes: 4}}, optimizer: {{lr: 1e-3}}, objective: {objective}}}"
    )
    return parse_config(text, "test")


def clip(image_from: object = None, spectrum_from: object = None, image: str = "", spectrum: str = "") -> str:
    """An alignment; ``image`` and ``spectrum`` replace options of the encoders that the pre-trained ones have."""
    return (
        f"{{image: {{{image or IMAGE}}}, spectrum: {{{spectrum or SPECTRUM}}}, head: {{embedding: 8}}, "
        f"image_from: {image_from or 'null'}, spectrum_from: {spectrum_from or 'null'}}}"
    )


def module_of(config: RunConfig, bins: int = BINS) -> torch.nn.Module:
    layouts = ImageLayout(size=32), SpectrumLayout(size=bins)
    return objective_of(Setting(config, *layouts, True, RunSteps(10, 10, 16), torch.device("cpu"))).build()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of one run of each kind, whose weights are all different."""
    ranks, made = join("cpu", 60.0), {}
    for seed, (name, objective) in enumerate([("dinov2", DINO), ("masked_spectrum", MASKED), ("clip", clip())]):
        made[name] = tmp_path_factory.mktemp(name)
        config = configure(str(made[name]), objective).model_copy(update={"seed": seed})
        register(Store(made[name]), config)
        engine = build_engine(config, ranks, module_of(config))
        with torch.no_grad():
            for number, parameter in enumerate(engine.module.parameters()):
                parameter.add_(number / 100)
        save(Store(made[name]), engine, Progress(1), keep_last=1)
    leave(ranks)
    return made


def stored(run: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint whose names begin so, by the rest of their names."""
    reader = CheckpointReader(resolve_checkpoint(str(run))[1])
    names = [name for name in reader.manifest["tensors"] if name.startswith(prefix)]
    return {name.removeprefix(prefix): reader.read(name) for name in names}


def started(engine: str, objective: str) -> dict[str, torch.Tensor]:
    """First weights of an alignment on this rank's group."""
    config = configure("unused", objective, engine, dist.get_world_size())
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"), made_group=False)
    state = whole_state(build_engine(config, ranks, module_of(config), pretrained_values(config)))
    return {name: value for name, value in state.items() if name.startswith("model.")}


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_alignment_starts_from_both_pre_trainings(engine: str, runs: dict[str, Path], two_ranks: RankPool) -> None:
    objective = clip(runs["dinov2"], runs["masked_spectrum"])
    image = stored(runs["dinov2"], "model.teacher.encoder.")
    # Only pre-training hides patches.
    image.pop("mask_token")
    spectrum = stored(runs["masked_spectrum"], "model.encoder.")
    student = stored(runs["dinov2"], "model.student.encoder.")
    assert not torch.equal(image["position"], student["position"])
    drawn = module_of(configure("unused", objective))
    initialise(drawn, InitialValues(drawn, seed=0), torch.device("cpu"))
    expected = {f"model.{name}": value for name, value in drawn.state_dict().items()}
    for modality, weights in (("image", image), ("spectrum", spectrum)):
        names = {name for name in expected if name.startswith(f"model.{modality}_encoder.")}
        assert names == {f"model.{modality}_encoder.{name}" for name in weights}
        expected |= {f"model.{modality}_encoder.{name}": value for name, value in weights.items()}
    for found in two_ranks.run(started, engine, objective):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_one_encoder_may_come_from_an_alignment_and_each_tensor_is_read_once(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    read, read_range = Store.read, Store.read_range

    def counted(store: Store, name: str, *arguments: Any) -> Any:
        reads[name] += 1
        return read(store, name, *arguments)

    def counted_range(store: Store, name: str, first: int, last: int) -> Any:
        reads[f"{name} {first}"] += 1
        return read_range(store, name, first, last)

    monkeypatch.setattr(Store, "read", counted)
    monkeypatch.setattr(Store, "read_range", counted_range)
    config = configure("unused", clip(image_from=runs["clip"]))
    module = module_of(config)
    initialise(module, InitialValues(module, 0, pretrained_values(config)), torch.device("cpu"))
    assert reads["manifest.json"] == 1
    assert set(reads.values()) == {1}
    monkeypatch.undo()
    weights = stored(runs["clip"], "model.image_encoder.")
    # One read each, and one of the file's header, which is checked.
    assert len(weights) == sum(name.startswith("rank-") and not name.endswith(" 0") for name in reads)
    for name, value in module.image_encoder.state_dict().items():
        assert torch.equal(value, weights[name])
    other = stored(runs["clip"], "model.spectrum_encoder.")
    assert not torch.equal(module.spectrum_encoder.position, other["position"])


def refusal(objective: str, bins: int = BINS) -> str:
    config = configure("unused", objective)
    module = module_of(config, bins)
    with pytest.raises(ConfigError) as refused:
        initialise(module, InitialValues(module, 0, pretrained_values(config)), torch.device("cpu"))
    return str(refused.value)


def test_other_settings_of_an_encoder_are_refused_by_name(runs: dict[str, Path]) -> None:
    dino, masked = runs["dinov2"], runs["masked_spectrum"]
    wider = refusal(clip(image_from=dino, image=IMAGE.replace("width: 16", "width: 32")))
    assert wider.startswith("objective.image.width: 32.")
    assert "was trained with width = 16: set it to that" in wider
    # Of equal shape, but the encoder would see something else.
    assert refusal(clip(image_from=dino, image=f"{IMAGE}, stretch: asinh")).startswith(
        "objective.image.stretch: asinh."
    )
    slicing = refusal(clip(spectrum_from=masked, spectrum=SPECTRUM.replace("stride: 50", "stride: 60")))
    assert slicing.startswith("objective.spectrum.slice_stride: 60.")


def test_spectra_on_a_longer_grid_name_the_first_tensor_that_differs(runs: dict[str, Path]) -> None:
    refused = refusal(clip(spectrum_from=runs["masked_spectrum"]), bins=1050)
    assert refused.startswith("objective.spectrum_from: ")
    assert "model.encoder.position is not what this model needs: shape (1, 20, 16), not (1, 21, 16)" in refused


def test_runs_of_another_kind_or_without_a_checkpoint_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    assert "It trained no image encoder" in refusal(clip(image_from=runs["masked_spectrum"]))
    assert "It trained no spectrum encoder" in refusal(clip(spectrum_from=runs["dinov2"]))
    with pytest.raises(DataError, match="no complete checkpoint"):
        pretrained_values(configure("unused", clip(image_from=tmp_path)))
    assert pretrained_values(configure("unused", clip())) is None
    assert pretrained_values(configure("unused", MASKED)) is None


def test_a_damaged_tensor_is_an_error_that_names_it(runs: dict[str, Path]) -> None:
    name = "model.encoder.blocks.0.mlp.0.weight"
    _, checkpoint = resolve_checkpoint(str(runs["masked_spectrum"]))
    (chunk,) = json.loads(checkpoint.read("manifest.json"))["tensors"][name]["chunks"]
    path = checkpoint.local_path(chunk["file"])
    assert path is not None
    whole = path.read_bytes()
    config = configure("unused", clip(spectrum_from=runs["masked_spectrum"]))
    try:
        path.write_bytes(whole[: chunk["at"]] + b"\x7f" + whole[chunk["at"] + 1 :])
        module = module_of(config)
        with pytest.raises(DataError, match=r"blocks\.0\.mlp\.0\.weight: crc32 differs"):
            initialise(module, InitialValues(module, 0, pretrained_values(config)), torch.device("cpu"))
        path.write_bytes(whole[:-1])
        with pytest.raises(DataError, match="bytes instead of"):
            pretrained_values(config)
    finally:
        path.write_bytes(whole)
