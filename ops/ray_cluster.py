"""A Ray cluster with token authentication: a head, and nodes that join it; each keeps log, state and files in a folder.

    python ops/ray_cluster.py start DIR [--host ADDRESS]         # the head; prints where it is, and its token's file
    python ops/ray_cluster.py token DIR                          # the file: copy it to the other machines, mode 0600
    python ops/ray_cluster.py join DIR --head HOST:6379 --token FILE [--host ADDRESS]
    python ops/ray_cluster.py stop DIR                           # this machine's node alone, never another Ray

Jobs are submitted with ``launcher: {name: ray, address: http://HOST:8265}`` and RAY_AUTH_TOKEN_PATH. Whatever the jobs
need from the environment (credentials, NCCL_SOCKET_IFNAME) must be there when a node is started.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from server_process import HOST, ServerError, ServerProcess, write_private

DASHBOARD_PORT, FIRST_PORT = 8265, 6379
# Ray gives its workers ports of this range, and a port in it that is somebody's makes a worker fail.
WORKER_PORTS = range(10002, 20000)
PORT_OPTIONS = (
    "--port",
    "--node-manager-port",
    "--object-manager-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--ray-client-server-port",
)
HEAD_ONLY = ("--port", "--ray-client-server-port")
# Ray puts Unix sockets below it, session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store: 107 characters at most.
TEMPORARY_CHARACTERS = 40
# Seconds. A training saves when it is told to end, which Ray's own 3 s may cut off; launchers.ray sets it for its jobs.
STOP_WAIT = 90
# Seconds. A job that waits for room is failed by Ray after a quarter of an hour otherwise.
START_TIMEOUT = 7 * 24 * 3600
# Bytes. Trainings send no data through Ray, which would take a third of the memory for that.
OBJECT_STORE = 200_000_000
# A part of Ray that is slow to come up (15 s, on a busy machine) ends the whole node.
TRIES = 3
NODE_VARIABLE = "ASTROCLIP_RAY_NODE"


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # Where another cluster is, and its token; Ray would take them for its own.
    for of_another in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        os.environ.pop(of_another, None)
    node = RayNode(options.folder)
    try:
        if options.command == "stop":
            print("stopped" if node.stop(options.grace) else "was not running")
        elif options.command == "token":
            print(token_file(node.folder))
        else:
            print(start_head(node, options) if options.command == "start" else join(node, options), flush=True)
            if options.foreground:
                node.wait()
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


class RayNode(ServerProcess):
    """The processes of Ray on one machine; all of them carry the folder in their environment."""

    def __init__(self, folder: Path) -> None:
        super().__init__("ray", folder)
        self._written = 0

    def start_again(self, *arguments: Any) -> None:
        """``start``, more than once where Ray ends while it comes up.

        Raises:
            ServerError: of the last try; at once where a node runs in the folder already.
        """
        if self.process():
            raise ServerError(f"Ray runs already in {self.folder}: stop it first")
        for left in reversed(range(TRIES)):
            self._written = self.log.stat().st_size if self.log.exists() else 0
            try:
                self.start(*arguments)
                return
            except ServerError:
                if not left:
                    raise

    def has_started(self) -> bool:
        """Whether ``ray start`` says that all of this node is up."""
        with self.log.open("rb") as log:
            log.seek(self._written)
            return b"Ray runtime started." in log.read()

    def stop(self, grace_s: float = 10.0) -> bool:
        """End every process that this node has started, jobs included. False: there was none."""
        family = self._family()
        if (main := self.process()) and grace_s > 0:
            main.terminate()
            psutil.wait_procs([main], timeout=grace_s)
            family |= self._family()
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=10)
        return bool(family)

    def _family(self) -> set[psutil.Process]:
        family = set()
        for process in psutil.process_iter():
            try:
                if process.environ().get(NODE_VARIABLE) == str(self.folder):
                    # Those that Ray gives a title have lost their environment: they are found below their parents.
                    family |= {process, *process.children(recursive=True)}
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return family


def token_file(folder: Path) -> Path:
    """The file with the cluster's token, made if it is not there."""
    path = folder / "token"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_private(path, secrets.token_hex(32))
    return path


def start_head(node: RayNode, options: argparse.Namespace) -> str:
    """Start the head; returns where it is, in words."""
    token = token_file(node.folder)
    api = f"http://{options.dashboard_host}:{options.dashboard_port}"
    dashboard = [f"--dashboard-host={options.dashboard_host}", f"--dashboard-port={options.dashboard_port}"]
    secret = token.read_text().strip()
    node.start_again(
        _command(node, options, ["--head", "--include-dashboard=true", *dashboard], PORT_OPTIONS),
        options.dashboard_port,
        # The dashboard answers before the node is up, which may yet fail.
        lambda: node.has_started() and _answers(api, secret),
        {"address": api, "join": f"{options.host}:{options.first_port}"},
        _environment(node, token),
    )
    return f"address: {api}\njoin: {options.host}:{options.first_port}\ntoken: {token}"


