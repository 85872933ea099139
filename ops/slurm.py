"""A small real Slurm on this machine, for tests and for trying jobs out: Debian's packages, on hosts that it makes up.

    python ops/slurm.py install [--accounting]
    python ops/slurm.py start DIR [--nodes N] [--gpus N] [--accounting]
    export PATH=DIR/bin:$PATH                  # sbatch, squeue, ... of this cluster
    python ops/slurm.py stop DIR

Each node is a host of its own: a network namespace with its own address on a bridge that nobody else is on, and a
process namespace, so that killing its first process is the crash of a host. Partitions ``batch`` and ``urgent``: jobs
of the second preempt those of the first, which get 60 s to save and are queued again. With ``--accounting`` (MariaDB
and slurmdbd; 12 s more): QOS, accounts, limits, sacct. ``start`` starts whatever does not run, a crashed node, too.
Root only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from network_hosts import why_no_hosts
from server_process import ServerError, claim
from slurm_accounting import start_accounting
from slurm_conf import BATCH, gres_conf, slurm_conf
from slurm_daemons import Daemons
from slurm_hosts import CONTROL, SlurmHosts

PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge", "ip": "iproute2"}
ACCOUNTING_PACKAGES = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun", "sacct", "sacctmgr")
_SEARCH = "/usr/bin:/usr/sbin:/bin:/sbin"
_START_S = 60.0
# First of a node's processes: takes in orphans, and its death is the host's.
_INIT = ["/bin/bash", "-c", '"$@" & wait', "host"]
# With all others of a process namespace, which ends with it and with the process here.
_OWN_PROCESSES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    install_parser = commands.add_parser("install", help="install Debian's packages where they are not there")
    install_parser.add_argument("--accounting", action="store_true", help="those of accounting, too")
    start_parser = commands.add_parser("start", help="start what does not run, wait until all nodes are there")
    start_parser.add_argument("folder", type=Path)
    start_parser.add_argument("--nodes", type=int, default=2)
    start_parser.add_argument("--gpus", type=int, default=0, help="of a node; they are only said to be there")
    start_parser.add_argument("--accounting", action="store_true", help="QOS, accounts, limits, sacct")
    stop_parser = commands.add_parser("stop", help="stop the daemons of a folder, and all jobs with them")
    stop_parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "install":
            print(install(options.accounting))
        elif options.command == "stop":
            print("stopped" if stop(options.folder) else "was not running")
        else:
            options.folder.mkdir(parents=True, exist_ok=True)
            with claim(options.folder, "slurm"):
                start(options.folder, options.nodes, options.gpus, options.accounting)
            print(f"export PATH={options.folder.resolve() / 'bin'}:$PATH")
    except (ServerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def install(accounting: bool) -> str:
    """Install the packages that are missing; in words what was done.

    Raises:
        ServerError: this is not Debian, not root, or apt-get fails.
    """
    missing = missing_packages(accounting)
    if not missing:
        return "all is there"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ServerError(f"missing: {' '.join(missing)}. Installing them needs root and Debian's apt-get.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ServerError(f"apt-get {command[0]} failed: {done.stderr.strip()[-500:]}")
    return f"installed {' '.join(missing)}"


def missing_packages(accounting: bool) -> list[str]:
    """Debian's names of what a cluster needs and is not there."""
    programs = {**PACKAGES, **(ACCOUNTING_PACKAGES if accounting else {})}
    return [package for program, package in programs.items() if shutil.which(program, path=_SEARCH) is None]


