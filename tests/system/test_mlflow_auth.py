"""MLflow with logins and artifacts in object storage: who may, who may not, and where no secret goes."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine, text

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.tracking_server import check_tracking
from astroclip_dist.store import Store
from tests.random_survey import write_random_survey
from tests.system.conftest import OPS, Environment, RealObjectStore, run_ops
from tests.system.test_store import use
from tests.system.training_runs import CONFIG, STEPS, run_command, write_config

pytestmark = pytest.mark.slow

LOGIN = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@dataclass(frozen=True)
class GuardedServer:
    """MLflow that asks for a login. Attributes: artifacts: URL."""

    folder: Path
    artifacts: str

    def login(self, user: str) -> Environment:
        """What a client of this user sources."""
        return dict(line.split("=", 1) for line in (self.folder / f"mlflow-{user}.env").read_text().splitlines())

    @property
    def secrets(self) -> list[str]:
        identities = json.loads((self.folder / "mlflow-identities.json").read_text())
        return [identities["secret_key"], *identities["passwords"].values()]


@pytest.fixture(scope="module")
def server(object_store: RealObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    folder = tmp_path_factory.mktemp("guarded_mlflow")
    artifacts = object_store.create_bucket("mlflow") + "/artifacts"
    with pytest.MonkeyPatch.context() as patch:
        use(patch, object_store.trainer)
        run_ops("mlflow_server.py", "start", folder, "--auth", "--artifacts", artifacts)
        yield GuardedServer(folder, artifacts)
        run_ops("mlflow_server.py", "stop", folder, "--grace", "0")


def client(login: Environment, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    for name in LOGIN:
        monkeypatch.delenv(name, raising=False)
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return MlflowClient()


def test_a_training_tracks_with_its_login_and_no_secret_is_written(
    server: GuardedServer, object_store: RealObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_random_survey(str(tmp_path / "data"), 100)
    config = write_config(tmp_path, str(tmp_path / "data"), str(tmp_path / "run"), CONFIG)
    # No credentials of the object storage: artifacts go through the server.
    code, output = run_command(config, "length=8 steps", environment=server.login("trainer"))
    assert code == 0, output
    run_id = json.loads((tmp_path / "run" / "tracking.json").read_text())["run_id"]
    mlflow = client(server.login("trainer"), monkeypatch)
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    assert [point.step for point in mlflow.get_metric_history(run_id, "loss")] == list(range(1, 9))
    use(monkeypatch, object_store.trainer)
    assert [stored.name.split("artifacts/")[-1] for stored in Store(server.artifacts).list()] == ["run.yaml"]
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 4
    log = server.folder / "mlflow.log"
    command_lines = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ()]
    for secret in server.secrets:
        assert secret not in output
        assert not any(secret.encode() in path.read_bytes() for path in [*written, log])
        assert not any(secret in word for word in command_lines)

    # Somebody else's login reads it, and writes nothing into it.
    reader = client(server.login("reader"), monkeypatch)
    assert reader.get_run(run_id).data.metrics["loss"] > 0
    with pytest.raises(MlflowException, match="403"):
        reader.log_metric(run_id, "loss", 0.0, step=STEPS)
    code, output = run_command(config, f"run={tmp_path}/other", environment=server.login("reader"))
    assert code == 2, output
    assert "may not" in output
    assert Store(tmp_path / "other").list() == []


def test_a_wrong_login_is_refused_before_anything_starts(server: GuardedServer, tmp_path: Path) -> None:
    environment = server.login("trainer") | {"MLFLOW_TRACKING_PASSWORD": "not-the-password"}
    write_random_survey(str(tmp_path / "data"), 100)
    config = write_config(tmp_path, str(tmp_path / "data"), str(tmp_path / "run"), CONFIG)
    began = time.monotonic()
    code, output = run_command(config, environment=environment)
    assert code == 2, output
    assert time.monotonic() - began < 60
    assert "MLFLOW_TRACKING_PASSWORD" in output
    assert "not-the-password" not in output
    assert not re.search(r"step \d", output)
    assert Store(tmp_path / "run").list() == []


def test_the_doctor_sees_whether_the_login_is_right(server: GuardedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    login = server.login("reader")
    client(login, monkeypatch)
    (found,) = check_tracking(Context())
    assert (found.state, found.values["version"]) == ("ok", found.values["client_version"])
    client(login | {"MLFLOW_TRACKING_PASSWORD": "not-the-password"}, monkeypatch)
    (found,) = check_tracking(Context())
    assert (found.state, found.what) == ("problem", f"MLflow at {login['MLFLOW_TRACKING_URI']} refuses the login")


def test_logins_stay_and_are_their_owners_alone(server: GuardedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {path.name: path.read_text() for path in server.folder.glob("mlflow-*.env")}
    assert set(kept) == {"mlflow-admin.env", "mlflow-trainer.env", "mlflow-reader.env"}
    trainer = client(server.login("trainer"), monkeypatch)
    run_id = trainer.create_run(trainer.create_experiment("restarted")).info.run_id
    trainer.log_text(run_id, "kept", "note.txt")
    run_ops("mlflow_server.py", "stop", server.folder)
    # A folder with logins must not be thrown open, nor its artifacts be lost, by words that somebody forgot.
    run_ops("mlflow_server.py", "start", server.folder)
    assert [stored.path for stored in trainer.list_artifacts(run_id)] == ["note.txt"]
    assert {path.name: path.read_text() for path in server.folder.glob("mlflow-*.env")} == kept
    for path in server.folder.glob("mlflow*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    anybody = client({"MLFLOW_TRACKING_URI": server.login("reader")["MLFLOW_TRACKING_URI"]}, monkeypatch)
    with pytest.raises(MlflowException, match="401"):
        anybody.search_experiments()
    assert client(server.login("reader"), monkeypatch).search_experiments()


@pytest.fixture
def postgres() -> Iterator[str]:
    """URI of a real PostgreSQL that asks for a password."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs or os.geteuid() != 0:
        pytest.skip("needs PostgreSQL (Debian package postgresql), and root, to start it as another user")
    pytest.importorskip("psycopg")
    password, port = secrets.token_urlsafe(20), socket.create_server(("127.0.0.1", 0)).getsockname()[1]
    # Not pytest's own folder, which is root's alone.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    (folder / "password").write_text(password)
    shutil.chown(folder, "nobody", "nogroup")
    shutil.chown(folder / "password", "nobody")

    def control(*arguments: str) -> None:
        command = [programs[-1], "-D", folder / "data", *arguments]
        subprocess.run(command, user="nobody", cwd=folder, check=True, timeout=60, stdout=subprocess.DEVNULL)

    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control("initdb", "-o", f"--username=mlflow --auth=scram-sha-256 --pwfile={folder}/password")
    control("start", "-w", "-l", str(folder / "log"), "-o", settings)
    try:
        yield f"postgresql://mlflow:{password}@127.0.0.1:{port}/postgres"
    finally:
        control("stop", "-m", "immediate")
        shutil.rmtree(folder)


