"""What is handed to Ray, what is never handed to it, and what its answers mean; a real cluster is in tests/system."""

from __future__ import annotations

import getpass
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from astroclip_dist.errors import ConfigError, StorageError, UserError
from launchers.jobs.places import RayPlace
from launchers.jobs.spec import job_beside
from launchers.jobs.status import JobState
from launchers.jobs.task import Task, tasks_of
from launchers.ray import job_client
from launchers.ray.job import main as run_job
from launchers.ray.job_client import RayJobsClient
from launchers.ray.job_request import request_of, submission_id
from launchers.ray.queue import RayQueue, status_of
from launchers.ray.token import cluster_token

CONFIG = """
data: file:///data
run: file:///run
length: 30 steps
objective: {name: clip}
batch: {global_size: 16, lanes: 4}
optimizer: {lr: 1e-3, warmup: 2 steps}
"""
PLACE = {"name": "ray", "address": "http://head:8265"}


@pytest.fixture(autouse=True)
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def task_of(folder: Path, **values: Any) -> Task:
    config = {} if "command" in values else {"config": "run.yaml"}
    (folder / "run.yaml").write_text(CONFIG)
    return tasks_of(job_beside(folder, {"name": "clip", "launcher": PLACE, **config, **values}))[0]


def test_a_request_says_what_runs_and_names_secrets_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hidden-value")
    task = task_of(tmp_path, nodes=2, secrets=["WANDB_API_KEY"], environment={"A": "it's"}, max_restarts=3)
    request = request_of(task, 4)
    assert request["submission_id"] == submission_id("clip", 4) == f"{getpass.getuser()}-clip-4"
    shell, *words = shlex.split(request["entrypoint"])
    assert shell == "exec"
    assert words[:3] == ["python", "-m", "launchers.ray.job"]
    assert words[words.index("--") + 1 :] == ["train", "env:ASTROCLIP_CONFIG"]
    assert "--max-restarts=3" in words
    variables = request["runtime_env"]["env_vars"]
    assert variables["A"] == "it's"
    assert variables["ASTROCLIP_SECRETS"] == "WANDB_API_KEY"
    assert "workers: 2" in variables["ASTROCLIP_CONFIG"]
    # Longer than the training may take to save, or Ray would kill it meanwhile.
    assert float(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > task.config.health.preemption_deadline  # type: ignore[union-attr]
    assert request["metadata"]["digest"] == task.digest
    assert "hidden-value" not in json.dumps(request)
    # On the head, which only who asks for no room gets.
    assert not [key for key in request if key.startswith("entrypoint_")]
    queue = RayQueue(RayPlace.model_validate(PLACE))
    head, _, body = queue.render([task]).partition("\n")
    assert head == "POST http://head:8265/api/jobs/"
    assert json.loads(body) == request_of(task, 0)


def test_another_command_runs_where_its_room_is_and_no_shell_reads_its_words(tmp_path: Path) -> None:
    words = ["embed", "$(reboot)", "a b; c", "--x=`y`"]
    request = request_of(task_of(tmp_path, command=words, gpus_per_node=1, cpus_per_node=4), 0)
    assert (request["entrypoint_num_cpus"], request["entrypoint_num_gpus"]) == (4, 1)
    shown = request["entrypoint"].replace("exec python -m launchers.ray.job", "printf '%s\\n'")
    # As Ray starts it.
    said = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[said.index("--") + 1 :] == words


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("queue", {"queue": "gpu"}),
        ("priority", {"priority": "high"}),
        ("image", {"image": "astroclip:1"}),
        ("sweep_at_once", {"sweep": {"seed": [1, 2]}, "sweep_at_once": 1}),
        ("cpus_per_node", {"cpus_per_node": 4}),
        ("memory_per_node", {"memory_per_node": "4 GB"}),
        ("environment.A", {"environment": {"A": "$HOME/x"}}),
        ("config", {"override": {"run": "file:///${USER}/run"}}),
    ],
)
def test_what_ray_has_not_is_refused_by_its_field(tmp_path: Path, field: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        request_of(task_of(tmp_path, **values), 0)
    assert raised.value.field == field


def test_ray_starts_no_job_after_others(tmp_path: Path) -> None:
    queue = RayQueue(RayPlace.model_validate(PLACE))
    assert queue.depends is False
    with pytest.raises(ConfigError, match="after"):
        queue.render([task_of(tmp_path)], after=["root-first-0"])


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "ray://head:10001", "http://user:pass@head:8265", "http://h/x"])
def test_an_address_that_is_no_dashboard_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=r"launcher\.address.*http://HEAD:8265") as raised:
        task_of(tmp_path, launcher={"name": "ray", "address": address})
    assert "pass@" not in str(raised.value)


def test_the_token_is_found_where_ray_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("from-home\n")
    (tmp_path / "file").write_text(" from-file \n")
    assert (found := cluster_token()) is not None
    assert found.value == "from-home"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert (found := cluster_token()) is not None
    assert found.value == "from-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-variable")
    assert (found := cluster_token()) is not None
    assert found.value == "from-variable"
    assert "from-variable" not in f"{found!r} {found}"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert cluster_token() is None


@pytest.mark.parametrize("content", [b"", b"two words", b"a\x00b", b"\xff\xfe"])
def test_a_token_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="No such file"):
        cluster_token()
    (tmp_path / "absent").write_bytes(content)
    with pytest.raises(ConfigError, match="token"):
        cluster_token()