def join(node: RayNode, options: argparse.Namespace) -> str:
    """Start a node of a cluster that is there; returns its address."""
    if not options.token.is_file():
        raise ServerError(f"no token in {options.token}: copy the head's (ray_cluster.py token DIR says where it is)")
    ports = tuple(option for option in PORT_OPTIONS if option not in HEAD_ONLY)
    node.start_again(
        _command(node, options, [f"--address={options.head}"], ports),
        options.first_port + PORT_OPTIONS.index("--node-manager-port"),
        node.has_started,
        {"join": options.head},
        _environment(node, options.token.resolve()),
    )
    return f"{options.host} has joined {options.head}"


def _command(node: RayNode, options: argparse.Namespace, role: list[str], ports: tuple[str, ...]) -> list[str]:
    numbers = {option: options.first_port + PORT_OPTIONS.index(option) for option in ports}
    if taken := [number for number in numbers.values() if number in WORKER_PORTS]:
        raise ServerError(f"--first-port {options.first_port}: port {taken[0]} is for workers; go below or above them")
    temporary = (options.temp_dir or node.folder / "ray").resolve()
    if len(str(temporary)) > TEMPORARY_CHARACTERS:
        raise ServerError(
            f"{temporary}: Ray's sockets need a path of {TEMPORARY_CHARACTERS} characters: give --temp-dir"
        )
    # Also makes sure, before Ray starts, that the folder can be written.
    temporary.mkdir(parents=True, exist_ok=True)
    sizes = {"--num-cpus": options.cpus, "--num-gpus": options.gpus}
    return [
        *(_find_ray(), "start", "--block", "--disable-usage-stats", f"--node-ip-address={options.host}", *role),
        *(f"{option}={number}" for option, number in numbers.items()),
        *(f"--min-worker-port={WORKER_PORTS.start}", f"--max-worker-port={WORKER_PORTS.stop - 1}"),
        *(f"{option}={size}" for option, size in sizes.items() if size is not None),
        *(f"--temp-dir={temporary}", f"--object-store-memory={OBJECT_STORE}"),
    ]


def _environment(node: RayNode, token: Path) -> dict[str, str]:
    return {
        NODE_VARIABLE: str(node.folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT),
        "RAY_JOB_START_TIMEOUT_SECONDS": str(START_TIMEOUT),
        # Jobs are commands of a shell: their python is the one that runs Ray.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def _answers(api: str, token: str) -> bool:
    request = urllib.request.Request(f"{api}/api/version", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _find_ray() -> str:
    beside = Path(sys.executable).with_name("ray")
    found = str(beside) if beside.exists() else shutil.which("ray")
    if found is None:
        raise ServerError("ray is not installed: pip install astroclip-dist")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    head = commands.add_parser("start", help="start the head, wait until it takes jobs")
    head.add_argument("folder", type=Path)
    head.add_argument(
        "--dashboard-host", default=HOST, help="of the jobs API; the private network's, or this machine's"
    )
    head.add_argument("--dashboard-port", type=int, default=DASHBOARD_PORT)
    other = commands.add_parser("join", help="start a node of a cluster that is there")
    other.add_argument("folder", type=Path)
    other.add_argument("--head", required=True, metavar="HOST:PORT", help="as start prints it")
    other.add_argument("--token", type=Path, required=True, metavar="FILE", help="a copy of the head's")
    for one in (head, other):
        one.add_argument("--host", default=HOST, help="address of this machine that the others reach (default: alone)")
        one.add_argument("--first-port", type=int, default=FIRST_PORT, help=f"the first of {len(PORT_OPTIONS)}")
        one.add_argument("--cpus", type=int, help="room for so many workers without GPU; all CPUs if not given")
        one.add_argument("--gpus", type=int, help="all GPUs if not given")
        one.add_argument("--temp-dir", type=Path, help="for Ray's logs and sockets (default: DIR/ray)")
        one.add_argument("--foreground", action="store_true", help="stay until the node ends")
    stop = commands.add_parser("stop", help="end the node of a folder, and the jobs that it runs")
    stop.add_argument("folder", type=Path)
    stop.add_argument("--grace", type=float, default=10.0, help="seconds before it is killed")
    token = commands.add_parser("token", help="print the token's file; make it if it is not there")
    token.add_argument("folder", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
