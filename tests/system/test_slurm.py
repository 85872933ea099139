"""Short jobs at a real Slurm: every state of theirs, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launchers.slurm.commands import record_entries
from launchers.slurm.states import status_of
from tests.system.slurm_cluster import SlurmCluster, astroclip, small_slurm, try_astroclip
from tests.until import until

VERSION = "command: [--version]\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with small_slurm(2, "--gpus=2") as cluster:
        yield cluster


@pytest.fixture
def waiting(tmp_path: Path) -> str:
    """A command that waits for ever: its configuration is a pipe into which nobody writes."""
    pipe = tmp_path / "config.yaml"
    os.mkfifo(pipe)
    return f"command: [config, show, {pipe}]\n"


def test_a_short_job_from_its_submission_to_its_end(cluster: SlurmCluster, waiting: str) -> None:
    done, waits, behind = "done", "waits", "behind"
    both_gpus = "gpus_per_node: 2\n"
    for name, text in ((done, VERSION), (waits, waiting + both_gpus), (behind, VERSION + both_gpus)):
        path = cluster.write_job(name, text)
        where = [] if name == done else ["launcher.exclude=[n2]"]
        assert f"{name}: submitted as slurm job" in astroclip("jobs", "submit", path, *where)
        assert "nothing was submitted" in astroclip("jobs", "submit", path, *where)

    assert "astroclip" in astroclip("jobs", "logs", done, "-f")
    assert cluster.status(done)["state"] == "succeeded"
    # Both GPUs of the only node that it may have are taken.
    cluster.wait_for_state(waits, "running")
    told = cluster.wait_for(behind, lambda told: "(Resources)" in (told["reason"] or ""))
    assert told["state"] == "pending"
    assert told["reason"] == "no free nodes (Resources)"
    listed = {job["name"]: job["state"] for job in json.loads(astroclip("jobs", "list", "--json"))}
    assert listed == {done: "succeeded", waits: "running", behind: "pending"}
    astroclip("jobs", "cancel", behind)
    assert cluster.status(behind)["state"] == "cancelled"
    assert cluster.log(behind) == ""

    cluster.wait_for_log(waits, "start 1 of 101")
    job = cluster.id_of(waits)
    until(lambda: cluster.processes(job, "config show"))
    astroclip("jobs", "requeue", waits)
    told = cluster.wait_for_state(waits, "requeued")
    assert told["restarts"] == 1
    cluster.start_at_once(waits)
    cluster.wait_for_log(waits, "start 2 of 101")
    assert "was killed by signal 15; queued again (SIGUSR2)" in cluster.log(waits)
    assert cluster.wait_for_state(waits, "running")["nodes"] == ["n1"]
    astroclip("jobs", "cancel", waits)
    assert cluster.wait_for_state(waits, "cancelled")["restarts"] == 1
    until(lambda: not cluster.processes(job))
    assert "start 3" not in astroclip("jobs", "logs", waits)


@pytest.mark.slow
def test_what_slurm_refuses_is_an_error_that_names_the_field(cluster: SlurmCluster) -> None:
    for number, (override, field) in enumerate(
        (
            ("queue=nowhere", "queue: nowhere"),
            ("gpus_per_node=3", "nodes: 1 nodes, 3 GPUs"),
            ("memory_per_node=9 TB", "nodes: 1 nodes, 9000 GB"),
            ("launcher.constraint=fast", "launcher.constraint: fast"),
            ("launcher.exclude=[n9]", "launcher.exclude: ['n9']"),
            ("image=astroclip", "image: astroclip"),
            ("secrets=[NOT_SET_HERE]", "secrets: NOT_SET_HERE"),
            ("time_limit=20 s", "launcher.notice: 30.0"),
        )
    ):
        path = cluster.write_job(f"refused-{number}", VERSION)
        code, _, error = try_astroclip("jobs", "submit", path, override)
        assert code == 2, error
        assert f"error: {field}" in error
    assert "refused" not in cluster.slurm("squeue", "--states=all", "--format=%j")


@pytest.mark.slow
def test_a_job_waits_for_nodes_that_are_drained(cluster: SlurmCluster) -> None:
    path = cluster.write_job("patient", VERSION)
    cluster.slurm("scontrol", "update", "NodeName=n1,n2", "State=DRAIN", "Reason=test")
    try:
        astroclip("jobs", "submit", path)
        assert cluster.status("patient")["state"] == "pending"
    finally:
        cluster.slurm("scontrol", "update", "NodeName=n1,n2", "State=RESUME")
    cluster.wait_for_state("patient", "succeeded")


@pytest.mark.slow
def test_a_job_that_fails_says_how_and_cancels_what_waits_for_it(cluster: SlurmCluster) -> None:
    launcher = cluster.write_job("any", VERSION).read_text().splitlines()[1]
    path = cluster.folder / "chain.yaml"
    path.write_text(
        f"name: chain\ndefaults:\n  {launcher}\njobs:\n"
        "  one: {command: [--version]}\n  two: {command: [config, show, nowhere.yaml], after: [one]}\n"
        "  three: {command: [--version], after: [two]}\n"
    )
    astroclip("jobs", "submit", path)
    states = {name: cluster.wait_for_state(name, state) for name, state in _ENDS.items()}
    assert states["chain-two"]["reason"] == "exit code 2: wrong usage or configuration"
    assert "(DependencyNeverSatisfied)" in states["chain-three"]["reason"]
    assert cluster.log("chain-three") == ""


_ENDS = {"chain-one": "succeeded", "chain-two": "failed", "chain-three": "cancelled"}


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_an_array_two_at_a_time(cluster: SlurmCluster, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"data: {tmp_path}/nothing\nrun: {tmp_path}/run\nlength: 3 steps\noptimizer: {{lr: 1e-3}}\n"
        "batch: {global_size: 8, lanes: 4}\nobjective: {head: {embedding: 32}}\n"
        "health: {preemption_deadline: 20 s}\n"
    )
    # Each fails for want of data, soon after its start; with this, late enough to see how many run.
    setup = "launcher.setup=[sleep 3]"
    path = cluster.write_job("sweep", f"config: {config}\nsweep: {{seed: [1, 2, 3, 4]}}\nsweep_at_once: 2\n")
    told = json.loads(astroclip("jobs", "submit", path, setup, "--json"))
    job = told[0]["id"].partition("_")[0]
    assert [one["id"] for one in told] == [f"{job}_{number}" for number in range(4)]
    most, jobs = 0, told
    while any(one["state"] in ("pending", "running") for one in jobs):
        jobs = [one for one in json.loads(astroclip("jobs", "list", "--json")) if one["sweep"] == "sweep"]
        running = [one for one in jobs if one["state"] == "running"]
        most = max(most, len(running))
        reasons = [one["reason"] or "" for one in jobs if one["state"] == "pending"]
        assert len(running) < 2 or all("JobArrayTaskLimit" in reason or "(None)" in reason for reason in reasons)
        time.sleep(0.2)
    assert most == 2
    for number in range(4):
        assert f"{tmp_path}/nothing" in cluster.log(f"sweep-{number}")


@pytest.mark.slow
def test_a_run_of_a_sweep_that_is_queued_again_leaves_the_others_alone(cluster: SlurmCluster, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"data: {tmp_path}\nrun: {tmp_path}/run\nlength: 3 steps\noptimizer: {{lr: 1e-3}}\n"
        "batch: {global_size: 8, lanes: 4}\nobjective: {head: {embedding: 32}}\n"
        "health: {preemption_deadline: 20 s}\n"
    )
    # Each waits for ever for a dataset: its manifest is a pipe into which nobody writes.
    os.mkfifo(tmp_path / "manifest.json")
    astroclip("jobs", "submit", cluster.write_job("several", f"config: {config}\nsweep: {{seed: [1, 2]}}\n"))
    for name in ("several-0", "several-1"):
        cluster.wait_for_log(name, "start 1 of 101")
    # Of the last run, the id that Slurm gives to the job is that of the whole array.
    array, _, number = cluster.id_of("several-1").partition("_")
    until(lambda: cluster.processes(array, "astroclip_dist.cli"))
    for process in cluster.processes(array, "astroclip_dist.cli"):
        process.kill()
    cluster.wait_for_state("several-1", "requeued")
    other = cluster.status("several-0")
    assert (other["state"], other["restarts"]) == ("running", 0)
    told = f"job {array}_{number}: the command was killed by signal 9; queued again (by itself)"
    assert told in cluster.log("several-1")
    for name in ("several-0", "several-1"):
        astroclip("jobs", "cancel", name)
        cluster.wait_for_state(name, "cancelled")


@pytest.mark.slow
def test_secrets_reach_the_job_and_nothing_that_others_can_read(
    cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_TOKEN", "not-for-anybody's-eyes")
    monkeypatch.setenv("OF_THE_SHELL", "stays-here")
    path = cluster.write_job("secretive", VERSION + "secrets: [STORE_TOKEN]\nenvironment: {LEVEL: 'a \"b\" $c'}\n")
    seen = cluster.folder / "seen"
    setup = f'launcher.setup=["env > {seen}; chmod 600 {seen}"]'
    rendered = astroclip("jobs", "submit", path, setup, "--dry-run")
    astroclip("jobs", "submit", path, setup)
    cluster.wait_for_state("secretive", "succeeded")
    environment = seen.read_text()
    assert "STORE_TOKEN=not-for-anybody's-eyes" in environment
    assert "OF_THE_SHELL" not in environment
    details = cluster.slurm("scontrol", "show", "job", cluster.id_of("secretive"))
    records = "".join(file.read_text() for file in (cluster.folder / "records").glob("*.json"))
    scripts = "".join(file.read_text() for file in (cluster.jobs / "secretive").iterdir())
    for text in (rendered, details, records, scripts, cluster.log("secretive")):
        assert "for-anybody" not in text
    assert """export LEVEL='a "b" $c'""" in scripts


@pytest.mark.slow
def test_of_a_submit_that_is_killed_nothing_runs_and_the_next_one_adopts_it(cluster: SlurmCluster) -> None:
    path = cluster.write_job("orphan", VERSION)
    real = cluster.folder / "bin/scontrol"
    # Killed at its next command, which is the release: by a command of Slurm's that kills who called it.
    deadly = cluster.folder / "deadly"
    deadly.mkdir()
    (deadly / "scontrol").write_text(
        f'#!/bin/sh\n[ "$1" != release ] || {{ kill -9 $PPID; exit; }}\nexec {real} "$@"\n'
    )
    (deadly / "scontrol").chmod(stat.S_IRWXU)
    command = [sys.executable, "-m", "astroclip_dist.cli", "jobs", "submit", str(path)]
    environment = {**os.environ, "PATH": f"{deadly}:{os.environ['PATH']}"}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == -signal.SIGKILL
    time.sleep(3)
    told = cluster.status("orphan")
    assert told["state"] == "pending"
    assert "held" in told["reason"]
    # Before it had written down the id, too.
    record = cluster.folder / "records/orphan.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "job_id": None}))
    astroclip("jobs", "submit", path)
    assert cluster.wait_for_state("orphan", "succeeded")["id"] == told["id"]
    assert cluster.slurm("squeue", "--states=all", "--noheader", "--name=orphan").count("\n") == 1


@pytest.mark.slow
def test_another_job_of_the_name_in_the_queue_is_left_alone(
    cluster: SlurmCluster, waiting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    astroclip("jobs", "submit", cluster.write_job("same", waiting))
    cluster.wait_for_state("same", "running")
    job = cluster.id_of("same")
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("ASTROCLIP_JOBS", str(tmp_path / "records"))
        code, _, error = try_astroclip("jobs", "submit", cluster.write_job("same", VERSION))
        assert code == 2
        assert f"name: same. Another job of yours has that name in Slurm's queue ({job})" in error
    astroclip("jobs", "cancel", "same")
    cluster.wait_for_state("same", "cancelled")


@pytest.mark.slow
def test_a_job_is_started_again_as_often_as_it_may_be(cluster: SlurmCluster, waiting: str) -> None:
    path = cluster.write_job("bounded", waiting + "max_restarts: 1\n")
    astroclip("jobs", "submit", path)
    for start in (1, 2):
        cluster.wait_for_log("bounded", f"start {start} of 2")
        until(lambda: cluster.processes(cluster.id_of("bounded"), "config show"))
        cluster.wait_for_state("bounded", "running")
        astroclip("jobs", "requeue", "bounded")
        if start == 1:
            cluster.start_at_once("bounded")
    told = cluster.wait_for_state("bounded", "failed")
    assert told["restarts"] == 1
    assert "max_restarts = 1 is reached" in cluster.log("bounded")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["REQUEUE", "CANCEL"])
def test_a_job_that_does_not_leave_in_time_is_requeued_once_or_cancelled(
    cluster: SlurmCluster, waiting: str, mode: str
) -> None:
    name, urgent = f"late-{mode.lower()}", f"urgent-{mode.lower()}"
    cluster.slurm("scontrol", "update", "PartitionName=batch", "GraceTime=2", f"PreemptMode={mode}")
    try:
        path = cluster.write_job(name, waiting + "cpus_per_node: 8\n")
        astroclip("jobs", "submit", path, "launcher.exclude=[n2]")
        cluster.wait_for_log(name, "start 1 of 101")
        job = cluster.id_of(name)
        until(lambda: cluster.processes(job, "astroclip_dist.cli"))
        [command] = cluster.processes(job, "astroclip_dist.cli")
        command.suspend()
        path = cluster.write_job(urgent, waiting + "queue: urgent\ncpus_per_node: 8\n")
        astroclip("jobs", "submit", path, "launcher.exclude=[n2]")
        cluster.wait_for_log(name, "SIGUSR2: the command is asked to leave")
        # Slurm wakes and ends the command; the shell around it must not ask for a requeue once more.
        cluster.wait_for_log(name, "was killed by signal 15; Slurm says that the job is COMPLETING")
        cluster.wait_for_state(urgent, "running")
        told = cluster.status(name)
        if mode == "REQUEUE":
            assert (told["state"], told["restarts"]) == ("requeued", 1)
        else:
            assert (told["state"], told["restarts"]) == ("cancelled", 0)
            assert "submit it again" in told["reason"]
        for one in (name, urgent):
            astroclip("jobs", "cancel", one)
    finally:
        cluster.slurm("scontrol", "update", "PartitionName=batch", "GraceTime=60", "PreemptMode=REQUEUE")


@pytest.mark.slow
def test_a_quota_is_refused_or_waits_with_the_reason(waiting: str) -> None:
    with small_slurm(2, "--accounting") as cluster:
        path = cluster.write_job("high", VERSION)
        code, _, error = try_astroclip("jobs", "submit", path, "priority=highest")
        assert (code, "error: priority: highest" in error) == (2, True), error
        code, _, error = try_astroclip("jobs", "submit", path, "launcher.account=nobody")
        assert (code, "error: launcher.account: nobody" in error) == (2, True), error
        quota = waiting + "priority: small\ncpus_per_node: 8\n"
        astroclip("jobs", "submit", cluster.write_job("within", quota))
        cluster.wait_for_state("within", "running")
        astroclip("jobs", "submit", cluster.write_job("above", quota))
        told = cluster.wait_for("above", lambda told: "limit" in (told["reason"] or ""))
        assert (told["state"], told["reason"]) == ("pending", "a limit of the QOS is reached: MaxCpuPerAccount")
        # The accounting knows a job that the controller has forgotten.
        job = cluster.id_of("within")
        astroclip("jobs", "cancel", "within")
        astroclip("jobs", "cancel", "above")
        until(lambda: [entry.state for entry in record_entries([job])] == ["CANCELLED"])
        [entry] = record_entries([job])
        assert status_of(entry).state == "cancelled"
