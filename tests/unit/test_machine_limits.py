"""What a process may use of its machine, and that workers are told so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from astroclip_dist import machine_limits
from astroclip_dist.config import parse_config
from astroclip_dist.machine_limits import cpu_quota, memory_limit, threads_each, usable_cores
from launchers.local import workers


def test_limits_of_cgroups_are_found(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None
    assert cpu_quota(tmp_path) is None
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert memory_limit(tmp_path) == 2_000_000_000
    assert cpu_quota(tmp_path) == 1.5
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert memory_limit(tmp_path) is None
    assert cpu_quota(tmp_path) is None


def test_version_1_cgroups_are_found(tmp_path: Path) -> None:
    for controller, name, text in (
        ("memory", "memory.limit_in_bytes", "9223372036854771712"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
    ):
        (tmp_path / controller).mkdir(exist_ok=True)
        (tmp_path / controller / name).write_text(text)
    assert memory_limit(tmp_path) is None
    assert cpu_quota(tmp_path) == 0.5


def test_cores_are_those_of_the_affinity_and_no_more_than_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for quota, cores, threads in ((None, 8, 2), (16.0, 8, 2), (6.5, 6.5, 2), (3.0, 3, 1), (0.5, 0.5, 1)):
        monkeypatch.setattr(machine_limits, "cpu_quota", lambda quota=quota: quota)
        assert usable_cores() == cores
        assert threads_each(3) == threads


def test_a_process_that_was_given_one_core_uses_one() -> None:
    core = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, [{core}]); from astroclip_dist.machine_limits import *"
    told = subprocess.check_output([sys.executable, "-c", f"{program}; print(usable_cores(), threads_each(1))"])
    assert told.split() == [b"1", b"1"]


@pytest.mark.parametrize(("given", "threads"), [(None, "3"), ("5", "5")])
def test_workers_of_this_machine_share_what_they_may_use(
    monkeypatch: pytest.MonkeyPatch, given: str | None, threads: str
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(machine_limits, "cpu_quota", lambda: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    config = parse_config(
        "{data: /d, run: /r, workers: 2, length: 1 steps, batch: {global_size: 8}, optimizer: {lr: 1e-3}}", "test"
    )
    worker = workers._start(config, 0, 1)
    try:
        assert psutil.Process(worker.pid).environ()["OMP_NUM_THREADS"] == threads
    finally:
        worker.kill()
        worker.communicate()
