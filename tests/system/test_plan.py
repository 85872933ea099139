"""A plan against the truth: a real run's steps and checkpoints, a real server's bytes, recipes, its own proposals."""

from __future__ import annotations

import json
import re
import shlex
import threading
from itertools import islice
from pathlib import Path

import pytest

from astroclip_dist.cli import main
from astroclip_dist.config import load_config
from astroclip_dist.data.ordering.mixture import order_of
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.stream import Stream
from astroclip_dist.plan.assumptions import Assumptions
from astroclip_dist.plan.lengths import data_size, layouts_of, open_data, run_steps
from astroclip_dist.plan.storage import reads_of
from astroclip_dist.store import Store
from astroclip_dist.train.checkpoint import describe
from astroclip_dist.train.weights import WEIGHTS_FILE
from tests.conftest import REPOSITORY
from tests.random_survey import write_random_survey
from tests.system.conftest import RealObjectStore
from tests.system.test_store import use
from tests.system.training_runs import CONFIG, STEPS, event, events, run_command, write_config
from tests.unit.test_recipes import command_of

pytestmark = pytest.mark.slow


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    code = main(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_real_run_has_the_steps_and_the_checkpoints_of_its_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_random_survey(str(tmp_path / "data"), 100)
    text = CONFIG.replace("length: 30 steps", "length: 5 epochs")
    path = write_config(tmp_path, str(tmp_path / "data"), str(tmp_path / "run"), text)
    code, planned = plan(capsys, str(path))
    assert code == 0
    code, output = run_command(path)
    assert code == 0, output
    happened = events(tmp_path / "run")
    assert planned["steps"] == STEPS
    assert happened[-1] == ("finished", planned["steps"])
    assert planned["epochs"] == 5
    assert planned["checkpoint"]["count"] == len(event(tmp_path / "run", "saved"))
    stored = describe(Store(tmp_path / "run"))
    assert planned["checkpoint"]["kept"] == len(stored)
    for checkpoint in stored:
        assert planned["checkpoint"]["bytes"] == pytest.approx(checkpoint.bytes, rel=0.01)
    left = sum(checkpoint.bytes for checkpoint in stored) + (tmp_path / "run" / WEIGHTS_FILE).stat().st_size
    assert planned["checkpoint"]["left_bytes"] == pytest.approx(left, rel=0.01)
    # On this machine's disk: nothing is fetched, and the plan says so.
    assert planned["read_bytes"] == 0


def test_an_epoch_from_object_storage_reads_what_was_planned(
    object_store: RealObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = object_store.create_bucket("plan-tests")
    use(monkeypatch, object_store.trainer)
    url = f"{bucket}/survey"
    write_random_survey(url, 960, samples_per_shard=120)
    config = load_config(
        write_config(tmp_path, url, str(tmp_path / "run"), CONFIG), ["length=1 epochs", "batch.global_size=40"]
    )
    opened = open_data(config)
    assert opened is not None
    size = data_size(config, opened, ["image", "spectrum"], layouts_of(opened), Assumptions({}))
    steps = run_steps(config, opened, size)
    planned = reads_of(config, steps, size, nodes=1).bytes
    fetched, lock = 0, threading.Lock()

    def counting(original):  # type: ignore[no-untyped-def]
        def read(self: Store, *arguments: object) -> memoryview | bytes:
            nonlocal fetched
            data = original(self, *arguments)
            with lock:
                fetched += len(data)
            return data

        return read

    dataset = Dataset.open([url], ["train"])
    batch = config.batch
    order = order_of(dataset, seed=7, lanes=batch.lanes, global_batch=batch.global_size, window_shards=1)
    monkeypatch.setattr(Store, "read_range", counting(Store.read_range))
    monkeypatch.setattr(Store, "read", counting(Store.read))
    for rank in range(2):
        with Stream(
            dataset, order, ("image", "spectrum"), rank=rank, world_size=2, cursor=Cursor(), steps=steps.total
        ) as stream:
            assert len(list(islice(stream, steps.total))) == steps.total
    # Lanes end within shards, whose indices are then read by two ranks; headers at both ends of a span are not read.
    assert planned == pytest.approx(fetched, rel=0.03)


RECIPES = [
    path.relative_to(REPOSITORY / "configs").as_posix()
    for family in ("16xH100", "paper", "upstream")
    for path in sorted((REPOSITORY / "configs" / family).glob("*.yaml"))
]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_planned_without_their_data(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, planned = plan(capsys, str(REPOSITORY / "configs" / name), *command_of(name))
    assert code == 0
    assert planned["fits"]
    assert [need["engine"].split(",")[0] for need in planned["memory"]].count("deepspeed") == 3
    assert 0 < planned["hours"] < 1000
    # The table of the docs has these very numbers.
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", (REPOSITORY / "docs" / "plan.md").read_text(), re.MULTILINE)
    memory, steps, hours, limit = (cell.strip() for cell in row.split("|")[:4])
    assert memory == f"{planned['memory'][0]['total_bytes'] / 1e9:.1f}"
    assert steps == f"{planned['steps']:,}"
    assert hours == f"{planned['hours']:.3g}"
    assert limit == planned["step"]["limit"]


def test_a_vit_g_is_refused_and_what_is_proposed_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        str(REPOSITORY / "configs/16xH100/image.yaml"),
        "objective.image.width=1536",
        "objective.image.heads=24",
        # As wide as a ViT-g and a fifth as deep, so that a dry run takes a fifth of the time.
        "objective.image.depth=8",
        "objective.cohort=8",
        "engine={name: ddp, precision: bf16}",
    ]
    code, planned = plan(capsys, *arguments, "--device-memory", "24 GB", "--device-flops", "125 TFLOP/s")
    assert code == 2
    assert not planned["fits"]
    assert planned["proposals"]
    cheapest = planned["proposals"][0]["overrides"]
    code, again = plan(capsys, *arguments, *cheapest, "--device-memory", "24 GB", "--device-flops", "125 TFLOP/s")
    assert code == 0
    assert again["memory"][0]["total_bytes"] == planned["proposals"][0]["total_bytes"]


def test_the_output_of_the_docs_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = (REPOSITORY / "docs" / "plan.md").read_text()
    ((command, printed),) = re.findall(r"```\n\$ astroclip (plan .*?)\n(.*?)\n```", text, re.DOTALL)
    words = shlex.split(command)
    words[1] = str(REPOSITORY / words[1])
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == printed.strip()
