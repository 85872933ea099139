"""Who holds a run: kernel locks on a real file system, leases on a real S3 server, real launchers that meet."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from astroclip_dist.store import Store
from astroclip_dist.train.holding import HOLDER_FILE, hold, holder
from astroclip_dist.train.holding.holder import HeldError, Holder
from astroclip_dist.train.holding.lease import EXPIRY, Lease, LeaseContent
from tests.random_survey import write_random_survey
from tests.system.conftest import RealObjectStore
from tests.system.fault_proxy import FaultProxy
from tests.system.training_runs import CONFIG, Command, event, run_command, write_config

# Seconds between renewals: short enough for tests, long enough for a server on a busy machine.
RENEWAL_S = 0.75
HOLD_UNTIL_KILLED = """
import sys, time
from astroclip_dist.store import Store
from astroclip_dist.train.holding import hold
with hold(Store(sys.argv[1]), "local", print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def bucket(object_store: RealObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return object_store.create_bucket("holding")


@pytest.fixture(params=["file", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty run folder."""
    if request.param == "file":
        return Store(tmp_path / "a run")
    return Store(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def never(error: HeldError) -> None:
    raise AssertionError(error)


def elsewhere(name: str) -> Holder:
    """A holder on another machine, whose wall clock is wrong by centuries."""
    return Holder.this_process("ray").model_copy(
        update={"host": name, "machine": name, "since": "2526-01-01T00:00:00Z"}
    )


@contextmanager
def process_that_holds(run: Store) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD_UNTIL_KILLED, run.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_run_has_one_holder_who_is_named_and_leaves_nothing(run: Store) -> None:
    assert holder(run) is None
    with process_that_holds(run) as process:
        found = holder(run)
        assert found is not None
        assert (found.pid, found.launcher) == (process.pid, "local")
        with pytest.raises(HeldError, match=rf"is held by the local launcher on \S+, process {process.pid}, since 2"):
            ExitStack().enter_context(hold(run, "local", never))
        process.kill()
        # Dead, though its parent has not yet taken notice of it: free at once.
        began = time.monotonic()
        with hold(run, "ray", never):
            assert time.monotonic() - began < 3
            assert str(holder(run)).startswith("the ray launcher on ")
    assert holder(run) is None
    assert run.list() == []


def test_of_many_who_start_at_once_one_wins(run: Store) -> None:
    with process_that_holds(run) as process:
        process.kill()
        process.wait()
        gate, over = threading.Barrier(8), threading.Barrier(8)

        def start() -> bool:
            gate.wait()
            with ExitStack() as held:
                try:
                    held.enter_context(hold(run, "local", never))
                except HeldError:
                    won = False
                else:
                    won = True
                over.wait(30)
                return won

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda _: start(), range(8))) == 1


def test_a_process_that_has_the_pid_of_a_dead_holder_is_not_it() -> None:
    here = Holder.this_process("local")
    assert not here.is_dead
    assert here.model_copy(update={"started": here.started - 1}).is_dead
    assert not elsewhere("far").model_copy(update={"pid": 2**22 + 1}).is_dead


def test_the_lock_outlives_whoever_looks_at_it(tmp_path: Path) -> None:
    run = Store(tmp_path)
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            holder(run)

    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(look) for _ in range(2)]
        for _ in range(100):
            with hold(run, "local", never):
                pass
        over.set()
        assert [watcher.result() for watcher in watching] == [None, None]


def test_a_lease_that_is_renewed_is_not_taken_and_one_that_is_not_is_taken_after_its_time(bucket: str) -> None:
    run = Store(f"{bucket}/renewed")
    with Lease(run, HOLDER_FILE, elsewhere("first"), RENEWAL_S).held(never):
        before = run.read(HOLDER_FILE)
        with pytest.raises(HeldError, match="the ray launcher on first"):
            ExitStack().enter_context(Lease(run, HOLDER_FILE, elsewhere("second"), RENEWAL_S).held(never))
        assert run.read(HOLDER_FILE) != before
    assert not run.exists(HOLDER_FILE)

    run.put(HOLDER_FILE, LeaseContent(holder=elsewhere("dead"), token="1", renewals=3).model_dump_json().encode())
    named = holder(run)
    assert named is not None
    assert named.host == "dead"
    began = time.monotonic()
    with Lease(run, HOLDER_FILE, elsewhere("second"), RENEWAL_S).held(never):
        assert time.monotonic() - began > EXPIRY * RENEWAL_S


def test_a_holder_that_was_too_slow_finds_out(bucket: str) -> None:
    run = Store(f"{bucket}/slow")
    lost: list[HeldError] = []
    with Lease(run, HOLDER_FILE, elsewhere("slow"), RENEWAL_S).held(lost.append):
        other = LeaseContent(holder=elsewhere("quick"), token="other", renewals=0)
        run.put(HOLDER_FILE, other.model_dump_json().encode())
        deadline = time.monotonic() + 20 * RENEWAL_S
        while not lost and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "is held by the ray launcher on quick" in str(lost[0])
    # Leaving, it does not take away what is not its own any more.
    assert LeaseContent.parse(run.read(HOLDER_FILE)) == other


@pytest.mark.slow
def test_a_hold_survives_lost_answers_and_an_outage_that_nobody_can_see_through(
    bucket: str, object_store: RealObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(object_store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        run = Store(f"{bucket}/outage")
        with Lease(run, HOLDER_FILE, elsewhere("first"), RENEWAL_S).held(never):
            # Written, but the answer comes when nobody waits for it any more.
            proxy.inject("delay", method="PUT", count=2, seconds=2 * RENEWAL_S)
            time.sleep(6 * RENEWAL_S)
            assert proxy.counts["delay"] == 2
            proxy.outage(seconds=2 * EXPIRY * RENEWAL_S)
            time.sleep(2 * EXPIRY * RENEWAL_S)
            with pytest.raises(HeldError):
                ExitStack().enter_context(Lease(run, HOLDER_FILE, elsewhere("second"), RENEWAL_S).held(never))
        assert not run.exists(HOLDER_FILE)


SMALL = CONFIG.replace("workers: 2", "workers: 1").replace("width: 128, depth: 3", "width: 32, depth: 1")
LONG = SMALL.replace("length: 30 steps", "length: 100000 steps")


def test_the_second_launcher_of_a_run_is_told_who_has_it_and_a_second_ctrl_c_ends_the_first(tmp_path: Path) -> None:
    write_random_survey(str(tmp_path / "data"), 48)
    run = tmp_path / "run"
    config = write_config(tmp_path, str(tmp_path / "data"), str(run), LONG)
    command = Command(config)
    command.wait_for("started at step 0")
    code, output = run_command(config, "launcher=ray", "workers=2")
    assert code == 1
    assert re.match(
        rf"error: run: {run.as_uri()} is held by the local launcher on .*, process {command.process.pid}, ", output
    )
    assert len(output.splitlines()) == 1
    (worker,) = command.workers().values()
    worker.suspend()
    command.process.send_signal(signal.SIGINT)
    command.wait_for("SIGINT: the workers save and leave")
    assert command.process.poll() is None
    command.process.send_signal(signal.SIGINT)
    assert command.finish() == 130
    assert event(run, "preempted") == []
    assert holder(Store(run)) is None


@pytest.mark.slow
def test_a_launcher_that_has_lost_its_lease_ends_with_its_workers(bucket: str, tmp_path: Path) -> None:
    write_random_survey(f"{bucket}/survey", 48)
    run = f"{bucket}/lost"
    (tmp_path / "mlflow").mkdir()
    uri = f"tracking.uri=sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    command = Command(write_config(tmp_path, f"{bucket}/survey", run, LONG), uri)
    command.wait_for("started at step 0")
    other = LeaseContent(holder=elsewhere("quick"), token="other", renewals=0)
    Store(run).put(HOLDER_FILE, other.model_dump_json().encode())
    assert command.finish() == 1
    assert f"error: run: {run} is held by the ray launcher on quick" in command.lines[-1]
    assert event(run, "preempted") == []