def test_runs_are_kept_in_a_database_whose_password_nobody_sees(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", postgres)
    uri = run_ops("mlflow_server.py", "start", tmp_path)
    try:
        mlflow = client({"MLFLOW_TRACKING_URI": uri}, monkeypatch)
        run = mlflow.create_run(mlflow.create_experiment("kept"))
        mlflow.log_metric(run.info.run_id, "loss", 0.5)
        assert not (tmp_path / "mlflow.db").exists()
        with create_engine(postgres).connect() as database:
            assert database.execute(text("select value from metrics")).scalars().all() == [0.5]
        password = urlsplit(postgres).password
        assert password is not None
        assert password not in (tmp_path / "mlflow.log").read_text()
        words = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ()]
        assert not any(password in word for word in words)
    finally:
        run_ops("mlflow_server.py", "stop", tmp_path, "--grace", "0")


@pytest.mark.parametrize(
    ("database", "said"),
    [("a-database", "is no database"), ("no-such-engine://me:word-of-mine@host/x", "is no database")],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(database: str, said: str, tmp_path: Path) -> None:
    started = subprocess.run(
        [sys.executable, OPS / "mlflow_server.py", "start", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "MLFLOW_BACKEND_STORE_URI": database},
        timeout=60,
    )
    assert started.returncode == 1
    assert said in started.stderr
    assert "word-of-mine" not in started.stderr
