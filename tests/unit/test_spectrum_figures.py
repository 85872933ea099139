"""Filled-in spectra and attention, drawn of briefly trained runs, on random galaxies and on real DESI spectra."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from astroclip_dist.config.model import ImageEncoder
from astroclip_dist.config.objective import MaskedSpectrum
from astroclip_dist.data.preprocessing.spectra import slice_spectra
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.evaluate.attention import attention_figures, class_token_attention
from astroclip_dist.evaluate.examples import Examples, read_examples
from astroclip_dist.evaluate.figures import to_png
from astroclip_dist.evaluate.reconstruction import Reconstructions, measure, reconstruct, reconstruction_figure
from astroclip_dist.evaluate.spectrum_axes import smooth
from astroclip_dist.models.image_encoder import ImageTransformer
from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.models.transformer import Block
from astroclip_dist.parallel.process_group import join, leave
from astroclip_dist.store import Store
from astroclip_dist.train.run_folder import register
from shards.building.build import build
from shards.sources.desi_coadd import DesiCoadd
from shards.sources.desi_high import DesiHigh
from tests.bare_training import BareTraining
from tests.random_survey import write_random_survey

SPECTRUM = SpectrumLayout(start_angstrom=3600, step_angstrom=8, size=700)
MASKED = """
name: masked_spectrum
spectrum: {{width: 16, depth: 1, heads: 2, slice_size: {size}, slice_stride: {stride}}}
mask_width: 3
ivar_weighted: {weighted}
"""
CLIP = """
image: {width: 16, depth: 1, heads: 2, crop: 24, patch: 6, registers: 1}
spectrum: {width: 16, depth: 1, heads: 2, class_token: true}
head: {embedding: 12, heads: 3}
"""
DINO = """
name: dinov2
image: {width: 16, depth: 2, heads: 8, crop: 24, patch: 6, registers: 1}
global_views: {count: 2, size: 24}
local_views: {count: 1, size: 12}
head: {hidden: 16, bottleneck: 8, prototypes: 16}
"""


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """This process in a group of its own."""
    ranks = join("cpu", 60)
    yield
    leave(ranks)


@pytest.fixture(scope="module")
def galaxies(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("galaxies")
    splits = {"train": 0.6, "val": 0.2, "test": 0.2}
    write_random_survey(str(folder), 60, splits=splits, image=ImageLayout(size=28), spectrum=SPECTRUM)  # type: ignore[arg-type]
    return folder.as_uri()


def trained(data: str, folder: Path, objective: str, samples: int = 8, steps: int = 2) -> str:
    """URL of a run of some steps."""
    lines = "\n".join(f"  {line}" for line in objective.strip().splitlines())
    training = BareTraining(
        f"run: {folder}\ndata: {data}\nlength: {steps} steps\nbatch: {{global_size: {samples}, lanes: 1}}\n"
        f"optimizer: {{lr: 3e-3, weight_decay: 0.0}}\nobjective:\n{lines}"
    )
    register(Store(folder), training.config)
    training.train(0, steps)
    training.save(str(folder), steps)
    return folder.as_uri()


def colours(figure: Figure) -> int:
    picture = Image.open(io.BytesIO(to_png(figure)))
    return len(picture.convert("RGB").getcolors(1 << 22) or [])


def test_filled_in_spectra_of_held_out_galaxies(alone: None, galaxies: str, tmp_path: Path) -> None:
    run = trained(galaxies, tmp_path, MASKED.format(size=20, stride=10, weighted=True), steps=6)
    figure, numbers = reconstruction_figure(run, [galaxies], 3)
    assert len(figure.subfigs) == 3
    for part in figure.subfigs:
        whole, *close_ups = part.axes
        assert len(whole.patches) == len(close_ups), "a close-up of each shaded stretch"
        assert 4 <= len(close_ups) <= 6, "six, of which some may touch"
    assert colours(figure) > 100
    assert numbers["split"] == "test"
    assert 3 <= numbers["spectra"] <= 20
    # Six stretches of 3 tokens hide 20 bins each, of 700.
    assert numbers["hidden_share"] == pytest.approx(6 * 20 / 700, rel=0.1)
    assert json.loads(json.dumps(numbers)) == numbers
    assert all(np.isfinite(value) for value in numbers.values() if isinstance(value, float))
    # Waves of 60 bins and more with little noise: a line across 20 bins says almost all, and noise leaves almost all.
    assert numbers["explained"] < numbers["explained_by_line"] < numbers["explainable"] < 1
    again = reconstruction_figure(run, [galaxies], 1)
    assert again[1] == numbers, "nothing in it is left to chance"


class Perfect(nn.Module):
    """Knows the tokens."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, masked: Tensor) -> Tensor:
        assert (masked == 0).all(dim=2).sum() == len(masked) * 18
        return self.tokens


