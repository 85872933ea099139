"""The whole configuration of a run."""

from __future__ import annotations

import math
import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from astroclip_dist.config.engine import DdpEngine, Engine
from astroclip_dist.config.objective import ClipAlignment, Objective
from astroclip_dist.config.strict import Section
from astroclip_dist.config.units import Bytes, Length, PositiveLength, Seconds, TrainingLength
from astroclip_dist.config.url import Url
from astroclip_dist.errors import ConfigError


def _one_or_more(data: Any) -> Any:
    return (data,) if isinstance(data, str | dict) else data


def _tracking_uri(uri: str) -> str:
    # A user without a password may be a token.
    if "@" in urlsplit(uri).netloc:
        raise ValueError(
            "give the login in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN: "
            "the configuration is stored and logged"
        )
    scheme, separator, path = uri.partition(":///")
    return f"sqlite:///{Path(path).resolve()}" if separator and scheme == "sqlite" else uri


class WeightedDataset(Section):
    """One dataset of a mixture: how many samples of a batch come from it, relative to the others."""

    url: Url
    weight: float = Field(gt=0)


Data = Annotated[tuple[Url | WeightedDataset, ...], BeforeValidator(_one_or_more)]


class Batch(Section):
    """How the order is cut into steps. None of these depends on the world size."""

    global_size: int = Field(gt=0, description="samples of one optimizer step over all ranks")
    micro_size: int | None = Field(
        default=None, gt=0, description="samples of one rank in one pass; all it has if unset"
    )
    lanes: int = Field(default=8, gt=0, description="the largest world size that the run may ever have")
    window_shards: int = Field(default=2, gt=0, description="whole shards among which a lane's samples are shuffled")


class Cache(Section):
    """A folder on a local disk where shards from object storage are kept; processes of one machine share it."""

    folder: Annotated[str, AfterValidator(lambda path: str(Path(path).expanduser().resolve()))]
    limit: Bytes = Field(gt=0, description="of the whole folder; the shards used longest ago are removed")


class Reading(Section):
    """What a rank spends on reading ahead. It changes speed and memory, never the samples."""

    threads: int = Field(default=2, gt=0)
    batches_ahead: int = Field(default=2, gt=0)
    memory: Bytes = Field(default=8_000_000_000, gt=0, description="of one rank, for batches and fetched windows")
    requests: int = Field(default=8, gt=0, description="ranged reads in flight at once")
    cache: Cache | None = None


class Optimizer(Section):
    """AdamW; the rate warms up linearly and decays as a cosine, and so does the weight decay, if it changes."""

    lr: float = Field(gt=0)
    final_lr: float = Field(default=0.0, ge=0)
    warmup: Length = TrainingLength(0, "steps")
    decay_over: Length | None = Field(
        default=None, description="steps at which the cosines end; the run's length if unset"
    )
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.05, ge=0)
    final_weight_decay: float | None = Field(default=None, ge=0, description="reached as a cosine; constant if unset")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="each block's rate over that of the block after it (Clark et al. 2020)"
    )
    embedding_lr: float = Field(default=1.0, gt=0, description="further factor on the rate of the input embedding")
    clip_norm: float | None = Field(default=1.0, gt=0)


class Checkpoint(Section):
    """When the state is saved and which saves are kept. One at the end and one at a preemption come in addition."""

    every: PositiveLength = TrainingLength(1000, "steps")
    interval: Seconds | None = Field(default=None, gt=0, description="saved, too, when this long was not")
    background: bool = Field(default=True, description="train on while a save is written; else wait for it")
    keep_last: int = Field(default=3, gt=0)
    keep_every: Length | None = Field(default=None, description="of these steps a save is kept for ever")
    keep_best: int = Field(default=0, ge=0, description="saves with the lowest mean loss since the save before")


class Tracking(Section):
    """Where metrics go. ``uri`` unset: MLflow's own environment variable, else ``mlflow.db`` beside the run folder."""

    uri: Annotated[str, AfterValidator(_tracking_uri)] | None = None
    experiment: str = "astroclip"
    log_every: int = Field(default=10, gt=0, description="steps")


def _ip_address(text: str) -> str:
    return str(ip_address(text))


class Metrics(Section):
    """Where Prometheus finds the numbers of a run. Under Ray they go out with Ray's own, whatever is said here."""

    port: int | None = Field(
        default=None, ge=0, le=65535, description="of the first rank's /metrics, off if unset; 0: any free one"
    )
    address: Annotated[str, AfterValidator(_ip_address)] = Field(
        default="127.0.0.1", description="of the interface to listen on; 0.0.0.0: all"
    )
    targets_folder: Annotated[str, AfterValidator(lambda path: str(Path(path).expanduser().resolve()))] | None = Field(
        default=None, description="where Prometheus looks for endpoints (file_sd_configs); this run's is a file in it"
    )

    @model_validator(mode="after")
    def _something_to_announce(self) -> Self:
        if self.targets_folder is not None and self.port is None:
            raise ConfigError("targets_folder", self.targets_folder, "Give metrics.port, too; 0 is any free one.")
        return self


