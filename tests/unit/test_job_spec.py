"""A job file and the tasks that come of it: what is refused, what is the same job, where no secret may go."""

from __future__ import annotations

import random
import string
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from astroclip_dist.config import load_config
from astroclip_dist.errors import ConfigError
from launchers.jobs.queue import queue_at
from launchers.jobs.spec import JobSpec, job_beside, load_job
from launchers.jobs.task import CONFIG_VARIABLE, Task, tasks_of

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((REPOSITORY / "configs" / "jobs").glob("*.yaml"))
CONFIG = (
    "data: s3://b/data\nrun: s3://b/run\nlength: 30 steps\nbatch: {global_size: 16, lanes: 4}\noptimizer: {lr: 1e-3}"
)
LAUNCHERS: dict[str, dict[str, Any]] = {
    "local": {},
    "ray": {"address": "http://head:8265"},
    "slurm": {"account": "astro", "notice": "60 s"},
    "kubernetes": {"namespace": "astro", "secret": "bucket"},
}


@pytest.fixture(autouse=True)
def records_aside(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTROCLIP_JOBS", str(tmp_path_factory.mktemp("jobs")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


def job(folder: Path, **values: Any) -> JobSpec:
    return job_beside(folder, {"name": "sky", "config": "run.yaml", "launcher": {"name": "local"}, **values})


def task(folder: Path, **values: Any) -> Task:
    [only] = tasks_of(job(folder, **values))
    return only


def refusal(folder: Path, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        tasks_of(job(folder, **values))
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": "Sky"}, "name: 'Sky'. a job's name is 1 to 47 lower-case letters"),
        ({"name": "s" * 48}, "a job's name is 1 to 47 lower-case letters"),
        ({"nods": 2}, "nods: unknown key (value 2). Did you mean 'nodes'?"),
        ({"launcher": {"name": "slurn"}}, "launcher.name: {'name': 'slurn'}. Say which: one of"),
        ({"launcher": {"name": "ray"}}, "launcher.address: missing"),
        ({"command": ["runs"]}, "Give either a training's config, or a command"),
        ({"config": None}, "Give either a training's config, or a command"),
        ({"config": None, "command": []}, "Give either a training's config, or a command"),
        ({"config": None, "command": ["runs"], "sweep": {"seed": [1]}}, "belong to a config, not to a command"),
        ({"config": None, "command": ["runs"], "nodes": 2}, "nodes: 2. A command other than a training"),
        ({"config": None, "command": ["embed", "s3://me:pw@host/run"]}, "command: ***. It holds a password"),
        ({"config": "none.yaml"}, "config file: "),
        ({"min_nodes": 2}, "min_nodes: 2. It is more than nodes = 1"),
        ({"gpus_per_node": 2, "workers_per_node": 4}, "workers cannot share a GPU"),
        ({"memory_per_node": 64}, "memory_per_node: 64. Too little; write its unit: '64 GB'"),
        ({"queue": ""}, "queue: ''. String should have at least 1 character"),
        ({"time_limit": 60}, "time_limit: 60. write a number and its unit"),
        ({"override": {"workers": 4}}, "override.workers: given. The job's nodes"),
        ({"sweep": {"min_workers": [1, 2]}}, "sweep.min_workers: given. The job's nodes"),
        ({"override": {"optimizer.lr": 1, "optimizer": {"lr": 2}}}, "override: ambiguous. optimizer.lr is given twice"),
        ({"override": {"optimizer": 1, "optimizer.lr": 2}}, "override: ambiguous. optimizer.lr is part of optimizer"),
        ({"override": {"optimizer.rate": 1}}, "optimizer.rate: unknown key"),
        ({"sweep": {"seed": []}}, "sweep.seed: []. Give every key of a sweep at least one value"),
        ({"sweep": {"seed": [1]}, "override": {"seed": 2}}, "override.seed: 2. The sweep gives it"),
        ({"sweep": {"run": ["a", "b"]}}, "sweep.run"),
        ({"sweep": {"seed": list(range(1001))}}, "sweep: 1,001 runs. 1,000 at most"),
        ({"name": "s" * 46, "sweep": {"seed": [1, 2]}}, "It leaves no room for the numbers of the sweep"),
        ({"sweep_at_once": 2}, "sweep_at_once: 2. There is no sweep"),
        ({"environment": {"HF_TOKEN": "abc"}}, "environment.HF_TOKEN: ***. That looks like a secret"),
        ({"environment": {"AWS_SECRET_ACCESS_KEY": "abc"}}, "That looks like a secret"),
        ({"environment": {"URI": "http://me:pw@host"}}, "environment.URI: ***. That looks like a secret"),
        ({"environment": {"A B": "c"}}, "a variable's name is letters, digits and '_'"),
        ({"environment": {"A": "b\0c"}}, "a variable cannot hold a zero byte"),
        ({"environment": {"A": "b"}, "secrets": ["A"]}, "environment.A: ***. It is listed under secrets"),
        ({"secrets": ["A", "A"]}, "secrets: A, A. Name each variable once"),
        ({"environment": {CONFIG_VARIABLE: "x"}}, "The job's own configuration travels in it"),
    ],
)
def test_what_a_job_file_may_not_say_is_named_with_its_mend(values: dict[str, Any], told: str, folder: Path) -> None:
    message = refusal(folder, **values)
    assert told in message
    assert "pw@" not in message
    assert "abc" not in message


