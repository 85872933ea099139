"""Workers as actors of Ray Train, in a cluster that is there (RAY_ADDRESS) or one started on this machine."""

from __future__ import annotations

import logging
import os
import tempfile
from typing import Any

from astroclip_dist.config import RunConfig
from astroclip_dist.errors import UserError
from astroclip_dist.store import normalize_url
from astroclip_dist.train.preemption import Notice

log = logging.getLogger(__name__)


class RayLauncher:
    """Ray Train starts the workers, sets up their process group, and restarts them when one fails."""

    def run(self, config: RunConfig) -> int:
        """Train to the end.

        Returns:
            The exit code of the command: 0 or 1.

        Raises:
            UserError: of a worker; a restart would not mend it.
        """
        for name, value in {
            "RAY_USAGE_STATS_ENABLED": "0",
            # How often the controller looks at its workers; the default of 2 s adds to every restart.
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        }.items():
            os.environ.setdefault(name, value)
        import ray
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

        from launchers.ray_callbacks import StopOnUserError

        use_gpu = config.device != "cpu" and _has_gpu(config.device)
        started_here = not ray.is_initialized()
        if started_here:
            ray.init(
                address=os.environ.get("RAY_ADDRESS"),
                log_to_driver=True,
                logging_level=logging.WARNING,
                **({} if os.environ.get("RAY_ADDRESS") else _local_cluster(config.workers)),
            )
        threads = max(1, (os.cpu_count() or 1) // config.workers)
        try:
            with tempfile.TemporaryDirectory(prefix="astroclip-ray-") as scratch:
                trainer = TorchTrainer(
                    _train_on_worker,
                    train_loop_config={"config": config.model_dump_json(), "threads": threads},
                    torch_config=TorchConfig(
                        backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
                        timeout_s=int(config.health.collective_timeout),
                    ),
                    scaling_config=ray.train.ScalingConfig(num_workers=config.workers, use_gpu=use_gpu),
                    run_config=ray.train.RunConfig(
                        name=normalize_url(config.run).rsplit("/", 1)[-1],
                        # Our checkpoints go to the run folder; Ray keeps only its own bookkeeping here.
                        storage_path=scratch,
                        failure_config=ray.train.FailureConfig(max_failures=config.health.max_restarts),
                        # Ray annotates this with the callbacks of its older trainer.
                        callbacks=[StopOnUserError()],  # type: ignore[list-item]
                    ),
                )
                trainer.fit()
        except TrainingFailedError as error:
            if isinstance(error, ControllerError) and isinstance(error.controller_failure, UserError):
                raise error.controller_failure from error
            log.error("training failed: %s", error)
            return 1
        finally:
            if started_here:
                ray.shutdown()
        return 0


def _train_on_worker(settings: dict[str, Any]) -> None:
    import torch

    from launchers.worker import work

    torch.set_num_threads(settings["threads"])
    work(RunConfig.model_validate_json(settings["config"]), Notice())


def _has_gpu(device: str) -> bool:
    import torch

    return device == "cuda" or torch.cuda.is_available()


def _local_cluster(workers: int) -> dict[str, Any]:
    """A Ray of this machine alone, on loopback. Its dashboard is the service that Ray Train asks who is alive."""
    return {
        "num_cpus": max(workers + 1, os.cpu_count() or 1),
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "_node_ip_address": "127.0.0.1",
    }