@pytest.mark.parametrize(
    ("told", "state", "reason"),
    [
        (
            {"status": "PENDING", "message": "Job has not started yet."},
            JobState.PENDING,
            "PENDING: Job has not started",
        ),
        ({"status": "RUNNING", "message": "Job is currently running."}, JobState.RUNNING, None),
        ({"status": "SUCCEEDED", "message": "x"}, JobState.SUCCEEDED, None),
        ({"status": "STOPPED", "message": "x"}, JobState.CANCELLED, "STOPPED"),
        (
            {
                "status": "FAILED",
                "driver_exit_code": 2,
                "message": "failed, last logs:\nstep 1\nerror: data: x. Mend.\n",
            },
            JobState.FAILED,
            "exit code 2: error: data: x. Mend.",
        ),
        (
            {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "The actor died."},
            JobState.FAILED,
            "JOB_SUPERVISOR_ACTOR_DIED: The actor died.",
        ),
    ],
)
def test_what_ray_says_of_a_job_in_our_words(told: dict[str, Any], state: JobState, reason: str | None) -> None:
    times = {"start_time": 1795360585179, "end_time": 1795360589607 if state.is_over else None}
    status = status_of({**times, "metadata": {"restarts": "2"}, **told})
    assert (status.state, status.restarts) == (state, 2)
    assert (status.reason or "").startswith(reason or "")
    assert (status.reason is None) == (reason is None)
    assert status.submitted == "2026-11-22T15:16:25Z"
    assert status.ended == ("2026-11-22T15:16:29Z" if state.is_over else None)


def test_a_training_without_workers_says_that_it_waits() -> None:
    job = {"status": "RUNNING", "message": "x", "start_time": 1, "end_time": None}
    assert (status_of(job).reason, status_of(job, ["10.0.0.2"]).reason) == (None, None)
    assert "without workers" in (status_of(job, []).reason or "")


class Servers:
    """What listens, and is no Ray.

    Attributes:
        seen: the Authorization headers that it was sent.
    """

    def __init__(self) -> None:
        self.seen: list[str | None] = []
        self._started: list[ThreadingHTTPServer] = []

    def start(self, status: int, headers: dict[str, str], body: bytes) -> str:
        """One more, which gives the same answer to everything; its address."""
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append(self.headers.get("Authorization"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing on the test's output."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self._started.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    def stop(self) -> None:
        for server in self._started:
            server.shutdown()
            server.server_close()


@pytest.fixture
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.stop()


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (401, b"Unauthorized", ConfigError, "RAY_AUTH_TOKEN: no token.*set RAY_AUTH_TOKEN_PATH"),
        (403, b"Forbidden", ConfigError, "wrong token.*set RAY_AUTH_TOKEN_PATH"),
        (404, b"nothing here", StorageError, "No Ray with a jobs API"),
        (500, b"Traceback\n  File\nValueError: no head\n", StorageError, "Ray answers 500: ValueError: no head"),
        (200, b"<html>hello</html>", StorageError, "no Ray dashboard"),
    ],
)
def test_an_answer_that_is_not_rays_is_an_error_with_a_mend(
    servers: Servers, status: int, body: bytes, error: type[UserError], words: str
) -> None:
    with pytest.raises(error, match=words):
        RayJobsClient(servers.start(status, {}, body)).version()


def test_the_token_follows_no_redirection(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden")
    elsewhere = servers.start(200, {}, b"{}")
    with pytest.raises(StorageError, match="Ray answers 302"):
        RayJobsClient(servers.start(302, {"Location": f"{elsewhere}/api/version"}, b"")).version()
    assert servers.seen == ["Bearer hidden"]


def test_who_follows_a_job_that_the_cluster_has_forgotten_is_told(servers: Servers) -> None:
    with pytest.raises(ConfigError, match=r"lost-0.*head was started again.*submit it again"):
        list(RayJobsClient(servers.start(404, {}, b"no such job")).follow_log("lost-0"))


def test_a_dashboard_that_is_away_while_a_log_is_followed_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job_client, "_PATIENCE", 0.3)
    monkeypatch.setattr(job_client, "_PAUSE", 0.05)
    with pytest.raises(StorageError, match="No Ray dashboard answers"):
        list(RayJobsClient("http://127.0.0.1:1").follow_log("some-0"))
    (told,) = caplog.messages
    assert re.match(r"launcher\.address: http://127\.0\.0\.1:1\. No Ray dashboard answers.* Asked again for", told)


def test_a_job_that_has_printed_nothing_has_no_lines(servers: Servers) -> None:
    assert RayJobsClient(servers.start(200, {}, b'{"logs": ""}')).log("silent-0") == []


def test_nobody_listens() -> None:
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:1\. No Ray dashboard answers.*ray_cluster\.py"):
        RayJobsClient("http://127.0.0.1:1").jobs()


def test_a_job_without_its_secrets_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    limits = ["--max-restarts=1", "--stop-within=5"]
    monkeypatch.setenv("ASTROCLIP_SECRETS", "HOME A_SECRET_OF_THIS_TEST")
    assert run_job([*limits, "--", "--version"]) == 2
    assert "secrets: A_SECRET_OF_THIS_TEST. Not in the environment of Ray on" in capfd.readouterr().out
    monkeypatch.setenv("A_SECRET_OF_THIS_TEST", "x")
    assert run_job([*limits, "--", "--version"]) == 0
    # An error of the user's is not tried again.
    assert run_job([*limits, "--", "train", "env:NOTHING_OF_THAT_NAME"]) == 2
    assert "restart" not in capfd.readouterr().out


def test_listing_jobs_does_not_pay_for_ray() -> None:
    modules = "import sys, launchers.ray.queue; print([m for m in ('ray', 'torch', 'aiohttp') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", modules], capture_output=True, text=True).stdout.strip() == "[]"
