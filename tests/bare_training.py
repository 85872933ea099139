"""One rank of a small training: order, stream, objective and engine, without launcher, loop and tracking."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from astroclip_dist.config import RunConfig, parse_config
from astroclip_dist.config.schedule import RunSteps
from astroclip_dist.data.ordering.mixture import order_of
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.stream import Batch, Stream
from astroclip_dist.objectives import Objective, build_objective
from astroclip_dist.parallel.engines import Engine, StepRates, build_engine
from astroclip_dist.parallel.process_group import Ranks
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import Progress, restore, save


class BareTraining:
    """The ranks of the current process group train a configuration on the CPU, at a constant rate.

    Attributes:
        terms: that the objective gave at the last step.
    """

    def __init__(self, text: str) -> None:
        """``text``: a run's configuration without ``workers``."""
        world_size, rank = dist.get_world_size(), dist.get_rank()
        self.config: RunConfig = parse_config(f"{text}\nworkers: {world_size}\n", "test")
        self.ranks = Ranks(rank, world_size, rank, torch.device("cpu"), made_group=False)
        self.dataset = Dataset.open(self.config.data_urls, ["train"])
        batch = self.config.batch
        self.order = order_of(
            self.dataset,
            seed=self.config.seed,
            lanes=batch.lanes,
            global_batch=batch.global_size,
            window_shards=batch.window_shards,
        )
        length = self.config.length.steps(batch.global_size, self.order.steps_per_epoch)
        steps = RunSteps(length, self.order.steps_per_epoch, batch.global_size)
        self.objective: Objective = build_objective(self.config, self.dataset, steps, self.ranks.device)
        self.engine: Engine = build_engine(self.config, self.ranks, self.objective.build())
        self.engine.train()
        self.terms: dict[str, torch.Tensor | float] = {}

    def batches(self, first: int, last: int) -> list[Batch]:
        """This rank's batches of some steps."""
        cursor = Cursor()
        for _ in range(first):
            cursor = self.order.next(cursor)
        with Stream(
            self.dataset,
            self.order,
            self.objective.members,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            cursor=cursor,
            steps=last - first,
        ) as stream:
            return [next(stream) for _ in range(first, last)]

    def train(self, first: int, last: int) -> list[tuple[float, float]]:
        """Loss of the global batch and gradient norm of some steps."""
        return [self.step(batch, number) for number, batch in enumerate(self.batches(first, last), start=first)]

    def step(self, batch: Batch, number: int) -> tuple[float, float]:
        """As the loop takes it: a loss or norm that is not finite changes nothing."""
        self.terms = self.objective.accumulate(self.engine, self.objective.prepare(batch), number)
        loss = torch.as_tensor(self.terms["loss"]).clone()
        dist.all_reduce(loss, dist.ReduceOp.AVG)
        if not torch.isfinite(loss):
            self.engine.discard()
            self.objective.discard()
            return loss.item(), math.nan
        rates = StepRates(self.config.optimizer.lr, self.config.optimizer.weight_decay, self.objective.frozen(number))
        norm = self.engine.step(rates).item()
        if math.isfinite(norm):
            self.objective.after_step(self.engine, number)
        else:
            self.objective.discard()
        return loss.item(), norm

    def save(self, run: str, step: int) -> None:
        save(Store(run), self.engine, Progress(step), keep_last=1, beside=self.objective.state())

    def restore(self, run: str) -> int:
        """The step of the checkpoint that was loaded."""
        progress = restore(Store(run), self.engine, self.objective.state())
        assert progress is not None
        return progress.step
