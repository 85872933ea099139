"""Memory of one GPU under each engine, by dry runs: the plan has no model of memory of its own."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from astroclip_dist.config import RunConfig, dump_config
from astroclip_dist.config.engine import DeepSpeedEngine
from astroclip_dist.config.load import merge, parse_override, parse_yaml
from astroclip_dist.config.objective import ClipAlignment
from astroclip_dist.config.strict import validated
from astroclip_dist.machine_limits import usable_cores
from astroclip_dist.train.dry_run.allocations import ACTIVATIONS
from astroclip_dist.train.dry_run.forecast import Forecast, Layouts, forecast
from astroclip_dist.train.dry_run.zero import zero_states

# Micro-batches of a step that are traced when there are more: what they hold is a line in their number.
_FEW, _MORE = 2, 4


@dataclass(frozen=True)
class Need:
    """What one GPU of a run holds.

    Attributes:
        overrides: ``key=value`` that make this run of the one that is planned; none: it is that.
    """

    config: RunConfig
    overrides: tuple[str, ...]
    found: Forecast

    @property
    def total(self) -> int:
        return self.found.total

    @property
    def activations(self) -> int:
        return self.found.kinds.get(ACTIVATIONS, 0)


def changed(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A configuration under ``key=value``, as the command line has it.

    Raises:
        ConfigError: together they are none.
    """
    values = parse_yaml(dump_config(config), "configuration")
    for override in overrides:
        values = merge(values, parse_override(override))
    return validated(RunConfig, values)


def engine_name(config: RunConfig) -> str:
    engine = config.engine
    return f"deepspeed, ZeRO {engine.zero_stage}" if isinstance(engine, DeepSpeedEngine) else engine.name


def other_engines(config: RunConfig) -> list[str]:
    """Overrides with each engine but the configured one; precision and recomputation stay."""
    engine = config.engine
    shared = f"precision: {engine.precision}, recompute: {engine.recompute}"
    names = ["name: ddp", "name: fsdp", *(f"name: deepspeed, zero_stage: {stage}" for stage in (1, 2, 3))]
    own = f"name: {engine.name}" + (f", zero_stage: {engine.zero_stage}" if engine.name == "deepspeed" else "")
    return [f"engine={{{name}, {shared}}}" for name in names if name != own]


def needs_by_engine(config: RunConfig, layouts: Layouts) -> list[Need]:
    """What a GPU holds under the configured engine, and under every other one: that first.

    A dry run is one thread of Python: where there are two processors, the others run in a process beside this one.

    Raises:
        ConfigError, DataError: as the training itself would raise them before its first step.
    """
    own_zero = isinstance(config.engine, DeepSpeedEngine)
    overrides = other_engines(config)
    zero = [override for override in overrides if "deepspeed" in override]
    # One dry run serves all stages of ZeRO: they hold other states, and the same activations.
    traced = [override for override in overrides if override not in zero] + ([] if own_zero else zero[:1])
    configs = [changed(config, [override]) for override in traced]
    if usable_cores() >= 2:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
            others = beside.submit(_forecasts, configs, layouts)
            own = memory_of(config, layouts)
            found = others.result()
    else:
        own, found = memory_of(config, layouts), _forecasts(configs, layouts)
    needs = [Need(config, (), own)]
    needs += [Need(c, (o,), f) for c, o, f in zip(configs, traced, found, strict=True)]
    (traced_zero,) = [need for need in needs if isinstance(need.config.engine, DeepSpeedEngine)]
    done = {override for need in needs for override in need.overrides}
    needs += [_at_stage(traced_zero.found, changed(config, [o]), o) for o in zero if o not in done]
    return [needs[0], *sorted(needs[1:], key=lambda need: overrides.index(need.overrides[0]))]


def need_of(config: RunConfig, overrides: tuple[str, ...], layouts: Layouts) -> Need:
    """What a GPU holds of a run that was changed.

    Raises:
        ConfigError: together they are none.
    """
    run = changed(config, overrides)
    return Need(run, overrides, memory_of(run, layouts))


def memory_of(config: RunConfig, layouts: Layouts) -> Forecast:
    """A dry run; of an alignment in many micro-batches, the line through two with fewer, which differ by inputs and
    embeddings alone."""
    with warnings.catch_warnings():
        # Torch's, of models that it traces for nobody.
        warnings.simplefilter("ignore", UserWarning)
        shorter = _shorter(config)
        if shorter is None:
            return forecast(config, layouts)
        few, more = (forecast(run, layouts) for run in shorter)
    further = (config.local_batch // config.micro_batch - _FEW) / (_MORE - _FEW)
    kinds = {
        kind: round(few.kinds.get(kind, 0) + further * (more.kinds.get(kind, 0) - few.kinds.get(kind, 0)))
        for kind in {**few.kinds, **more.kinds}
    }
    ordered = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    note = f"{config.local_batch // config.micro_batch} micro-batches by the line through {_FEW} and {_MORE}"
    return Forecast(ordered, few.parameters, (*few.notes, note))


def _shorter(config: RunConfig) -> list[RunConfig] | None:
    """The same alignment with few micro-batches a step, and with some more; None where it has few anyway.

    The other objectives hold more than inputs for all of a rank's samples, which may become the peak.
    """
    if not isinstance(config.objective, ClipAlignment) or config.local_batch // config.micro_batch <= _FEW + _MORE:
        return None
    # A lane for each rank, for any number of samples.
    fixed = [f"batch.micro_size={config.micro_batch}", f"batch.lanes={config.workers}"]
    sizes = [number * config.micro_batch * config.workers for number in (_FEW, _MORE)]
    return [changed(config, [*fixed, f"batch.global_size={size}"]) for size in sizes]


def _forecasts(configs: list[RunConfig], layouts: Layouts) -> list[Forecast]:
    return [memory_of(config, layouts) for config in configs]


def _at_stage(traced: Forecast, config: RunConfig, override: str) -> Need:
    """What another stage of ZeRO holds, from the dry run of one."""
    assert isinstance(config.engine, DeepSpeedEngine)
    stages: set[str] = set()
    for stage in (1, 2, 3):
        engine = config.engine.model_copy(update={"zero_stage": stage})
        stages |= zero_states(engine, config.workers, *traced.parameters).keys()
    kinds = {kind: size for kind, size in traced.kinds.items() if kind not in stages}
    kinds |= zero_states(config.engine, config.workers, *traced.parameters)
    ordered = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    return Need(config, (override,), Forecast(ordered, traced.parameters, traced.notes))
