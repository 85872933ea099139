"""The object storage of a run goes away for a while: the run waits, goes on, and ends as if nothing had happened."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from astroclip_dist.store import Store
from tests.random_survey import write_random_survey
from tests.system.conftest import RealObjectStore
from tests.system.training_runs import STEPS, Command, event, events, result, saves, undisturbed, write_config

OUTAGE_S = 60.0
SHORT_OUTAGE_S = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealObjectStore]:
    """A server of this module alone: it is stopped while others use theirs."""
    server = RealObjectStore(tmp_path_factory.mktemp("failing_object_store"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The result of a run that nothing disturbs, on a local disk."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base / 'training.db'}")
        return undisturbed(base)[1]


@pytest.fixture
def bucket(
    server: RealObjectStore, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A bucket with the same dataset as ``undisturbed`` has; the server runs before and after."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.getbasetemp() / 'training.db'}")
    url = server.create_bucket("outages")
    if not Store(f"{url}/survey").exists("manifest.json"):
        write_random_survey(f"{url}/survey", 100)
    yield url
    if not psutil.pid_exists(server.pid):
        server.restart()


def stop_for(server: RealObjectStore, seconds: float) -> None:
    """SIGKILL the server, and start it again later with what it had acknowledged."""
    server.kill()
    time.sleep(seconds)
    server.restart()


def in_training(command: Command, server: RealObjectStore, seconds: float) -> None:
    command.wait_for("step 7/30")
    stop_for(server, seconds)


def in_a_save(command: Command, server: RealObjectStore, seconds: float) -> None:
    """The server takes the first requests of a save and never answers them."""
    command.wait_for("step 9/30")
    psutil.Process(server.pid).suspend()
    time.sleep(2)
    stop_for(server, seconds)


def in_a_resume(command: Command, server: RealObjectStore, seconds: float) -> None:
    """The server is away before the new workers ask it for anything, and longer than they take to start."""
    command.kill_worker(0, at="step 17/30")
    stop_for(server, seconds)


def trained(server: RealObjectStore, bucket: str, folder: Path, disturb: Callable[[Command], None]) -> dict[str, str]:
    """The result of a run on object storage during which something happens."""
    run = f"{bucket}/runs/{folder.name}"
    command = Command(write_config(folder, f"{bucket}/survey", run))
    disturb(command)
    assert command.finish() == 0, command.output
    assert "Traceback" not in command.output
    told = events(run)
    assert (told[0], told[-1]) == (("started", 0), ("finished", STEPS))
    return result(run)


@pytest.mark.slow
@pytest.mark.parametrize("when", [in_training, in_a_save])
def test_an_outage_is_waited_for(
    when: Callable[[Command, RealObjectStore, float], None],
    server: RealObjectStore,
    bucket: str,
    expected: dict[str, str],
    tmp_path: Path,
) -> None:
    assert trained(server, bucket, tmp_path, lambda command: when(command, server, OUTAGE_S)) == expected
    # No worker died of it, and no save was left out.
    told = events(f"{bucket}/runs/{tmp_path.name}")
    assert told == [("started", 0), *saves(5, STEPS), ("finished", STEPS)]


@pytest.mark.slow
def test_a_run_that_restarts_during_an_outage_goes_on_after_it(
    server: RealObjectStore, bucket: str, expected: dict[str, str], tmp_path: Path
) -> None:
    assert trained(server, bucket, tmp_path, lambda command: in_a_resume(command, server, OUTAGE_S)) == expected
    (resumed,) = event(f"{bucket}/runs/{tmp_path.name}", "resumed")
    assert resumed["step"] == 15


@pytest.mark.slow
def test_short_outages_in_a_save_and_in_a_resume_change_nothing(
    server: RealObjectStore, bucket: str, expected: dict[str, str], tmp_path: Path
) -> None:
    def both(command: Command) -> None:
        command.wait_for("step 9/30")
        server_process = psutil.Process(server.pid)
        server_process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        command.kill_worker(1, at="step 9/30")
        stop_for(server, SHORT_OUTAGE_S)

    assert trained(server, bucket, tmp_path, both) == expected
    assert [entry["step"] for entry in event(f"{bucket}/runs/{tmp_path.name}", "resumed")] in ([5], [10])
