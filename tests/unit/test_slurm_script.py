"""The script of a Slurm job, as bash runs it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from astroclip_dist.config.strict import validated
from astroclip_dist.errors import ConfigError
from launchers.jobs.places import SlurmPlace
from launchers.jobs.spec import JobSpec
from launchers.jobs.task import tasks_of
from launchers.slurm.script import comment_of, script_of


def job_of(**values: Any) -> JobSpec:
    place = {"name": "slurm", "folder": "/shared/jobs", **values.pop("launcher", {})}
    return validated(JobSpec, {"name": "job", "launcher": place, **values})


def script(job: JobSpec, attempt: int = 0, after: tuple[str, ...] = ()) -> str:
    assert isinstance(job.launcher, SlurmPlace)
    return script_of(tasks_of(job), job.launcher, attempt, after)


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"data: {tmp_path}/data\nrun: {tmp_path}/run\nlength: 3 steps\nbatch: {{lanes: 4, global_size: 8}}\n"
        "optimizer: {lr: 1e-3}\nobjective: {head: {embedding: 32}}\n"
    )
    return str(path)


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A program in the place of Python, that writes down its environment and arguments."""
    path = tmp_path / "told"
    path.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([dict(os.environ), sys.argv[1:]]))\n")
    path.chmod(stat.S_IRWXU)
    return path


def run(text: str, **environment: str) -> tuple[dict[str, str], list[str]]:
    done = subprocess.run(
        ["/bin/bash", "-s"], input=text, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


def test_what_a_job_asks_for_is_in_the_header(config: str) -> None:
    job = job_of(
        config=config,
        queue="batch",
        priority="high",
        nodes=2,
        min_nodes=1,
        gpus_per_node=2,
        cpus_per_node=16,
        memory_per_node="64 GB",
        time_limit="90 min",
        launcher={
            "account": "research",
            "gpu_type": "h100",
            "exclude": ["n7", "n9"],
            "constraint": "fast&big",
            "folder": "/with space/100%",
        },
    )
    [task] = tasks_of(job)
    assert options(script(job, attempt=3, after=("17", "18_2"))) == [
        "job-name=job",
        f'comment="astroclip job 3 {task.digest}"',
        'output="/with space/100%%/job/%j.log"',
        "open-mode=append",
        "requeue",
        "export=ALL",
        "nodes=1-2",
        "ntasks-per-node=1",
        "signal=B:USR2@120",
        "partition=batch",
        "qos=high",
        "account=research",
        "constraint=fast&big",
        "exclude=n7,n9",
        "gres=gpu:h100:2",
        "cpus-per-task=16",
        "mem=61036M",
        "time=90",
        "dependency=afterok:17:18_2",
        "kill-on-invalid-dep=yes",
    ]
    command = script(job).splitlines()[-1]
    assert command.startswith(f"exec {sys.executable} -u -m launchers.slurm.batch --max-restarts=100 --ray-slots=2 ")
    assert command.endswith("--ray-gpus=2 -- train env:ASTROCLIP_CONFIG")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
@example(value="a'b\"c $HOME `id` \\ \n#SBATCH --qos=high\n !x")
def test_bash_gives_the_command_its_environment_as_it_was_written(told: Path, value: str) -> None:
    job = job_of(command=["--version"], environment={"VALUE": value}, launcher={"python": str(told)})
    environment, arguments = run(script(job))
    assert environment["VALUE"] == value
    assert arguments[-2:] == ["--", "--version"]
    assert "qos" not in "".join(options(script(job).split("\n\n", 1)[0]))


def test_each_run_of_a_sweep_gets_its_own_configuration(told: Path, config: str) -> None:
    job = job_of(config=config, sweep={"seed": [5, 6, 7]}, sweep_at_once=2, launcher={"python": str(told)})
    text = script(job)
    assert "array=0,1,2%2" in options(text)
    assert "output=/shared/jobs/job-%a/%A_%a.log" in options(text)
    for number, task in enumerate(tasks_of(job)):
        environment, _ = run(text, SLURM_ARRAY_TASK_ID=str(number))
        assert environment["ASTROCLIP_CONFIG"] == task.environment["ASTROCLIP_CONFIG"]
        assert f"seed: {5 + number}" in environment["ASTROCLIP_CONFIG"]
    assert isinstance(job.launcher, SlurmPlace)
    some = script_of(tasks_of(job)[1:], job.launcher, 1, ())
    assert "array=1,2%2" in options(some)


def test_the_comment_tells_tasks_and_attempts_apart(config: str) -> None:
    one, other = (tasks_of(job_of(config=config, override={"seed": seed})) for seed in (1, 2))
    sweep = tasks_of(job_of(config=config, sweep={"seed": [1, 2]}))
    comments = [
        comment_of(one, 0),
        comment_of(one, 1),
        comment_of(other, 0),
        comment_of(sweep, 0),
        comment_of(sweep[1:], 0),
    ]
    assert len(set(comments)) == len(comments)


def test_a_failing_setup_line_ends_the_job(told: Path) -> None:
    job = job_of(command=["--version"], launcher={"python": str(told), "setup": ["false"]})
    done = subprocess.run(["/bin/bash", "-s"], input=script(job), capture_output=True, text=True)
    assert done.returncode == 1
    assert not done.stdout


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"image": "astroclip:1"}, "image"),
        ({"time_limit": "60 s"}, "launcher.notice"),
        ({"queue": "a\n#SBATCH --qos=high"}, "--partition"),
        ({"launcher": {"account": 'a"b'}}, "--account"),
    ],
)
def test_what_slurm_cannot_do_is_refused(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        script(job_of(command=["--version"], **values))
    assert refused.value.field == field


def test_a_notice_that_is_too_short_for_a_save_is_refused(config: str) -> None:
    job = job_of(config=config, launcher={"notice": "30 s"})
    with pytest.raises(ConfigError, match="preemption_deadline = 60 s"):
        script(job)
