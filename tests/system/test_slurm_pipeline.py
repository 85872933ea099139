"""The three stages, embeddings and report as jobs of a real Slurm, each after those it needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.system.slurm_cluster import SlurmCluster, astroclip, small_slurm
from tests.system.tiny_pipeline import AFTER, write_pipeline, write_survey
from tests.system.training_runs import event, events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
VARIABLES = ("OMP_NUM_THREADS: '1'", "CUDA_VISIBLE_DEVICES: ''")


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with small_slurm(2) as cluster:
        yield cluster


def test_the_stages_of_a_pipeline_wait_for_one_another(cluster: SlurmCluster) -> None:
    folder = cluster.folder / "pipeline"
    folder.mkdir()
    write_survey(folder)
    place = {"name": "slurm", "folder": str(cluster.jobs), "notice": "80 s", "python": sys.executable}
    path = write_pipeline(folder, place)
    tracking = f"MLFLOW_TRACKING_URI: 'sqlite:///{folder / 'mlflow.db'}'"
    environment = f"defaults.environment={{{', '.join((*VARIABLES, tracking))}}}"
    # All of a node each: what could start beside another has to wait for nothing but its turn.
    astroclip("jobs", "submit", path, environment, "defaults.cpus_per_node=8")
    ids = {key: cluster.id_of(f"tiny-{key}") for key in AFTER}
    for key, before in AFTER.items():
        wanted = {f"afterok:{ids[other]}" for other in before}
        told = cluster.slurm("squeue", "-h", "-j", ids[key], "-o", "%E").strip()
        assert {word.partition("(")[0] for word in told.split(",") if word != "(null)"} == wanted
    last = cluster.wait_for("tiny-align", lambda told: told["state"] != "pending" or told["reason"])
    assert last["state"] == "pending"
    assert "Dependency" in last["reason"]
    for key in AFTER:
        told = cluster.wait_for_state(f"tiny-{key}", "succeeded")
        assert told["restarts"] == 0
        for other in AFTER[key]:
            assert told["started"] >= cluster.status(f"tiny-{other}")["ended"]
    for run in ("image", "spectrum", "align"):
        assert events(folder / "out" / run)[0] == ("started", 0)
        assert events(folder / "out" / run)[-1] == ("finished", 4)
    assert not event(folder / "out" / "align", "resumed")
    assert json.loads((folder / "out" / "results.json").read_text())["lineage"]["objective"] == "clip"
