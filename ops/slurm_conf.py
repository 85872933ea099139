"""The configuration files of a small Slurm."""

from __future__ import annotations

import socket
from pathlib import Path

from server_process import ServerError
from slurm_hosts import CONTROL, SlurmHosts

BATCH, URGENT = "batch", "urgent"
ACCOUNTING_PORT = 6819


def slurm_conf(folder: Path, hosts: SlurmHosts, gpus: int, accounting: bool) -> str:
    """slurm.conf. What a job relies on is explained in docs/slurm.md."""
    control = f"{socket.gethostname().partition('.')[0]}({hosts.addresses[CONTROL]})"
    settings = {
        "ClusterName": "small",
        "SlurmctldHost": control,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        # A job that was queued again waits until its old credential has expired: 120 s if unset.
        "AuthInfo": f"socket={folder}/munge/sock,cred_expire=10",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool/%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd-%n.pid",
        "SlurmctldLogFile": folder / "log/slurmctld.log",
        "SlurmdLogFile": folder / "log/slurmd-%n.log",
        "MpiDefault": "none",
        # No control groups: machines for tests seldom let a process have them.
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "ReturnToService": 2,
        "SlurmdTimeout": 20,
        "KillWait": 10,
        "JobRequeue": 1,
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=2,bf_interval=2,sched_min_interval=0,preempt_youngest_first",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "PriorityType": "priority/multifactor",
        "PriorityWeightPartition": 1000,
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "SlurmctldParameters": "preempt_send_user_signal",
        # Nodes may claim more processors than this machine has.
        "SlurmdParameters": "config_overrides",
        "GresTypes": "gpu",
        "AccountingStorageType": "accounting_storage/none",
    }
    if accounting:
        settings |= {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": hosts.addresses[CONTROL],
            "AccountingStoragePort": ACCOUNTING_PORT,
            "AccountingStoragePass": folder / "munge/sock",
            "AccountingStorageEnforce": "associations,limits,qos",
            "PriorityWeightQOS": 10000,
        }
    node = "CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000"
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines.append(f"NodeName=DEFAULT {node}" + (f" Gres=gpu:h100:{gpus}" if gpus else ""))
    lines += [f"NodeName={name} NodeAddr={hosts.addresses[name]}" for name in hosts.nodes]
    lines += [
        f"PartitionName={BATCH} Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60",
        f"PartitionName={URGENT} Nodes=ALL PriorityTier=10 PreemptMode=OFF",
    ]
    return "\n".join(lines) + "\n"


def gres_conf(hosts: SlurmHosts, gpus: int) -> str:
    """gres.conf. A GPU needs a device file to be counted; any will do, for no job is kept from opening one.

    Raises:
        ServerError: fewer device files than GPUs.
    """
    lines = ["AutoDetect=off"]
    if gpus:
        devices = sorted(str(path) for path in Path("/dev").iterdir() if path.is_char_device())
        if len(devices) < gpus:
            raise ServerError(f"{gpus} GPUs need as many character devices, and /dev has {len(devices)}")
        lines += [
            f"NodeName={name} Name=gpu Type=h100 File={device}" for name in hosts.nodes for device in devices[:gpus]
        ]
    return "\n".join(lines) + "\n"


def slurmdbd_conf(folder: Path, hosts: SlurmHosts) -> str:
    """slurmdbd.conf, for a database that only answers on its socket."""
    settings = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge/sock",
        "DbdHost": socket.gethostname().partition(".")[0],
        "DbdAddr": hosts.addresses[CONTROL],
        "DbdPort": ACCOUNTING_PORT,
        "SlurmUser": "root",
        "LogFile": folder / "log/slurmdbd.log",
        "PidFile": folder / "slurmdbd.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "localhost",
        "StorageUser": "root",
        "StorageLoc": "slurm_accounting",
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())
