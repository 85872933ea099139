"""Real servers for the system tests, started through the same scripts that people use."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

OPS = Path(__file__).resolve().parents[2] / "ops"
Environment = dict[str, str]


def run_ops(script: str, *arguments: str | Path) -> str:
    """Run ``ops/SCRIPT`` and return what it printed."""
    command = [sys.executable, str(OPS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class RealObjectStore:
    """SeaweedFS with its S3 interface.

    Attributes:
        endpoint: URL of the S3 interface.
        pid: the server's process.
        admin, trainer, reader: the AWS_* variables of each identity (endpoint, region, key, secret); the trainer
            reads, writes and lists, the reader only reads and lists, only the admin creates buckets.
        environment: the trainer's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.restart()
        self.admin, self.trainer, self.reader = (self._identity(name) for name in ("admin", "trainer", "reader"))
        self.environment = self.trainer

    def _identity(self, name: str) -> Environment:
        return dict(line.split("=", 1) for line in (self.folder / f"{name}.env").read_text().splitlines())

    def create_bucket(self, name: str) -> str:
        """Returns the bucket's URL."""
        run_ops("object_store.py", "create-bucket", self.folder, name)
        return f"s3://{name}"

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        run_ops("object_store.py", "stop", self.folder, "--grace", "0")

    def restart(self) -> None:
        """Start (again) with the same data, identities and endpoint."""
        self.endpoint = run_ops("object_store.py", "start", self.folder)
        self.pid: int = json.loads((self.folder / "object-store.json").read_text())["pid"]


class RealMlflowServer:
    """MLflow's tracking server on SQLite.

    Attributes:
        uri: what clients take as tracking URI.
        pid: the server's process; its workers are its children.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.restart()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        run_ops("mlflow_server.py", "stop", self.folder, "--grace", "0")

    def restart(self) -> None:
        """Start (again) with the same database and URI."""
        self.uri = run_ops("mlflow_server.py", "start", self.folder)
        self.pid: int = json.loads((self.folder / "mlflow.json").read_text())["pid"]


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealObjectStore]:
    server = RealObjectStore(tmp_path_factory.mktemp("object_store"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMlflowServer]:
    server = RealMlflowServer(tmp_path_factory.mktemp("mlflow_server"))
    yield server
    server.kill()