class Health(Section):
    """When to give up."""

    quarantine_budget: float = Field(
        default=0.001, ge=0, le=1, description="share of the training split that may turn out to be unreadable"
    )
    skipped_steps_budget: int = Field(default=10, ge=0, description="steps with a loss or gradient that is not finite")
    loss_spike: float | None = Field(
        default=None, gt=0, description="skip a step whose loss is this many standard deviations above the last 50's"
    )
    startup_timeout: Seconds = Field(default=1800.0, gt=0, description="of collectives until the first step is done")
    collective_timeout: Seconds = Field(default=600.0, gt=0, description="of collectives afterwards")
    hang_deadline: Seconds = Field(
        default=300.0, gt=0, description="of one phase of a step (data, backward, save, ...)"
    )
    preemption_deadline: Seconds = Field(default=60.0, gt=0, description="to save when asked to leave")
    max_restarts: int = Field(default=3, ge=0, description="restarts by the launcher after a failed worker")


class RunConfig(Section):
    """One training, from the first step to the last checkpoint, across any number of restarts."""

    data: Data = Field(min_length=1, description="dataset URL or URLs, or a list of {url, weight}")
    run: Url = Field(description="run folder URL")
    launcher: Literal["local", "ray"] = "local"
    workers: int = Field(default=1, gt=0, description="world size: processes, one a GPU")
    min_workers: int | None = Field(
        default=None, gt=0, description="go on with as few, where workers are lost, and with more when they are back"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**32)
    length: PositiveLength
    objective: Objective = ClipAlignment()
    engine: Engine = DdpEngine()
    batch: Batch
    reading: Reading = Reading()
    optimizer: Optimizer
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()
    metrics: Metrics = Metrics()
    health: Health = Health()

    @model_validator(mode="after")
    def _all_or_no_weights(self) -> Self:
        if len({isinstance(dataset, str) for dataset in self.data}) > 1:
            raise ConfigError("data", list(self.data_urls), "Give a weight with every dataset, or with none.")
        return self

    @model_validator(mode="after")
    def _batch_fits_ranks(self) -> Self:
        batch, workers = self.batch, self.workers
        if batch.lanes % workers:
            raise ConfigError(
                "workers", workers, f"It must divide batch.lanes = {batch.lanes}: each rank owns equally many lanes."
            )
        if batch.global_size % batch.lanes:
            raise ConfigError(
                "batch.global_size", batch.global_size, f"It must be a multiple of batch.lanes = {batch.lanes}."
            )
        local = batch.global_size // workers
        if batch.micro_size is not None and local % batch.micro_size:
            raise ConfigError(
                "batch.micro_size",
                batch.micro_size,
                f"It must divide the {local} samples of a rank (batch.global_size / workers).",
            )
        if self.min_workers is not None and self.min_workers > workers:
            raise ConfigError("min_workers", self.min_workers, f"It is more than workers = {workers}.")
        return self

    @property
    def world_sizes(self) -> tuple[int, ...]:
        """With how many workers the run may go on, smallest first: those that divide the lanes."""
        sizes = range(self.min_workers or self.workers, self.workers + 1)
        return tuple(size for size in sizes if self.batch.lanes % size == 0)

    def at(self, world_size: int) -> RunConfig:
        """The same training by fewer workers: the same global batches, in more micro-batches that are no larger.

        Raises:
            ConfigError: this many workers are not among ``world_sizes``.
        """
        if world_size == self.workers:
            return self
        if world_size not in self.world_sizes:
            raise ConfigError("workers", world_size, f"The run may have {', '.join(map(str, self.world_sizes))}.")
        micro_size = math.gcd(self.batch.global_size // world_size, self.micro_batch)
        batch = self.batch.model_copy(update={"micro_size": micro_size})
        return self.model_copy(update={"workers": world_size, "batch": batch})

    @property
    def data_urls(self) -> tuple[str, ...]:
        return tuple(dataset if isinstance(dataset, str) else dataset.url for dataset in self.data)

    @property
    def data_weights(self) -> tuple[float, ...] | None:
        """The weights of a mixture, None when all samples count alike."""
        weights = tuple(dataset.weight for dataset in self.data if isinstance(dataset, WeightedDataset))
        return weights or None

    @property
    def local_batch(self) -> int:
        """Samples of one rank in one step."""
        return self.batch.global_size // self.workers

    @property
    def micro_batch(self) -> int:
        """Samples that one rank puts through the model at once."""
        return self.batch.micro_size or self.local_batch

    def tracking_uri(self) -> str:
        """``tracking.uri``; else MLflow's own environment variable; else a SQLite file beside a local run folder.

        Raises:
            ConfigError: none of them, for a run on object storage.
        """
        if uri := self.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):
            return uri
        folder = urlsplit(self.run)
        if folder.scheme != "file":
            raise ConfigError(
                "tracking.uri",
                "missing",
                f"MLflow cannot keep its file at {self.run}: give a server, or sqlite:////PATH.",
            )
        return f"sqlite:///{Path(unquote(folder.path)).parent}/mlflow.db"
