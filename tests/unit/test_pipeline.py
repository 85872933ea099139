"""Pipelines: what a file means, what is refused, and what is handed over when."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from astroclip_dist.errors import ConfigError
from launchers.jobs import pipeline as pipelines
from launchers.jobs.desk import JobDesk
from launchers.jobs.pipeline import Pipeline, StageFailedError, load_pipeline, render_pipeline, submit_pipeline
from launchers.jobs.records import JobRecords
from launchers.jobs.spec import load_job
from launchers.jobs.status import JobState, JobStatus
from launchers.jobs.task import Task
from tests.conftest import REPOSITORY

TRAINING = "{data: unused, run: unused, length: 1 steps, batch: {global_size: 8}, optimizer: {lr: 1e-3}}"
STAGES = """
name: survey
values: {out: /out, memory: 2}
defaults:
  launcher: {name: local}
  environment: {OUT: "${out}"}
  override: {data: "${out}/data"}
jobs:
  embed: {after: align, command: [embed, "${out}/align", "${out}/data", "${out}/embeddings"]}
  align: {after: [image, spectrum], config: training.yaml, override: {run: "${out}/align"}}
  image: {config: training.yaml, override: {run: "${out}/image"}, cpus_per_node: "${memory}"}
  spectrum: {config: training.yaml, override: {run: "${out}/spectrum"}, priority: low}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "training.yaml").write_text(TRAINING)
    (tmp_path / "stages.yaml").write_text(STAGES)
    monkeypatch.setenv("ASTROCLIP_JOBS", str(tmp_path / "jobs"))
    return tmp_path


def load(folder: Path, text: str, *overrides: str) -> Pipeline:
    (folder / "pipeline.yaml").write_text(text)
    return load_pipeline(folder / "pipeline.yaml", overrides)


def test_a_file_means_jobs_in_the_order_in_which_they_can_run(folder: Path) -> None:
    pipeline = load(folder, STAGES)
    assert [stage.key for stage in pipeline.stages] == ["image", "spectrum", "align", "embed"]
    assert [stage.task_names for stage in pipeline.stages] == [
        ["survey-image"],
        ["survey-spectrum"],
        ["survey-align"],
        ["survey-embed"],
    ]
    assert pipeline.stage("align").after == ("image", "spectrum")
    image, embed = pipeline.stage("image"), pipeline.stage("embed")
    assert image.tasks[0].run == "file:///out/image"
    assert image.tasks[0].config is not None
    assert image.tasks[0].config.data == ("file:///out/data",)
    assert image.job.cpus_per_node == 2
    assert image.job.environment == {"OUT": "/out"}
    assert pipeline.stage("spectrum").job.priority == "low"
    # What only trainings have is no default of a command.
    assert embed.tasks[0].arguments == ("embed", "/out/align", "/out/data", "/out/embeddings")


def test_the_command_line_and_files_that_extend_others_are_stronger(folder: Path) -> None:
    text = "extends: stages.yaml\njobs: {image: {time_limit: 1 h}}"
    pipeline = load(folder, text, "values.out=s3://b/x", "defaults.launcher={name: slurm}", "jobs.image.nodes=2")
    image = pipeline.stage("image")
    assert (image.tasks[0].run, image.job.time_limit, image.job.nodes) == ("s3://b/x/image", 3600, 2)
    assert {stage.job.launcher.name for stage in pipeline.stages} == {"slurm"}


@pytest.mark.parametrize(
    ("override", "field", "words"),
    [
        ("jobs.align.after=[imge]", "jobs.align.after", "Did you mean 'image'"),
        ("jobs.align.after=3", "jobs.align.after", "list"),
        ("jobs.image.after=embed", "after", "Each of these jobs waits for the next one"),
        ("jobs.image.after=image", "after", "image -> image"),
        ("jobs.image.override.run=${ouut}/x", "jobs.image.override.run", "Did you mean 'out'"),
        ("values.unused=1", "values.unused", "Nothing refers to it"),
        ("values.out=${memory}", "values.out", "cannot refer"),
        ("values.out=[1, 2]", "values.out", "one text or number"),
        ("jobs.image.name=mine", "jobs.image.name", "survey-image"),
        ("jobs.image.nodess=2", "jobs.image.nodess", "Did you mean 'nodes'"),
        ("jobs.image.override.lenght=2", "jobs.image.lenght", "Did you mean 'length'"),
        ("jobs.other={}", "jobs.other.config", "Give either"),
        ("jobs.embed.config=training.yaml", "jobs.embed.config", "either"),
        ("jobs.Image={command: [embed]}", "jobs.Image.name", "lower-case"),
        ("jobs.image.sweep={optimizer.lr: [1e-3]}", "jobs.image-0", ""),
        ("default={}", "default", "Did you mean 'defaults'"),
        ("name=A", "name", "lower-case"),
        ("jobs=[]", "jobs", ""),
    ],
)
def test_what_is_wrong_is_told_by_its_field(folder: Path, override: str, field: str, words: str) -> None:
    text = STAGES
    if "sweep" in override:
        text += "  image-0: {command: [embed, a, b, c]}\n"
    with pytest.raises(ConfigError) as told:
        load(folder, text, override)
    assert told.value.field == field
    assert words in str(told.value)


