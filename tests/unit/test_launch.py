"""What a launch refuses before anything starts, and what others are told of who holds a run."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from astroclip_dist.config import parse_config
from astroclip_dist.errors import ConfigError
from astroclip_dist.store import Store
from astroclip_dist.train import holding
from astroclip_dist.train.holding import HOLDER_FILE, hold, holder
from astroclip_dist.train.holding.holder import HeldError, Holder
from astroclip_dist.train.holding.lease import LeaseContent
from launchers import launch
from tests.random_survey import write_random_survey

CONFIG = """
length: 10 steps
batch: {global_size: 16, lanes: 4}
optimizer: {lr: 1e-3}
"""


def test_a_dataset_is_no_run_folder(tmp_path: Path) -> None:
    write_random_survey(str(tmp_path), 48)
    before = Store(tmp_path).list()
    with pytest.raises(ConfigError, match=r"run: file://.*That is the dataset"):
        launch(parse_config(f"data: {tmp_path}\nrun: {tmp_path}\n{CONFIG}", "test"))
    assert Store(tmp_path).list() == before


def test_a_holder_tells_of_itself_what_it_reads_back() -> None:
    here = Holder.this_process("local")
    assert Holder.parse(here.model_dump_json().encode()) == here


@pytest.mark.parametrize("content", [b"", b'{"host": "a"}', b"\xff", b"[]"])
def test_a_holder_that_cannot_be_read_is_unknown_and_may_live(content: bytes) -> None:
    unknown = Holder.parse(content)
    assert not unknown.is_dead
    assert "unknown host" in str(HeldError(Store("/runs/a"), unknown))


def test_a_file_that_a_killed_holder_left_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / HOLDER_FILE).write_bytes(b"x" * 5000)
    run = Store(tmp_path)
    assert holder(run) is None
    with hold(run, "local", lambda error: None):
        assert holder(run) == Holder.parse((tmp_path / HOLDER_FILE).read_bytes())
    assert run.list() == []


def test_a_lease_that_nobody_renews_any_more_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a run whose node died: its lease stays, and ``runs list`` is not to say for ever that it runs."""
    run, here = Store("memory:///"), Holder.this_process("local")
    far = here.model_copy(update={"host": "far", "machine": "far"})
    for found in (here, far):
        run.put(HOLDER_FILE, LeaseContent(holder=found, token="1", renewals=3).model_dump_json().encode())
        assert holder(run) == found
        with monkeypatch.context() as later:
            later.setattr(holding, "GONE_AFTER", timedelta(0))
            # A process of this machine is seen to live.
            assert holder(run) == (found if found is here else None)
