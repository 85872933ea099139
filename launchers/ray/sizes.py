"""How many workers a run has under Ray Train, and when they are asked to leave.

Built on parts of Ray Train that it does not promise to keep: written for and tried with Ray 2.60.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    TrainAutoscalingCoordinatorClient,
)
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from astroclip_dist.errors import ConfigError
from launchers.ray.request import LeaveRequest
from launchers.ray.worker import ask_to_leave

_OVERRIDDEN = {
    ElasticScalingPolicy: (
        "after_controller_start",
        "_send_resource_request",
        "_count_possible_workers",
        "make_decision_for_non_running_worker_group",
        "make_decision_for_running_worker_group",
    ),
    TorchTrainer: ("_create_default_callbacks", "_initialize_and_run_controller", "_register_sigint_handler"),
}
_DRAIN_POLL_S = 2.0
_ROOM_POLL_S = 0.5
_CONNECT_S = 2.0
log = logging.getLogger(__name__)


class LeavingError(Exception):
    """The run is asked to leave while it has no workers: there is nothing to save."""


class RunSizes(ElasticScalingPolicy):
    """Starts a run's workers in a number that the run may have, and asks them to leave, which saves the state.

    Ray's own policy takes any number between two, and kills workers to change it. This one rounds down to a fitting
    number, counts only nodes that live and are not being drained, and asks the workers to leave when they could be
    more, when a node of theirs is drained, or when the command that started the run was told to end. It is part of
    Ray's controller, which polls it.

    Args:
        world_sizes: the numbers of workers that the run may have, smallest first.
        request: of the command that started the run.
        run_url: of the run, which one command holds at a time.
    """

    def __init__(
        self, scaling_config: ScalingConfig, world_sizes: Iterable[int], request: LeaveRequest, run_url: str
    ) -> None:
        super().__init__(scaling_config)
        self._world_sizes, self._request, self._run_url = tuple(world_sizes), request, run_url
        self._drains_polled_at = float("-inf")
        self._asked: WorkerGroupState | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        # Ray reserves room by a name, and keeps it for three minutes after a death. By the name of the run, the next
        # start has it at once; Ray's own name is another one at each start.
        self._requester_id = f"train-{self._run_url}"
        self._coordinator_client = TrainAutoscalingCoordinatorClient(self._requester_id)
        self._send_resource_request()

    def _count_possible_workers(self, reserved_resources: dict[str, Any]) -> int:
        # What is reserved for the run is up to 20 s old: a node may have died since.
        reserved = [node for node in ray.nodes() if node["NodeID"] in reserved_resources]
        draining = _draining_nodes()
        usable = [node["NodeID"] for node in reserved if node["NodeID"] not in draining and _answers(node)]
        possible = super()._count_possible_workers({node: reserved_resources[node] for node in usable})
        return max((size for size in self._world_sizes if size <= possible), default=0)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        if reason := self._request.reason():
            raise LeavingError(reason)
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            # Ray's controller asks again at once, all the time that the run waits for room.
            time.sleep(_ROOM_POLL_S)
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if worker_group_state is self._asked:
            return NoopDecision()
        if reason := self._reason_to_leave(worker_group_state, decision):
            log.warning("asking the workers to leave: %s", reason)
            for worker in worker_group_state.workers:
                worker.execute_async(ask_to_leave, reason)
            self._asked = worker_group_state
        return NoopDecision()

    def _reason_to_leave(self, group: WorkerGroupState, decision: ScalingDecision) -> str | None:
        if reason := self._request.reason():
            return reason
        # Fewer are never asked for: workers that have no room any more are lost, or drained.
        if isinstance(decision, ResizeDecision) and decision.num_workers > group.num_workers:
            return f"room for {decision.num_workers} workers instead of {group.num_workers}"
        now = time.monotonic()
        if now - self._drains_polled_at < _DRAIN_POLL_S:
            return None
        self._drains_polled_at = now
        draining = _draining_nodes()
        ranks_by_node: dict[str, list[str]] = {}
        for rank, worker in enumerate(group.workers):
            if worker.metadata.node_id in draining:
                ranks_by_node.setdefault(worker.metadata.node_ip, []).append(str(rank))
        drains = [f"node {node} (rank {', '.join(ranks)}) is drained" for node, ranks in ranks_by_node.items()]
        return "; ".join(drains) or None


class RunTrainer(TorchTrainer):
    """Ray's trainer with another scaling policy than those that it has.

    Args:
        sizes: the policy.
        own_cluster: Ray ends with the run. Nobody then has to clean up after a controller that dies, which takes a
            process, and another service of Ray's to tell whether it is dead.

    Raises:
        ConfigError: this version of Ray is built differently.
    """

    def __init__(self, *args: Any, sizes: RunSizes, own_cluster: bool, **settings: Any) -> None:
        missing = [name for owner, names in _OVERRIDDEN.items() for name in names if not hasattr(owner, name)]
        if missing:
            raise _other_ray(f"without {', '.join(missing)}")
        super().__init__(*args, **settings)
        self._sizes, self._own_cluster = sizes, own_cluster

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        if self._own_cluster:
            return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
        return callbacks

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if "scaling_policy" not in parts:
            raise _other_ray("whose controller takes no scaling policy")
        return super()._initialize_and_run_controller(**{**parts, "scaling_policy": self._sizes})

    def _register_sigint_handler(self, controller: Any) -> None:
        """The launcher takes Ctrl-C itself; Ray would kill the workers, and end with 0 as if the run were done."""


def _other_ray(how: str) -> ConfigError:
    return ConfigError("launcher", f"Ray {ray.__version__}, {how}", "Install Ray 2.60, for which this launcher is.")


def _answers(node: dict[str, Any]) -> bool:
    """Whether a node lives; asked of the node itself, for Ray may take a minute to see that it does not."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _CONNECT_S).close()
    except OSError:
        return False
    return bool(node["Alive"])


def _draining_nodes() -> dict[str, int]:
    """Node id to deadline (ms since 1970, 0 for none)."""
    return ray._private.state.state.get_draining_nodes()