def test_the_pipelines_of_this_repository_load(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = load_pipeline(REPOSITORY / "configs/pipelines/demo.yaml")
    assert {stage.job.launcher.name for stage in demo.stages} == {"local"}
    evaluate = demo.stages[-1].tasks[0].arguments
    assert evaluate[:2] == ("evaluate", "demo/pipeline/embeddings/align")
    paper = load_pipeline(REPOSITORY / "configs/pipelines/paper.yaml", ["values.out=/shared/runs"])
    sizes = {stage.key: (stage.job.nodes, stage.job.gpus_per_node) for stage in paper.stages}
    assert sizes == {"image": (2, 8), "spectrum": (1, 4), "align": (1, 1), "embed": (1, 1), "evaluate": (1, 0)}
    for stage, workers in (("image", 16), ("spectrum", 4), ("align", 1)):
        [task] = paper.stage(stage).tasks
        assert task.config is not None
        assert task.config.workers == workers
        assert task.run == f"file:///shared/runs/{stage}"


def test_job_files_of_this_repository_have_names_of_their_own() -> None:
    alone = [load_job(path).name for path in (REPOSITORY / "configs/jobs").glob("*.yaml")]
    stages = [
        name
        for path in (REPOSITORY / "configs/pipelines").glob("*.yaml")
        for stage in load_pipeline(path).stages
        for name in stage.task_names
    ]
    assert len(stages) > len(alone) > 3
    assert len({*alone, *stages}) == len(alone) + len(stages)


def test_every_part_of_a_pipeline_parses_as_a_command() -> None:
    from astroclip_dist.cli import _parser

    for name in ("demo", "paper"):
        for stage in load_pipeline(REPOSITORY / f"configs/pipelines/{name}.yaml").stages:
            _parser().parse_args(stage.tasks[0].arguments)


def test_a_dry_run_shows_all_and_writes_nothing(folder: Path) -> None:
    text = render_pipeline(load(folder, STAGES))
    assert text.index("# image") < text.index("# spectrum") < text.index("# align, after image, spectrum")
    assert "ID-OF-survey-image" in text
    assert "/out/embeddings" in text
    assert not (folder / "jobs").exists()


class Engine:
    """Takes jobs and remembers them; the test says how they go. It cannot wait for other jobs."""

    depends = False

    def __init__(self) -> None:
        self.states: dict[str, JobState] = {}
        self.after: dict[str, tuple[str, ...]] = {}

    def check(self, tasks: Sequence[Task]) -> None:
        pass

    def submit(self, tasks: Sequence[Task], attempt: int, after: Sequence[str] = ()) -> tuple[str, ...]:
        for task in tasks:
            self.states[f"{task.name}.{attempt}"] = JobState.RUNNING
            self.after[task.name] = tuple(after)
        return tuple(f"{task.name}.{attempt}" for task in tasks)

    def find(self, name: str, attempt: int) -> str | None:
        return None

    def release(self, ids: Sequence[str]) -> None:
        pass

    def statuses(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        return {job_id: JobStatus(self.states[job_id]) for job_id in ids}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr("launchers.jobs.desk.queue_at", lambda place: engine)
    monkeypatch.setattr("launchers.jobs.pipeline.queue_at", lambda place: engine)
    return engine


def names(submissions: Sequence[pipelines.Submission]) -> list[str]:
    return [submission.record.name.removeprefix("survey-") for submission in submissions]


def test_without_dependencies_of_the_engine_the_same_command_hands_over_what_is_ready(
    folder: Path, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pipeline, desk = load(folder, STAGES), JobDesk(JobRecords())
    for _ in range(2):
        assert names(submit_pipeline(desk, pipeline, wait=False)) == ["image", "spectrum"]
        assert "left: align, embed" in caplog.text
    engine.states["survey-image.0"] = JobState.SUCCEEDED
    assert names(submit_pipeline(desk, pipeline, wait=False)) == ["image", "spectrum"]
    engine.states["survey-spectrum.0"] = JobState.SUCCEEDED
    submissions = submit_pipeline(desk, pipeline, wait=False)
    assert [submission.is_new for submission in submissions] == [False, False, True]
    assert engine.after["survey-align"] == ()
    assert {job.record.pipeline for job in desk.jobs()} == {"survey"}


def test_whoever_waits_hands_over_the_rest_and_names_the_one_that_fails(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, desk = load(folder, STAGES), JobDesk(JobRecords())
    ends = iter([("image", "succeeded"), ("spectrum", "succeeded"), ("align", "failed")])

    def one_ends(seconds: float) -> None:
        key, state = next(ends)
        engine.states[f"survey-{key}.0"] = JobState(state)

    monkeypatch.setattr(pipelines.time, "sleep", one_ends)
    with pytest.raises(StageFailedError, match=r"job survey-align: failed.*same command goes on") as told:
        submit_pipeline(desk, pipeline, wait=True)
    assert told.value.exit_code == 1
    assert "survey-embed.0" not in engine.states
    # Again: what has succeeded is left alone, what has failed is tried once more.
    rest = iter(["survey-align.1", "survey-embed.0"])
    monkeypatch.setattr(pipelines.time, "sleep", lambda seconds: engine.states.update({next(rest): JobState.SUCCEEDED}))
    submissions = submit_pipeline(desk, pipeline, wait=True)
    assert names(submissions) == ["image", "spectrum", "align", "embed"]
    assert [submission.is_new for submission in submissions] == [False, False, True, True]


def test_an_engine_that_can_wait_gets_all_at_once(folder: Path, engine: Engine) -> None:
    engine.depends = True
    pipeline, desk = load(folder, STAGES), JobDesk(JobRecords())
    assert names(submit_pipeline(desk, pipeline, wait=False)) == ["image", "spectrum", "align", "embed"]
    assert engine.after["survey-align"] == ("survey-image.0", "survey-spectrum.0")
    assert engine.after["survey-embed"] == ("survey-align.0",)