def test_where_a_secret_lies_is_none(folder: Path) -> None:
    places = {
        "AWS_SHARED_CREDENTIALS_FILE": "/keys",
        "RAY_AUTH_TOKEN_PATH": "/token",
        "TOKENIZERS_PARALLELISM": "false",
    }
    assert task(folder, environment={**places, "OMP_NUM_THREADS": 4}).environment.items() >= places.items()


def test_the_job_says_how_many_workers(folder: Path) -> None:
    def of(**values: Any) -> tuple[int, int | None, str]:
        config = task(folder, **values).config
        assert config is not None
        return config.workers, config.min_workers, config.launcher

    ray = {"launcher": {"name": "ray", "address": "http://head:8265"}}
    assert of() == (1, None, "local")
    assert of(workers_per_node=4) == (4, None, "local")
    assert of(nodes=2, min_nodes=1, gpus_per_node=2) == (4, 2, "ray")
    assert of(**ray) == (1, None, "ray")


def test_a_sweep_has_a_task_for_each_combination(folder: Path) -> None:
    values = {"override.seed": 0, "sweep": {"seed": [1, 2], "optimizer.lr": ["1e-5", 1e-3]}}
    tasks = tasks_of(job(folder, sweep=values["sweep"], override={"optimizer": {"warmup": "2 steps"}}))
    assert [task.name for task in tasks] == ["sky-0", "sky-1", "sky-2", "sky-3"]
    configs = [task.config for task in tasks if task.config is not None]
    assert [(config.optimizer.lr, config.seed) for config in configs] == [(1e-5, 1), (1e-5, 2), (1e-3, 1), (1e-3, 2)]
    assert [config.run for config in configs] == [f"s3://b/run/{number}" for number in range(4)]
    assert {config.optimizer.warmup.amount for config in configs} == {2}
    assert len({task.digest for task in tasks}) == 4
    assert [task.sweep for task in tasks] == ["sky"] * 4


def test_the_command_line_is_above_the_file_however_a_key_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "base.yaml").write_text("override: {optimizer.lr: 1}\nnodes: 2\nlauncher: {name: slurm, account: a}")
    file = folder / "job.yaml"
    file.write_text("extends: base.yaml\nname: sky\nconfig: run.yaml\nsweep: {seed: [1, 2]}")
    (folder / "here").mkdir()
    (folder / "here" / "mine.yaml").write_text(CONFIG)
    monkeypatch.chdir(folder / "here")
    overrides = ["override.optimizer.lr=0.5", "sweep.optimizer.warmup=[1 steps]", "config=mine.yaml", "nodes=3"]
    made = load_job(file, overrides)
    assert made.override == {"optimizer.lr": 0.5}
    assert made.sweep == {"seed": (1, 2), "optimizer.warmup": ("1 steps",)}
    assert (made.config, made.nodes) == (str(folder / "here" / "mine.yaml"), 3)
    assert load_job(file, ["launcher.name=local"]).launcher.model_dump() == {"name": "local"}


def test_the_digest_tells_what_is_computed_and_where(folder: Path) -> None:
    first = task(folder).digest
    for same in ({"priority": "high"}, {"time_limit": "2 h"}, {"max_restarts": 1}, {"secrets": ["TOKEN"]}):
        assert task(folder, **same).digest == first
    others: list[dict[str, Any]] = [
        {"override": {"seed": 1}},
        {"environment": {"A": "b"}},
        {"image": "registry/image"},
        {"workers_per_node": 2},
        {"launcher": {"name": "ray", "address": "http://head:8265"}},
    ]
    assert len({first, *(task(folder, **other).digest for other in others)}) == len(others) + 1


