"""Masked spectrum modelling: the loss against a plain one, on one process and on several ranks, under every engine."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.config.objective import MaskedSpectrum
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.draws import stream_key
from astroclip_dist.data.masking.segments import segment_masks
from astroclip_dist.data.preprocessing.joining import join_slices, mean_and_std
from astroclip_dist.data.preprocessing.spectra import slice_spectra
from astroclip_dist.data.streaming.stream import Batch
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.models.masked_spectrum import MaskedSpectrumModel, mask_tokens
from astroclip_dist.objectives import Setting, objective_of
from astroclip_dist.objectives.masked_spectrum import (
    PREDICTION_ERROR,
    MaskedSpectra,
    MaskedSpectrumObjective,
    bin_weights,
    masked_errors,
)
from astroclip_dist.parallel.engines import StepRates
from astroclip_dist.parallel.engines.parameter_groups import parameter_groups, set_rates
from astroclip_dist.parallel.process_group import join, leave
from shards.writing.writer import ShardWriter
from tests.bare_training import BareTraining
from tests.random_survey import SPECTRUM, random_sample
from tests.rank_pool import RankPool

ENGINES = {
    "ddp": "{name: ddp}",
    "fsdp": "{name: fsdp}",
    "zero2": "{name: deepspeed, zero_stage: 2}",
    "zero3": "{name: deepspeed, zero_stage: 3}",
}
# What a variant adds to the objective, and to its encoder.
VARIANTS = {
    "plain": ("", ""),
    "ivar aware": ("", ", ivar_aware: true, class_token: true"),
    "ivar weighted": ("ivar_weighted: true", ""),
    "both": ("ivar_weighted: true", ", ivar_aware: true"),
}
STEPS, BATCH = 3, 16
Outcomes = list[tuple[float, float]]


def configuration(data: str, variant: str, engine: str = "ddp", micro: str = "null") -> str:
    objective, spectrum = VARIANTS[variant]
    text = f"""
    run: unused
    data: {data}
    seed: 3
    length: {STEPS} steps
    batch: {{global_size: {BATCH}, lanes: 4, window_shards: 1, micro_size: {micro}}}
    optimizer: {{lr: 1e-3, weight_decay: 0.05}}
    engine: {ENGINES[engine]}
    objective:
      name: masked_spectrum
      masks: 3
      mask_width: 2
      spectrum: {{width: 16, depth: 2, heads: 2{spectrum}}}
      {objective}
    """
    return textwrap.dedent(text)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Spectra whose inverse variances differ from bin to bin, some of them 0."""
    folder = tmp_path_factory.mktemp("random-spectra")
    with ShardWriter(
        str(folder), None, SPECTRUM, True, {}, samples_per_shard=20, split_fractions={"train": 1.0}
    ) as writer:
        for number in range(60):
            sample = random_sample(f"random-{number}")
            rng = np.random.default_rng(number)
            sample.image = None
            sample.ivar = rng.choice([0.0, 0.5, 4.0, 400.0, 1e5], size=SPECTRUM.size).astype(np.float32)
            writer.add(sample)
        writer.finish()
    return folder.as_uri()


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """This process in a group of its own."""
    ranks = join("cpu", 60)
    yield
    leave(ranks)


def train(data: str, variant: str, engine: str, micro: str = "null") -> Outcomes:
    """Loss of the global batch and gradient norm of some steps, on this rank of a group."""
    return BareTraining(configuration(data, variant, engine, micro)).train(0, STEPS)