def start(folder: Path, nodes: int, gpus: int, accounting: bool) -> None:
    """Start the daemons that do not run, and return when all nodes can take jobs.

    Raises:
        ServerError: what is missing, or which daemon ended (with the end of its log).
    """
    if missing := missing_packages(accounting):
        raise ServerError(f"missing: {' '.join(missing)}. Run: python ops/slurm.py install")
    if reason := why_no_hosts():
        raise ServerError(reason)
    folder = folder.resolve()
    hosts, daemons = SlurmHosts(folder, nodes), Daemons(folder)
    configuration, settings = folder / "etc/slurm.conf", slurm_conf(folder, hosts, gpus, accounting)
    if not daemons.running():
        # A start that was killed may have left half-made ones.
        hosts.delete()
    elif configuration.read_text() != settings:
        raise ServerError(f"{folder} runs with other nodes, GPUs or accounting: stop it first")
    for name in ("munge", "state", "spool", "log", "etc", "bin"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # munged asks for folders into which nobody else writes, and through which its clients get to the socket.
    (folder / "munge").chmod(0o711)
    configuration.write_text(settings)
    (folder / "etc/gres.conf").write_text(gres_conf(hosts, gpus))
    _write_commands(folder, hosts)
    hosts.create()
    _start_munge(folder, daemons)
    if accounting:
        start_accounting(folder, hosts, daemons)
    environment = {"SLURM_CONF": str(configuration)}
    control = hosts.within(CONTROL)
    daemons.start("slurmctld", [*control, _program("slurmctld"), "-D", "-i"], environment)
    for name in hosts.nodes:
        (folder / "spool" / name).mkdir(exist_ok=True)
        slurmd = [*_INIT, _program("slurmd"), "-D", "-N", name]
        daemons.start(name, [*hosts.within(name), *_OWN_PROCESSES, *slurmd], environment, signal.SIGKILL)
    deadline = time.monotonic() + _START_S
    while _ready_nodes(folder) < nodes:
        daemons.check()
        if time.monotonic() > deadline:
            raise ServerError(f"not all nodes were ready in {_START_S:.0f} s: see {folder}/log")
        time.sleep(0.1)


def stop(folder: Path) -> bool:
    """End all daemons of a folder, with all jobs. False: none ran."""
    folder = folder.resolve()
    daemons = Daemons(folder)
    any_ran = daemons.stop()
    SlurmHosts(folder).delete()
    return any_ran


def _start_munge(folder: Path, daemons: Daemons) -> None:
    key, socket = folder / "munge/key", folder / "munge/sock"
    if not key.exists():
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
            file.write(os.urandom(1024))
    options = {
        "key-file": key,
        "socket": socket,
        "pid-file": folder / "munge/pid",
        "log-file": folder / "log/munged.log",
        "seed-file": folder / "munge/seed",
    }
    settings = [f"--{name}={value}" for name, value in options.items()]
    daemons.start("munged", [_program("munged"), "--foreground", "--force", *settings], {})
    deadline = time.monotonic() + _START_S
    while not socket.is_socket():
        daemons.check()
        if time.monotonic() > deadline:
            raise ServerError(f"munged gave no socket in {_START_S:.0f} s")
        time.sleep(0.05)


def _write_commands(folder: Path, hosts: SlurmHosts) -> None:
    """Slurm's commands for this cluster: on the controller's host, or where they are called within a job."""
    for name in COMMANDS:
        program = shutil.which(name, path=_SEARCH)
        if program is None:
            continue
        path = folder / "bin" / name
        path.write_text(
            "#!/bin/sh\n"
            f"export SLURM_CONF='{folder}/etc/slurm.conf'\n"
            f'[ -n "$SLURMD_NODENAME" ] && exec {program} "$@"\n'
            f'exec {" ".join(hosts.within(CONTROL))} {program} "$@"\n'
        )
        path.chmod(0o755)


def _ready_nodes(folder: Path) -> int:
    command = [str(folder / "bin/sinfo"), "-h", "-N", "-p", BATCH, "-t", "idle,mix,alloc", "-o", "%N"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_START_S)
    return len(set(done.stdout.split()))


def _program(name: str) -> str:
    found = shutil.which(name, path=_SEARCH)
    if found is None:
        raise ServerError(f"{name} is not installed")
    return found


if __name__ == "__main__":
    sys.exit(main())