def test_a_perfect_model_fills_in_the_spectrum_itself(galaxies: str) -> None:
    examples = read_examples([galaxies], ["spectrum"], 5)
    objective = MaskedSpectrum(mask_width=3)
    tokens = slice_spectra(examples.members["spectrum"], 20, 10)
    found = reconstruct(Perfect(tokens), objective, examples)  # type: ignore[arg-type]
    assert np.isfinite(found.predicted).sum() == found.hidden.sum()
    np.testing.assert_allclose(found.predicted[found.hidden], found.flux[found.hidden], atol=1e-4)
    numbers = measure(found, SPECTRUM)
    assert numbers["explained"] == pytest.approx(1, abs=1e-6)
    assert numbers["explainable"] is None
    assert numbers["spectra"] == 5


def test_numbers_of_an_easy_case() -> None:
    """A ramp with a gap, seen by somebody who answers 1 everywhere: worked out by hand."""
    flux = np.tile(np.arange(100.0), (2, 1))
    hidden = np.zeros((2, 100), bool)
    hidden[:, 40:60] = True
    good = np.ones((2, 100), bool)
    good[1, 40:60] = False
    good[0, 40] = False
    predicted = np.where(hidden, 1.0, np.nan)
    noise = np.full((2, 100), 3.0)
    mean, std = np.full((2, 1), 49.5), np.full((2, 1), 10.0)
    numbers = measure(Reconstructions(flux, hidden, good, predicted, mean, std, noise), SPECTRUM)
    gap = np.arange(41, 60)
    assert numbers["spectra"] == 1, "the other has no good bin in its gap"
    assert numbers["error"] == pytest.approx(np.mean((gap - 1) ** 2) / 100)
    assert numbers["error_of_mean"] == pytest.approx(np.mean((gap - 49.5) ** 2) / 100)
    assert numbers["explained_by_line"] == pytest.approx(1, abs=0.02)
    assert numbers["explainable"] == pytest.approx(1 - 9 / np.mean((gap - 49.5) ** 2))
    empty = measure(
        Reconstructions(flux[1:], hidden[1:], good[1:], predicted[1:], mean[1:], std[1:], noise[1:]), SPECTRUM
    )
    assert empty["error"] is empty["explained"] is None


def test_smoothing_leaves_masked_bins_out() -> None:
    flux, good = np.arange(40.0), np.ones(40, bool)
    flux[20], good[20] = 1e9, False
    layout = SpectrumLayout(step_angstrom=4.0, size=40)
    line = smooth(flux, good, layout)
    assert line[10] == np.mean(flux[8:12])
    assert line[20] == pytest.approx(np.mean([18, 19, 21]))
    good[15:30] = False
    assert np.isnan(smooth(flux, good, layout)[22])


def test_attention_of_an_alignment(alone: None, galaxies: str, tmp_path: Path) -> None:
    run = trained(galaxies, tmp_path, CLIP)
    spectra, images = attention_figures(run, [galaxies], 2)
    # For each galaxy its spectrum and the strips of the heads; the colour bar.
    assert len(spectra.axes) == 2 * 2 + 1
    assert [label.get_text() for label in spectra.axes[1].get_yticklabels()] == ["head 1", "head 2", "head 3"]
    assert len(images.axes) == 2 * (1 + 1 + 3) + 1
    assert min(colours(spectra), colours(images)) > 100


def test_attention_of_a_teacher(alone: None, galaxies: str, tmp_path: Path) -> None:
    (figure,) = attention_figures(trained(galaxies, tmp_path, DINO), [galaxies], 2)
    names = [axes.get_title() for axes in figure.axes[1:7]]
    assert names == ["all heads", "head 1", "head 3", "head 5", "head 6", "head 8"]
    assert len(figure.axes) == 2 * 7 + 1
    assert colours(figure) > 100


@torch.no_grad()
def test_attention_of_the_class_token_is_what_the_encoder_uses() -> None:
    """The last block's values, mixed by the weights, are what its attention puts out."""
    encoder = ImageTransformer(ImageEncoder(width=16, depth=2, heads=4, crop=24, patch=6, registers=1), bands=3)
    initialise(encoder, InitialValues(encoder, 0))
    crops = torch.randn(3, 3, 24, 24)
    block, noted = encoder.blocks[-1], dict[str, Tensor]()
    assert isinstance(block, Block)
    block.attention.register_forward_hook(lambda _, inputs, output: noted.update(seen=inputs[0], put=output))
    weights = class_token_attention(encoder, crops)
    assert weights.shape == (3, 4, 18)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(3, 4))
    values = block.attention.qkv(noted["seen"]).view(3, 18, 3, 4, 4)[:, :, 2]
    mixed = torch.einsum("nht,nthd->nhd", weights, values).flatten(1)
    torch.testing.assert_close(block.attention.out(mixed), noted["put"].view(3, 18, 16)[:, 0])


