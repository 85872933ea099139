"""What one rank of a run will hold in memory at the peak of a step, found without that memory and without the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astroclip_dist.config import RunConfig
from astroclip_dist.config.engine import DeepSpeedEngine
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import UserError
from astroclip_dist.objectives import Objective, Setting, objective_of
from astroclip_dist.parallel.engines import Engine, StepRates, build_engine
from astroclip_dist.parallel.process_group import Ranks
from astroclip_dist.train.dry_run.allocations import AllocationLog
from astroclip_dist.train.dry_run.fake_ranks import as_on_cuda, fake_ranks
from astroclip_dist.train.dry_run.inputs import batch_like, mapped
from astroclip_dist.train.dry_run.zero import UnshardedEngine, dtype_of, zero_states

PARAMETERS, TEACHER, BUFFERS = "parameters", "EMA teacher", "buffers"
GRADIENTS, OPTIMIZER = "gradients", "optimizer state"
# Enough for all that is made at a first step to be there before the last one.
_STEPS = 2


@dataclass(frozen=True)
class Layouts:
    """What samples look like, and where that was read."""

    image: ImageLayout | None
    spectrum: SpectrumLayout | None
    has_ivar: bool
    source: str


@dataclass(frozen=True)
class Forecast:
    """Memory of one rank.

    Attributes:
        kinds: bytes of each kind at the peak, the largest first.
        parameters: numbers that the whole model trains, and that it holds without training them.
        notes: what was assumed.
    """

    kinds: dict[str, int]
    parameters: tuple[int, int]
    notes: tuple[str, ...]

    @property
    def total(self) -> int:
        return sum(self.kinds.values())


def layouts_of(config: RunConfig) -> Layouts:
    """Those of the run's data; of a survey by the standard layouts where these cannot be opened."""
    try:
        dataset = Dataset.open(config.data_urls, ["train"], config.data_weights)
    except UserError:
        return Layouts(ImageLayout(), SpectrumLayout(), True, "standard layouts, since `data` cannot be opened")
    has_ivar = all(manifest.ivar for manifest in dataset.manifests)
    return Layouts(dataset.image, dataset.spectrum, has_ivar, "layouts of `data`")


def forecast(config: RunConfig, layouts: Layouts) -> Forecast:
    """Run two steps of the first of ``config.workers`` ranks on tensors without memory, and see what the last holds.

    Only the inputs of one rank are real while they are made. This process must not be in a process group.

    Raises:
        ConfigError, DataError: as the training itself would raise them before its first step.
    """
    on_cuda = config.device != "cpu"
    engine = config.engine.model_copy(update={"compile": False})
    config = config.model_copy(update={"engine": engine})
    # The schedules change no sizes.
    steps = RunSteps(_STEPS, _STEPS, config.batch.global_size)
    setting = Setting(config, layouts.image, layouts.spectrum, layouts.has_ivar, steps, torch.device("cpu"))
    outside = objective_of(setting)
    batch = batch_like(layouts.image, layouts.spectrum, outside.members, config.local_batch)
    real_inputs = outside.prepare(batch)
    module = outside.build()
    if isinstance(config.engine, DeepSpeedEngine):
        module.to(dtype_of(config.engine))
    with fake_ranks(config.workers) as ranks, AllocationLog() as log, as_on_cuda() if on_cuda else nullcontext():
        objective = objective_of(setting)
        laid_out = _engine(config, ranks, module)
        laid_out.train()
        log.name(module.parameters(), PARAMETERS)
        log.name(_teacher(module), TEACHER)
        log.name([*module.buffers(), *objective.state().values()], BUFFERS)
        log.name([t for name, t in laid_out.state().items() if name.startswith("optimizer.")], OPTIMIZER)
        inputs = mapped(real_inputs, log.without_memory)
        for step in range(_STEPS):
            before = log.now
            _step(objective, laid_out, inputs, step, log)
        kinds = log.peak(since=before)
        sizes = [(p.requires_grad, p.numel()) for p in module.parameters()]
    trained, kept = (sum(size for grad, size in sizes if grad is wanted) for wanted in (True, False))
    notes = [f"inputs by the {layouts.source}"]
    if isinstance(config.engine, DeepSpeedEngine):
        states = zero_states(config.engine, config.workers, trained, kept)
        kinds = {k: v for k, v in kinds.items() if k not in (PARAMETERS, TEACHER, GRADIENTS, OPTIMIZER)} | states
        notes.append("DeepSpeed does not run without memory: its states are computed by ZeRO's formulas")
    if on_cuda:
        notes.append("operations and precision as on CUDA")
    ordered = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    return Forecast(ordered, (trained, kept), tuple(notes))


def _engine(config: RunConfig, ranks: Ranks, module: nn.Module) -> Engine:
    if isinstance(config.engine, DeepSpeedEngine):
        return UnshardedEngine(config.engine, ranks, module)
    return build_engine(config, ranks, module, lambda name, shape: torch.zeros(tuple(shape)))


def _step(objective: Objective, engine: Engine, inputs: Any, step: int, log: AllocationLog) -> None:
    objective.accumulate(engine, inputs, step)
    log.name([p.grad for p in engine.module.parameters() if p.grad is not None], GRADIENTS)
    engine.step(StepRates(1e-4, 0.0))
    objective.after_step(engine, step)


def _teacher(module: nn.Module) -> Iterator[Tensor]:
    """Parameters of what starts as a copy of another part of the model."""
    for part in module.modules():
        for name in getattr(part, "starts_as", {}):
            yield from part.get_submodule(name).parameters()