def plain_errors(model: MaskedSpectrumModel, batch: Batch, config: RunConfig) -> list[Tensor]:
    """The loss of every spectrum, written token by token."""
    objective = config.objective
    assert isinstance(objective, MaskedSpectrum)
    encoder = objective.spectrum
    size, stride = encoder.slice_size, encoder.slice_stride
    masks = segment_masks(batch.draw_ids, stream_key("spectrum mask", config.seed), 12, 3, 2)
    found = []
    for row, mask in enumerate(masks.tolist()):
        flux = batch.members["spectrum"][row]
        ivar = batch.members["ivar"][row] if "ivar" in batch.members else torch.ones_like(flux)
        known = flux[ivar > 0] if encoder.ivar_aware else flux
        mean, std = known.mean(), known.std().clamp_min(0.2)
        scores = (flux - mean) / std
        if encoder.ivar_aware:
            scores[ivar == 0] = 0
        tokens = torch.zeros(12, size + 2)
        tokens[0, :2] = torch.stack([(mean - 2) / 2, (std - 2) / 8])
        for number in range(11):
            tokens[1 + number, 2:] = scores[number * stride : number * stride + size]
        seen = torch.stack([torch.zeros(size + 2) if mask[number] else tokens[number] for number in range(12)])
        predicted = model.head(model.encoder(seen[None]))[0][int(encoder.class_token) :]
        errors, weights = torch.zeros(()), torch.zeros(())
        for number in range(11):
            if mask[1 + number]:
                bins = slice(number * stride, number * stride + size)
                weight = torch.ones(size)
                if objective.ivar_weighted:
                    weight = 1 / (1 / (ivar[bins] * std**2) + PREDICTION_ERROR**2)
                if "ivar" in batch.members:
                    weight[ivar[bins] == 0] = 0
                errors = errors + (weight * (predicted[1 + number, 2:] - scores[bins]) ** 2).sum()
                weights = weights + weight.sum()
        found.append(errors / weights)
    return found


def train_and_restart(data: str, engine: str, other: str, folder: str) -> Outcomes:
    """As ``train``, going on with another engine after the first step."""
    first = BareTraining(configuration(data, "plain", engine))
    found = first.train(0, 1)
    first.save(folder, 1)
    second = BareTraining(configuration(data, "plain", other))
    assert second.restore(folder) == 1
    return found + second.train(1, STEPS)


def train_plainly(data: str, variant: str) -> Outcomes:
    """As ``train``, in one process, of torch's parts alone."""
    reader = BareTraining(configuration(data, variant))
    config = reader.config
    assert isinstance(config.objective, MaskedSpectrum)
    model = MaskedSpectrumModel(config.objective.spectrum, SPECTRUM.size)
    initialise(model, InitialValues(model, config.seed))
    optimizer = torch.optim.AdamW(parameter_groups(model, config.optimizer), lr=1e-3)
    set_rates(optimizer.param_groups, StepRates(1e-3, 0.05))
    found = []
    for batch in reader.batches(0, STEPS):
        loss = torch.stack(plain_errors(model, batch, config)).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), norm.item()))
    return found


@pytest.fixture(scope="module")
def expected(data: str, alone: None) -> dict[str, Outcomes]:
    return {variant: train_plainly(data, variant) for variant in VARIANTS}


def close(found: Outcomes, expected: Outcomes) -> bool:
    return torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    ("variant", "engine", "micro"),
    [
        ("plain", "ddp", "null"),
        ("plain", "fsdp", "4"),
        ("plain", "zero2", "4"),
        ("plain", "zero3", "null"),
        ("ivar aware", "ddp", "2"),
        ("ivar aware", "fsdp", "null"),
        ("ivar aware", "zero3", "4"),
        ("ivar weighted", "zero2", "null"),
        ("both", "ddp", "4"),
    ],
)
def test_two_ranks_train_as_one_process_does(
    data: str, variant: str, engine: str, micro: str, two_ranks: RankPool, expected: dict[str, Outcomes]
) -> None:
    for found in two_ranks.run(train, data, variant, engine, micro):
        assert close(found, expected[variant]), (found, expected[variant])


@pytest.mark.parametrize(("variant", "engine"), [("plain", "ddp"), ("both", "fsdp")])
def test_four_ranks_train_as_one_process_does(
    data: str, variant: str, engine: str, four_ranks: RankPool, expected: dict[str, Outcomes]
) -> None:
    assert close(four_ranks.run(train, data, variant, engine)[0], expected[variant])


@pytest.mark.parametrize(("engine", "other"), [("ddp", "zero2"), ("zero3", "fsdp")])
def test_a_restored_run_goes_on_as_it_would_have(
    data: str, engine: str, other: str, tmp_path: Path, two_ranks: RankPool, expected: dict[str, Outcomes]
) -> None:
    found = two_ranks.run(train_and_restart, data, engine, other, str(tmp_path))[0]
    assert close(found, expected["plain"])


