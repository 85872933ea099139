"""Accounting of a small Slurm: MariaDB on a socket, slurmdbd, one account tree with two QOS."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from server_process import ServerError
from slurm_conf import slurmdbd_conf
from slurm_daemons import Daemons
from slurm_hosts import CONTROL, SlurmHosts

_SEARCH = "/usr/bin:/usr/sbin:/bin:/sbin"
_START_S = 60.0
# ``small`` lets an account have one node's processors at a time: a second job waits for a limit.
_SET_UP = (
    ("add", "cluster", "small"),
    ("add", "qos", "low", "set", "Priority=10"),
    ("add", "qos", "high", "set", "Priority=100"),
    ("add", "qos", "small", "set", "MaxTRESPerAccount=cpu=8"),
    ("add", "account", "research", "Description=research", "Organization=small"),
    ("add", "user", "root", "Account=research", "DefaultAccount=research", "AdminLevel=Administrator"),
    ("modify", "user", "root", "set", "QOS=normal,low,high,small", "DefaultQOS=normal"),
)


def start_accounting(folder: Path, hosts: SlurmHosts, daemons: Daemons) -> None:
    """Start the database and slurmdbd; at the first start make cluster, accounts and QOS.

    Raises:
        ServerError: one does not answer.
    """
    data, socket = folder / "mysql", folder / "mysql/sock"
    first = not data.exists()
    if first:
        data.mkdir()
        shutil.chown(data, "mysql", "mysql")
        install = ["--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db"]
        _run(["mariadb-install-db", *install, "--auth-root-authentication-method=normal"])
    options = ["--skip-networking", "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"]
    own = ["--no-defaults", "--user=mysql", f"--datadir={data}", f"--socket={socket}", f"--pid-file={data}/pid"]
    daemons.start("mariadbd", ["mariadbd", *own, *options, "--innodb-flush-log-at-trx-commit=0"], {"PATH": _SEARCH})
    client = ["--no-defaults", "-u", "root", "-S", str(socket)]
    _wait(daemons, lambda: _answers(["mariadb-admin", *client, "ping"]))
    _run(["mariadb", *client, "-e", "create database if not exists slurm_accounting"])
    configuration = folder / "etc/slurmdbd.conf"
    configuration.write_text(slurmdbd_conf(folder, hosts))
    configuration.chmod(0o600)
    environment = {"SLURM_CONF": str(folder / "etc/slurm.conf"), "MYSQL_UNIX_PORT": str(socket)}
    daemons.start("slurmdbd", [*hosts.within(CONTROL), "/usr/sbin/slurmdbd", "-D"], environment)
    sacctmgr = [str(folder / "bin/sacctmgr"), "-i", "-Q"]
    _wait(daemons, lambda: _answers([*sacctmgr, "-n", "show", "cluster"]))
    if first:
        for command in _SET_UP:
            _run([*sacctmgr, *command])


def _wait(daemons: Daemons, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        daemons.check()
        if time.monotonic() > deadline:
            raise ServerError(f"the accounting of Slurm does not answer after {_START_S:.0f} s")
        time.sleep(0.1)


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "PATH": _SEARCH}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    if done.returncode != 0:
        raise ServerError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}")


def _answers(command: Sequence[str]) -> bool:
    environment = {**os.environ, "PATH": _SEARCH}
    return subprocess.run(command, capture_output=True, check=False, env=environment, timeout=30).returncode == 0