def test_examples_are_held_out_and_the_same_every_time(galaxies: str) -> None:
    first = read_examples([galaxies], ["image"], 4, if_there=["spectrum", "ivar"])
    assert (first.split, len(first)) == ("test", 4)
    assert set(first.members) == {"image", "spectrum", "ivar"}
    assert first.members["image"].shape == (4, 3, 28, 28)
    assert np.isfinite(first.redshift).all()
    again: Examples = read_examples([galaxies], ["image"], 2)
    assert again.keys == first.keys[:2]
    assert torch.equal(again.members["image"], first.members["image"][:2])
    assert list(again.members) == ["image"]


def test_runs_that_do_not_fit(alone: None, galaxies: str, tmp_path: Path) -> None:
    masked = trained(galaxies, tmp_path / "masked", MASKED.format(size=20, stride=10, weighted=False))
    clip = trained(galaxies, tmp_path / "clip", CLIP)
    with pytest.raises(ConfigError, match="It trained clip"):
        reconstruction_figure(clip, [galaxies], 2)
    with pytest.raises(ConfigError, match="It trained masked_spectrum"):
        attention_figures(masked, [galaxies], 2)
    other = tmp_path / "other"
    write_random_survey(str(other), 4, spectrum=SpectrumLayout(size=120))
    with pytest.raises(DataError, match=r"encoder.position: shape \(1, 70, 16\). It needs shape \(1, 12, 16\)"):
        reconstruction_figure(masked, [str(other)], 2)


@pytest.fixture(scope="module")
def desi(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Real spectra with redshifts, without inverse variances, half of them held out; and two with them."""
    high, coadds = real_data / "desi" / "desihigh", real_data / "desi" / "fastspecfit"
    folder = tmp_path_factory.mktemp("desi")
    halves = {"train": 0.5, "val": 0.0, "test": 0.5}
    commissioning = DesiHigh(sorted(high.glob("coadd-*.fits")), sorted(high.glob("zbest-*.fits")))
    build(commissioning, str(folder / "high"), split_fractions=halves, contact_sheet=False)  # type: ignore[arg-type]
    released = DesiCoadd(sorted(coadds.glob("coadd-*.fits")), sorted(coadds.glob("redrock-*.fits")))
    build(released, str(folder / "coadds"), split_fractions={"train": 1.0}, contact_sheet=False)
    return str(folder / "high"), str(folder / "coadds")


def test_real_desi_spectra(alone: None, desi: tuple[str, str], tmp_path: Path) -> None:
    high, coadds = desi
    run = trained(high, tmp_path / "run", MASKED.format(size=200, stride=100, weighted=False), samples=4, steps=8)
    for data, split, spectra in ((high, "test", 3), (coadds, "train", 2)):
        figure, numbers = reconstruction_figure(run, [data], 2)
        assert [4 <= len(part.axes) - 1 <= 6 for part in figure.subfigs] == [True, True]
        assert colours(figure) > 100
        assert numbers["split"] == split
        assert numbers["spectra"] >= spectra
        assert np.isfinite([numbers[name] for name in ("error", "error_of_mean", "explained_by_line")]).all()
        assert (numbers["explainable"] is None) == (data == high)
    names = [text.get_text() for text in figure.subfigs[0].axes[0].texts]
    assert r"H$\alpha$" in names or "Mg II" in names, "lines where the redshift puts them"


def test_attention_over_real_desi_spectra(alone: None, desi: tuple[str, str], tmp_path: Path) -> None:
    """An alignment draws the spectra of a dataset that has no images."""
    both = tmp_path / "both"
    write_random_survey(str(both), 8, image=ImageLayout(size=24), spectrum=SpectrumLayout())
    spectrum = "spectrum: {width: 16, depth: 1, heads: 2, slice_size: 200, slice_stride: 100, class_token: true}"
    clip = "\n".join(spectrum if line.startswith("spectrum") else line for line in CLIP.splitlines())
    run = trained(str(both), tmp_path / "run", clip)
    (figure,) = attention_figures(run, [desi[1]], 2)
    assert len(figure.axes) == 2 * 2 + 1
    assert colours(figure) > 100


def test_models_are_read_whole(alone: None, galaxies: str, tmp_path: Path) -> None:
    """The numbers are those of the trained weights: another checkpoint of the same model gives others."""
    text = MASKED.format(size=20, stride=10, weighted=False)
    one, two = (trained(galaxies, tmp_path / str(steps), text, steps=steps) for steps in (1, 4))
    assert (
        reconstruction_figure(one, [galaxies], 1)[1]["error"] != reconstruction_figure(two, [galaxies], 1)[1]["error"]
    )