def prepared(data: str, variant: str) -> tuple[MaskedSpectrumObjective, Batch]:
    reader = BareTraining(configuration(data, variant))
    assert isinstance(reader.objective, MaskedSpectrumObjective)
    return reader.objective, reader.batches(0, 1)[0]


def model_of(objective: MaskedSpectrumObjective) -> MaskedSpectrumModel:
    model = MaskedSpectrumModel(objective.config.spectrum, SPECTRUM.size)
    initialise(model, InitialValues(model, 0))
    return model


@torch.no_grad()
@pytest.mark.parametrize("variant", ["plain", "ivar aware"])
def test_what_is_masked_is_not_seen(alone: None, data: str, variant: str) -> None:
    objective, batch = prepared(data, variant)
    if "ivar" in batch.members:
        batch.members["ivar"].fill_(1.0)
    model = model_of(objective)
    inputs = objective.prepare(batch)
    before = model(mask_tokens(inputs.tokens, inputs.masks))
    assert before.shape == inputs.tokens.shape
    seen = join_slices(inputs.tokens[:, 1:, 2:], ~inputs.masks[:, 1:], SPECTRUM.size, 10)[1] > 0
    assert (~seen).sum(dim=1).min() >= 3 * 10

    def predictions_after_turning(which: Tensor) -> Tensor:
        """The same values in reverse order: mean and standard deviation stay."""
        members = {name: value.clone() for name, value in batch.members.items()}
        for flux, bins in zip(members["spectrum"], which, strict=True):
            flux[bins] = flux[bins].flip(0)
        after = objective.prepare(replace(batch, members=members))
        assert not torch.allclose(masked_errors(before, after), masked_errors(before, inputs))
        return model(mask_tokens(after.tokens, after.masks))

    torch.testing.assert_close(predictions_after_turning(~seen), before, rtol=0, atol=1e-5)
    assert (predictions_after_turning(seen) - before).abs().amax(dim=(1, 2)).min() > 1e-3


def test_masks_follow_the_sample_and_its_epoch(alone: None, data: str) -> None:
    objective, batch = prepared(data, "plain")
    inputs = objective.prepare(batch)
    assert not inputs.masks[:, 0].any()
    assert (inputs.masks.sum(dim=1) == 6).all()
    half = replace(
        batch,
        sample_ids=batch.sample_ids[8:],
        epochs=batch.epochs[8:],
        members={name: value[8:] for name, value in batch.members.items()},
    )
    assert torch.equal(objective.prepare(half).masks, inputs.masks[8:])
    assert not torch.equal(objective.prepare(replace(batch, epochs=batch.epochs + 1)).masks, inputs.masks)


@pytest.mark.parametrize("variant", ["ivar aware", "ivar weighted", "both"])
def test_masked_bins_count_nothing(alone: None, data: str, variant: str) -> None:
    objective, batch = prepared(data, variant)
    batch.members["ivar"][2] = 0
    batch.members["ivar"][3:].clamp_(min=0.5)
    inputs = objective.prepare(batch)
    predicted = torch.randn(inputs.tokens.shape, requires_grad=True)
    errors = masked_errors(predicted, inputs)
    errors.mean().backward()
    assert predicted.grad is not None
    bad = slice_spectra(torch.randn(BATCH, SPECTRUM.size), 20, 10)
    bad[:, 1:, 2:] = batch.members["ivar"].unfold(1, 20, 10)
    counted = inputs.masks[..., None] & (bad > 0)
    counted[:, 0] = False
    counted[:, :, :2] = False
    assert torch.equal(predicted.grad != 0, counted)
    assert errors[2] == 0
    assert torch.isfinite(errors).all()
    assert (errors[3:] > 0).all()


