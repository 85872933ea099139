"""What a RayJob runs, as far as it needs no Ray; the rest is in the system tests."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from astroclip_dist.store import Store
from astroclip_dist.train.holding import hold
from launchers.jobs.task import CONFIG_VARIABLE
from launchers.kubernetes import entrypoint
from launchers.kubernetes.manifest import ARGUMENTS_VARIABLE
from tests.unit.kubernetes_jobs import task, write_run_config


def test_a_start_waits_while_the_pods_of_the_former_one_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Store(tmp_path / "run")
    override = {"run": run.url, "health.preemption_deadline": "30 s"}
    one = task(write_run_config(tmp_path), {"volume": {"name": "surveys"}}, override=override)
    monkeypatch.setenv(CONFIG_VARIABLE, one.environment[CONFIG_VARIABLE])
    monkeypatch.setattr(entrypoint, "_HELD_POLL_S", 0.0)
    now = time.monotonic()
    assert not entrypoint._former_start_still_saves(now)
    with hold(run, "ray", lambda error: None):
        assert entrypoint._former_start_still_saves(now)
        # 30 s and what leaving takes beside: who still holds the run then is no former start.
        assert not entrypoint._former_start_still_saves(now - 51)
    assert not entrypoint._former_start_still_saves(now)


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["config", "show", "/nowhere.yaml"], 2), (["?"], 2)]
)
def test_codes_are_those_of_the_command(arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = []
    monkeypatch.setattr(entrypoint, "_stop_this_job", lambda: stopped.append(True))
    monkeypatch.setenv(ARGUMENTS_VARIABLE, json.dumps(arguments))
    assert entrypoint.main() == code
    assert stopped == [True] * (code != 0)
