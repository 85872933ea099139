"""The whole plan of a run: memory, length, time, storage, failures, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass

from astroclip_dist.config import RunConfig
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.plan.assumptions import Assumption, Assumptions
from astroclip_dist.plan.device import Device, device_of
from astroclip_dist.plan.failures import Duration, duration_of
from astroclip_dist.plan.lengths import DataSize, check_room, data_size, layouts_of, open_data, run_steps
from astroclip_dist.plan.memory import Need, needs_by_engine
from astroclip_dist.plan.rates import StepTime, nodes_of, step_time
from astroclip_dist.plan.storage import Reads, Saves, members_of, reads_of, saves_of
from astroclip_dist.plan.verdict import Search, fits


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it starts.

    Attributes:
        needs: memory of a GPU under the configured engine, then under the others.
        duration: None where the rate of the device is not known.
        proposals: with which it would fit; empty where it does.
        assumptions: all that was taken as given.
    """

    config: RunConfig
    device: Device
    nodes: int
    needs: list[Need]
    steps: RunSteps
    size: DataSize
    step: StepTime
    saves: Saves
    reads: Reads
    duration: Duration | None
    fits: bool
    proposals: list[Need]
    assumptions: tuple[Assumption, ...]


def plan_of(config: RunConfig, gpu: str | None, assumptions: Assumptions) -> Plan:
    """Plan a run. Takes the time of a few dry runs, and more if it does not fit.

    Args:
        gpu: its name; None: an H100, if its numbers are not given.

    Raises:
        ConfigError, DataError: as the training itself would raise them before its first step; an option that is wrong.
        StorageError: the dataset's manifest can be read, and an index cannot.
    """
    device = device_of(config, gpu, assumptions)
    dataset = open_data(config)
    layouts = layouts_of(dataset)
    members = members_of(config, layouts)
    size = data_size(config, dataset, members, layouts, assumptions)
    steps = run_steps(config, dataset, size)
    if dataset is not None:
        check_room(config, dataset, members)
    nodes = nodes_of(config, assumptions)
    reads = reads_of(config, steps, size, nodes)
    needs = needs_by_engine(config, layouts)
    step = step_time(config, device, layouts, needs[0].found.parameters, size, reads.share, assumptions)
    saves = saves_of(config, layouts, steps, step.seconds)
    duration = None
    if step.seconds is not None:
        duration = duration_of(config, steps, step.seconds, saves, nodes, assumptions)
    it_fits = fits(needs[0], device.memory)
    found = [] if it_fits else Search(needs, layouts, device.memory).proposals()
    listed = tuple(assumptions.listed)
    return Plan(config, device, nodes, needs, steps, size, step, saves, reads, duration, it_fits, found, listed)
