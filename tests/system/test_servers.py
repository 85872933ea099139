"""The scripts that start real servers, used as a person would."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import OPS, RealObjectStore


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        yield stranger.getsockname()[1]


@pytest.mark.parametrize("script", ["object_store.py", "mlflow_server.py"])
def test_a_port_of_somebody_else_is_an_error(script: str, taken_port: int, tmp_path: Path) -> None:
    command = [sys.executable, OPS / script, "start", tmp_path, "--port", str(taken_port)]
    started = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert started.returncode == 1
    assert "address already in use" in started.stderr
    stopped = subprocess.run([sys.executable, OPS / script, "stop", tmp_path], capture_output=True, text=True)
    assert stopped.stdout.strip() == "was not running"


def test_a_second_start_is_refused_and_the_first_goes_on(object_store: RealObjectStore) -> None:
    command = [sys.executable, OPS / "object_store.py", "start", object_store.folder]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert "runs already" in again.stderr
    object_store.create_bucket("still-there")


def test_secrets_are_readable_by_their_owner_only_and_not_logged(object_store: RealObjectStore) -> None:
    for name in ("admin.env", "trainer.env", "reader.env", "identities.json"):
        assert stat.S_IMODE((object_store.folder / name).stat().st_mode) == 0o600
    log = (object_store.folder / "object-store.log").read_text(errors="replace")
    for identity in (object_store.admin, object_store.trainer, object_store.reader):
        assert identity["AWS_SECRET_ACCESS_KEY"] not in log
