"""Run by Kubernetes in a pod that is to go, before its processes are told to end: the training saves and leaves first.

``python -m launchers.kubernetes.leave SECONDS``, as preStop hook. In the pod with the entry point the command itself is
asked to leave, which ends the run with all its pods. In any other one its Ray node is drained, as clouds and Ray's own
autoscaler do: the workers save at their next step and go on elsewhere (``launchers.ray.sizes``). Either way the hook
waits until no worker is left here.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil

_ENTRY_POINT = "launchers.kubernetes.entrypoint"
# As Ray titles the process of a worker of Ray Train.
_WORKER = "RayTrainWorker"
_POLL_S = 0.5


def main(within_s: float) -> int:
    """Ask, and wait until it is done, at most as long as was promised.

    Returns:
        0 when nothing of the training is left in this pod, 1 otherwise.
    """
    deadline = time.monotonic() + within_s
    entry_points = [process for process in _of_this_pod() if _ENTRY_POINT in _command(process)]
    for process in entry_points:
        process.send_signal(signal.SIGTERM)
    if not entry_points:
        _drain(within_s)
    while time.monotonic() < deadline:
        if not any(_is_at_work(process) for process in _of_this_pod()):
            return 0
        time.sleep(_POLL_S)
    print("the training has not left in time: its newest checkpoint counts", file=sys.stderr)
    return 1


def _of_this_pod() -> list[psutil.Process]:
    """Processes that share this one's network, as all of a pod do; its containers may see more, or fewer."""
    here = Path("/proc/self/ns/net").readlink()
    found = []
    for process in psutil.process_iter():
        try:
            if Path(f"/proc/{process.pid}/ns/net").readlink() == here:
                found.append(process)
        except OSError:
            continue
    return found


def _is_at_work(process: psutil.Process) -> bool:
    command = _command(process)
    return _ENTRY_POINT in command or any(_WORKER in part for part in command)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _drain(within_s: float) -> None:
    """Tell Ray's coordinator that this node goes away; nothing, where there is no Ray node any more."""
    options = _options_of_raylet()
    if options is None:
        return
    # As `ray drain-node` does, which would first have to be told this node's id.
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2
    from ray.exceptions import RayError

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    try:
        gcs = GcsClient(address=options["gcs-address"])
        for node_id, node in gcs.get_all_node_info().items():
            if node.node_manager_address == options["node_ip_address"] and node.state == node.ALIVE:
                deadline_ms = int((time.time() + within_s) * 1000)
                gcs.drain_node(node_id.hex(), reason, f"pod {os.uname().nodename} is deleted", deadline_ms)
    except RayError as error:
        print(f"Ray's coordinator could not be told: {error}", file=sys.stderr)


def _options_of_raylet() -> dict[str, str] | None:
    for process in _of_this_pod():
        command = _command(process)
        if command and Path(command[0]).name == "raylet":
            return dict(part.lstrip("-").split("=", 1) for part in command[1:] if "=" in part)
    return None


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