def test_no_bin_rules_its_spectrum() -> None:
    ivar = torch.tensor([[0.0, -1.0, torch.nan, 1e-30, 1.0, 100.0, 1e8, 3e38]])
    std = torch.tensor([[2.0]])
    weights = bin_weights(ivar, std, weighted=True)[0]
    assert torch.equal(weights[:4], torch.tensor([0.0, 0, 0, weights[3]]))
    # Noise of half a standard deviation: the inverse variance, but for the prediction's own error.
    assert weights[4].item() == pytest.approx(1 / (0.25 + PREDICTION_ERROR**2))
    assert weights[5].item() == pytest.approx(1 / (0.0025 + PREDICTION_ERROR**2))
    assert weights[6:].tolist() == pytest.approx([PREDICTION_ERROR**-2] * 2, rel=1e-3)
    # Brighter by a factor, with noise brighter by the same: the same weights.
    torch.testing.assert_close(bin_weights(ivar[:, 4:6] / 9, 3 * std, True), weights[None, 4:6])
    assert bin_weights(ivar, std, weighted=False)[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_finite_names_the_spectra_that_are_not(alone: None, data: str) -> None:
    objective, batch = prepared(data, "plain")
    batch.members["spectrum"][5, 7] = torch.nan
    assert objective.finite(objective.prepare(batch)).tolist() == [row != 5 for row in range(BATCH)]


def test_slices_are_joined_to_the_spectrum_that_they_were_cut_from() -> None:
    flux = torch.randn(3, 125, generator=torch.Generator().manual_seed(0)) * 3 + 5
    tokens = slice_spectra(flux, 20, 8)
    mean, std = mean_and_std(tokens)
    slices, chosen = tokens[:, 1:, 2:], torch.rand(3, 14, generator=torch.Generator().manual_seed(1)) < 0.5
    whole, covered = join_slices(slices, torch.ones_like(chosen), 125, 8)
    torch.testing.assert_close((whole * std + mean)[:, :124], flux[:, :124])
    assert (covered[:, 124:] == 0).all()
    assert (whole[:, 124:] == 0).all()
    # Where slices disagree, the mean of those that were chosen.
    disagreeing = torch.arange(14.0)[None, :, None].expand(3, 14, 20)
    some, covered = join_slices(disagreeing, chosen, 125, 8)
    for row in range(3):
        for place in range(125):
            over = [number for number in range(14) if chosen[row, number] and number * 8 <= place < number * 8 + 20]
            assert covered[row, place] == len(over)
            assert some[row, place] == pytest.approx(np.mean(over) if over else 0.0)


def test_terms_to_log(alone: None, data: str) -> None:
    """The answer "everywhere the mean" costs what the log says it costs."""
    objective, batch = prepared(data, "both")
    inputs = objective.prepare(batch)

    class Zeros:
        def forward(self, tokens: Tensor) -> Tensor:
            assert (tokens[inputs.masks] == 0).all()
            return torch.zeros_like(tokens)

        def backward(self, loss: Tensor, *, last: bool) -> None:
            assert last

    terms = objective.accumulate(Zeros(), inputs, 0)  # type: ignore[arg-type]
    torch.testing.assert_close(terms["loss"], terms["loss_of_mean"])
    assert terms["masked_share"] == pytest.approx(inputs.masks[:, 1:].float().mean().item())
    assert isinstance(inputs, MaskedSpectra)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("masks: 3, mask_width: 4", "mask_width: 4.* at most 3"),
        ("masks: 12, mask_width: 2", "mask_width: 2.* at most 0"),
        ("masks: 3, mask_width: 1", "mask_width: 1.* at least 2"),
        ("masks: 1, mask_width: 1, spectrum: {slice_size: 121, slice_stride: 121}", "slice_size: 121.* 120 bins"),
    ],
)
def test_sizes_that_do_not_fit(values: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        setting_of(f"{{name: masked_spectrum, {values}}}", has_ivar=True)


def test_absent_inverse_variances_are_refused() -> None:
    for options in ("ivar_weighted: true", "spectrum: {ivar_aware: true}"):
        with pytest.raises(DataError, match="ivar: absent"):
            setting_of(f"{{name: masked_spectrum, masks: 3, mask_width: 2, {options}}}", has_ivar=False)


def setting_of(objective: str, has_ivar: bool) -> None:
    batch = "batch: {global_size: 8, lanes: 1}"
    text = f"run: unused\ndata: /nowhere\nlength: 1 steps\n{batch}\noptimizer: {{lr: 1}}\nobjective: {objective}"
    objective_of(Setting(parse_config(text, "test"), None, SPECTRUM, has_ivar, RunSteps(1, 1, 8), torch.device("cpu")))
