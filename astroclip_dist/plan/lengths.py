"""How long a run is, and how large its data: read from the dataset's manifest, or assumed where it cannot be opened."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from astroclip_dist.config import RunConfig
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.ordering.mixture import order_of
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.data.streaming.room import check_memory
from astroclip_dist.errors import ConfigError, UserError
from astroclip_dist.plan.assumptions import Assumptions
from astroclip_dist.train.dry_run.forecast import Layouts

# Galaxies, where nobody says: AstroCLIP's 197,632 pairs without their test split, and the Legacy Survey's images.
_SAMPLES = {"clip": 178_000, "masked_spectrum": 178_000, "dinov2": 76_446_849}
_WHOSE = {"clip": "AstroCLIP's pairs", "masked_spectrum": "AstroCLIP's pairs", "dinov2": "the Legacy Survey's images"}
# Of a sample in its tar: a header for each member, its bytes filled up to whole blocks, an .npy header, the metadata.
_TAR_BLOCK, _NPY_HEADER, _METADATA = 512, 128, 512
log = logging.getLogger("astroclip")


@dataclass(frozen=True)
class DataSize:
    """The training split.

    Attributes:
        sample_bytes: mean of a sample in its shard, with its part of the index, as batches draw them.
        is_local: it lies on this machine's disk, so that nothing crosses a network.
    """

    samples: int
    sample_bytes: float
    is_local: bool

    @property
    def bytes(self) -> float:
        return self.samples * self.sample_bytes


def open_data(config: RunConfig) -> Dataset | None:
    """The run's training split; None where it cannot be opened from here, which is logged with its cause."""
    try:
        return Dataset.open(config.data_urls, ["train"], config.data_weights)
    except UserError as error:
        log.warning("`data` cannot be opened, and is assumed: %s", error)
        return None


def layouts_of(dataset: Dataset | None) -> Layouts:
    """As :func:`astroclip_dist.train.dry_run.layouts_of`, of a dataset that was opened."""
    if dataset is None:
        return Layouts(ImageLayout(), SpectrumLayout(), True, "standard layouts, since `data` cannot be opened")
    has_ivar = all(manifest.ivar for manifest in dataset.manifests)
    return Layouts(dataset.image, dataset.spectrum, has_ivar, "layouts of `data`")


def data_size(
    config: RunConfig, dataset: Dataset | None, members: Sequence[str], layouts: Layouts, assumptions: Assumptions
) -> DataSize:
    """What was given counts most, then the dataset, then what is usual."""
    samples, sample_bytes = assumptions.given("samples"), assumptions.given("sample_bytes")
    if samples is None and dataset is not None:
        samples = int(dataset.shard_samples.sum())
    if sample_bytes is None and dataset is not None:
        sample_bytes = _mean_bytes(dataset)
    if samples is None:
        name = config.objective.name
        samples = _SAMPLES[name]
        why = f"assumed: {_WHOSE[name]}, since `data` cannot be opened; --samples"
        assumptions.add("of the training split", f"{samples:_}", why)
    if sample_bytes is None:
        sample_bytes = float(sum(map(_stored, map(_bytes_in(layouts), members))) + _stored(_METADATA))
        why = f"assumed: {', '.join(members)} and nothing else, in the standard layout; --sample-bytes"
        assumptions.add("of one sample in its shard", f"{sample_bytes / 1e3:.1f} kB", why)
    is_local = dataset is not None and all(shard.store.is_local for shard in dataset.shards)
    return DataSize(int(samples), sample_bytes, is_local)


def run_steps(config: RunConfig, dataset: Dataset | None, size: DataSize) -> RunSteps:
    """The steps of a run over a split of some size, as the training itself counts them.

    Raises:
        ConfigError: an epoch would have no step.
    """
    batch = config.batch
    if dataset is not None and int(dataset.shard_samples.sum()) == size.samples:
        per_epoch = _order(config, dataset).steps_per_epoch
    else:
        # As data.order.Order has it.
        per_epoch = (size.samples // batch.lanes) // (batch.global_size // batch.lanes)
    if per_epoch == 0:
        raise ConfigError("batch.global_size", batch.global_size, f"An epoch of {size.samples:,} samples has no step.")
    return RunSteps(config.length.steps(batch.global_size, per_epoch), per_epoch, batch.global_size)


def check_room(config: RunConfig, dataset: Dataset, members: Sequence[str]) -> None:
    """Whether ``reading.memory`` holds what a rank reads ahead.

    Raises:
        ConfigError: it does not. DataError: the dataset lacks one of the members.
    """
    lanes = config.batch.lanes // config.workers
    check_memory(dataset, _order(config, dataset), members, lanes, config.reading)


def _order(config: RunConfig, dataset: Dataset):  # type: ignore[no-untyped-def]
    batch = config.batch
    return order_of(
        dataset,
        seed=config.seed,
        lanes=batch.lanes,
        global_batch=batch.global_size,
        window_shards=batch.window_shards,
    )


def _mean_bytes(dataset: Dataset) -> float:
    """Bytes that are fetched for a sample: groups weigh as batches draw from them."""
    weights = dataset.weights or (1.0,)
    means = [
        sum(shard.entry.bytes for shard in group) / sum(shard.entry.samples for shard in group)
        # The manifest does not say how long indices are; those of a dataset are alike.
        + len(group[0].store.read(f"{group[0].entry.name}.idx")) / group[0].entry.samples
        for group in dataset.groups
    ]
    return sum(weight * mean for weight, mean in zip(weights, means, strict=True)) / sum(weights)


def _bytes_in(layouts: Layouts):  # type: ignore[no-untyped-def]
    def array_bytes(member: str) -> int:
        layout = layouts.image if member == "image" else layouts.spectrum
        assert layout is not None
        return math.prod(layout.shape) * np.dtype(layout.dtype).itemsize + _NPY_HEADER

    return array_bytes


def _stored(size: int) -> int:
    return _TAR_BLOCK * (1 + math.ceil(size / _TAR_BLOCK))