def test_the_digest_does_not_tell_where_the_file_lies(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # The same configuration, in another order and in two files.
    (elsewhere / "base.yaml").write_text("optimizer: {lr: 0.001}\nbatch: {lanes: 4, global_size: 16}")
    (elsewhere / "run.yaml").write_text("extends: base.yaml\nlength: 30 steps\nrun: s3://b/run/\ndata: [s3://b/data]")
    assert task(elsewhere).digest == task(folder).digest


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_job_that_its_engine_takes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_job(path)
    for secret in made.secrets:
        monkeypatch.setenv(secret, "x")
    _engine(made.launcher.name)
    text = queue_at(made.launcher).render(tasks_of(made))
    assert made.name in text
    # Read off the output, one knows what the nodes must have been given.
    assert made.launcher.name == "local" or all(secret in text for secret in made.secrets)
    if made.config is not None:
        # It changes where and how long, and says so where it changes what.
        alone, [of_job, *_] = load_config(Path(made.config), _as_overrides(made)), tasks_of(made)
        assert of_job.config is not None
        assert of_job.config.batch == alone.batch


def test_there_is_an_example_of_every_engine() -> None:
    assert {load_job(path).launcher.name for path in EXAMPLES} == set(LAUNCHERS)
    align = load_job(REPOSITORY / "configs/jobs/slurm-align.yaml")
    assert (align.nodes, align.nodes * align.gpus_per_node) == (2, 16)
    assert str(align.config).endswith("configs/16xH100/align.yaml")


def _as_overrides(made: JobSpec) -> list[str]:
    return [f"{key}={value}" for key, value in made.override.items()]


def _engine(name: str) -> None:
    if find_spec(f"launchers.{name}.queue") is None:
        pytest.skip(f"launchers/{name}/queue.py is not there yet")


NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
# No word of a secret comes of these letters.
VARIABLES = st.text("ABX_", min_size=1, max_size=8).map(lambda name: f"V{name}")
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0$"), max_size=20)
AMOUNTS = {
    "priority": st.sampled_from(["low", "normal", "high"]),
    "nodes": st.sampled_from([1, 2, 4]),
    "gpus_per_node": st.sampled_from([0, 1]),
    # Longer than the notice before it, which Slurm wants.
    "time_limit": st.integers(2, 10_000).map(lambda minutes: f"{minutes} min"),
    "max_restarts": st.integers(0, 1000),
}


REFUSED = {"local": ("nodes",), "ray": ("priority", "time_limit"), "kubernetes": ("time_limit",)}


@st.composite
def job_values(draw: st.DrawFn, launcher: str) -> dict[str, Any]:
    """A job file that the launcher takes."""
    chosen = draw(st.sets(st.sampled_from(sorted(AMOUNTS))))
    amounts = {key: draw(AMOUNTS[key]) for key in sorted(chosen)}
    for key in REFUSED.get(launcher, ()):
        amounts.pop(key, None)
    if launcher == "kubernetes":
        amounts |= {"queue": "research", "image": "registry/image:1", "cpus_per_node": 8, "memory_per_node": "16 GB"}
    values = {
        "name": draw(NAMES),
        "launcher": {"name": launcher, **LAUNCHERS[launcher]},
        "environment": draw(st.dictionaries(VARIABLES, VALUES.filter(lambda text: "://" not in text), max_size=3)),
        "secrets": draw(st.lists(st.sampled_from(["HF_TOKEN", "STORE_KEY", "OTHER"]), unique=True, max_size=3)),
        **amounts,
    }
    if draw(st.booleans()):
        return {**values, "nodes": 1, "command": ["runs", "list", "s3://b/runs"]}
    override: dict[str, Any] = {"seed": draw(st.integers(0, 99)), "optimizer.lr": draw(st.floats(1e-7, 1.0))}
    # Kubernetes takes no run whose MLflow would be a file.
    override["tracking.uri"] = "http://mlflow:5000"
    sweep = draw(st.sampled_from([{}, {"length": ["1 epochs", "2 steps"]}, {"batch.window_shards": [1, 2, 3]}]))
    return {**values, "config": "run.yaml", "override": override, "sweep": sweep}


many = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(data=st.data(), launcher=st.sampled_from(sorted(LAUNCHERS)), seed=st.integers())
def test_a_job_is_the_same_after_it_was_written_down(
    data: st.DataObject, launcher: str, seed: int, folder: Path
) -> None:
    made = job_beside(folder, data.draw(job_values(launcher)))
    items = list(made.model_dump(mode="json").items())
    random.Random(seed).shuffle(items)
    again = job_beside(folder, yaml.safe_load(yaml.safe_dump(dict(items), sort_keys=False)))
    assert again == made
    first, second = tasks_of(made), tasks_of(again)
    assert [(task.name, task.digest, task.limits) for task in first] == [
        (task.name, task.digest, task.limits) for task in second
    ]
    assert len({task.digest for task in first}) == len(first)


@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
@many
@given(data=st.data())
def test_no_value_of_a_secret_is_in_what_is_handed_over(data: st.DataObject, launcher: str, folder: Path) -> None:
    _engine(launcher)
    value = data.draw(st.text(string.ascii_letters + string.digits + "+/", min_size=16, max_size=40), label="secret")
    values = data.draw(job_values(launcher))
    made = job_beside(folder, values)
    tasks = tasks_of(made)
    with pytest.MonkeyPatch.context() as patch:
        for name in made.secrets:
            patch.setenv(name, value)
        text = queue_at(made.launcher).render(tasks)
    assert value not in text
    for one in tasks:
        assert value not in repr(one.environment)
