"""What the driver's answers mean, and what it means that there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from astroclip_dist.config import load_config
from astroclip_dist.doctor.collectives import all_reduce
from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.gpus import check_gpus, findings_of
from astroclip_dist.doctor.nvml import THROTTLES, Driver, Gpu, NoDriverError, read_driver, visible
from astroclip_dist.doctor.torch_build import check_torch, why_not
from tests.conftest import REPOSITORY

SOUND = Gpu(
    number=0,
    name="NVIDIA H100 80GB HBM3",
    memory=85_520_809_984,
    memory_used=600_000_000,
    ecc=True,
    uncorrected=0,
    repair_pending=False,
    repair_failed=False,
    throttles=(),
    celsius=40,
    processes=(),
    split=False,
    links=18,
    links_down=0,
    peers=(1,),
)
OTHER = replace(SOUND, number=1, peers=(0,))


def driver(*gpus: Gpu) -> Driver:
    return Driver("580.95.05", (13, 0), gpus)


def has_driver() -> bool:
    try:
        return bool(read_driver().gpus)
    except NoDriverError:
        return False


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA GPU")
def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    (found,) = check_gpus(Context())
    assert (found.state, found.values) == ("ok", {"gpus": 0})
    path = REPOSITORY / "configs" / "demo" / "align.yaml"
    (found,) = check_gpus(Context(load_config(path, [f"data={tmp_path}", f"run={tmp_path}/run", "device=cuda"])))
    assert found.state == "problem"
    assert "there is none" in found.what
    (found,) = check_torch(Context())
    assert found.state == "ok"
    assert "gloo" in found.what


@pytest.mark.gpu
@pytest.mark.skipif(not has_driver(), reason="no NVIDIA GPU")
def test_a_machine_with_gpus() -> None:
    about = read_driver()
    assert all(gpu.memory and gpu.name for gpu in about.gpus)
    assert check_gpus(Context())[0].values["gpus"] == len(about.gpus)
    assert check_torch(Context())[0].state == "ok"
    assert all_reduce("nccl", len(about.gpus)).state == "ok"


def test_sound_gpus_are_fine() -> None:
    found = findings_of(driver(SOUND, OTHER), wanted=True)
    assert [finding.state for finding in found] == ["ok"] * 4
    assert found[-1].what == "all GPUs reach each other's memory, over 18 NVLinks each"


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        ({"uncorrected": 3}, "problem", "3 uncorrected errors"),
        ({"repair_failed": True}, "problem", "cannot be replaced"),
        ({"repair_pending": True}, "warning", "waits to be replaced"),
        ({"ecc": False}, "warning", "ECC is off"),
        ({"throttles": tuple(THROTTLES.values())[1:2], "celsius": 91}, "warning", "too hot (hardware) at 91 C"),
        ({"split": True}, "warning", "MIG"),
        ({"processes": (4711,)}, "warning", "in use by 4711"),
        ({"memory_used": 40_000_000_000}, "warning", "in use, 40 GB"),
        ({"links": 17, "links_down": 1}, "warning", "some NVLinks of GPU 0 are down"),
        ({"peers": ()}, "warning", "GPU 0 cannot write into the memory of all others"),
        ({"name": "NVIDIA L40S"}, "warning", "not alike"),
    ],
)
def test_what_is_wrong_with_a_gpu_is_said(change: dict[str, object], state: str, said: str) -> None:
    found = findings_of(driver(replace(SOUND, **change), OTHER), wanted=True)  # type: ignore[arg-type]
    (wrong,) = [finding for finding in found if finding.state != "ok"]
    assert wrong.state == state
    assert said in wrong.what
    assert wrong.mend


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [(None, [0, 1, 2]), ("2,0", [2, 0]), ("GPU-b", [1]), ("", []), ("1,-1,0", [1]), ("0,7,1", [0]), ("NoDevFiles", [])],
)
def test_only_gpus_that_a_process_may_see_count(chosen: str | None, numbers: list[int]) -> None:
    assert visible(chosen, ["GPU-a1", "GPU-b2", "GPU-c3"]) == numbers


def test_a_gpu_that_tells_nothing_is_no_problem() -> None:
    silent = replace(
        SOUND, memory=None, memory_used=None, ecc=None, uncorrected=None, repair_pending=None, repair_failed=None
    )
    assert [finding.state for finding in findings_of(driver(silent), wanted=False)] == ["ok", "ok"]
    assert findings_of(driver(), wanted=True)[0].state == "problem"


@pytest.mark.parametrize(
    ("cuda", "said"), [("13.2", None), ("12.8", None), ("14.0", "built for CUDA 14.0"), (None, "for the CPU alone")]
)
def test_a_build_of_torch_must_fit_the_driver(cuda: str | None, said: str | None) -> None:
    found = why_not(cuda, driver(SOUND))
    assert (found is None) == (said is None)
    assert found is None or said is None or said in found.what
