"""What NVIDIA's driver says of the GPUs, through NVML (NVIDIA Management Library API reference)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pynvml

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA_VENDOR, _DISPLAY_CLASS = "0x10de", "0x03"
T = TypeVar("T")

# Bits of the reasons why a GPU's clocks are lower than they could be; those of an idle GPU or of a chosen setting are
# left out.
THROTTLES = {
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "slowed down by its hardware",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "too hot (hardware)",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "too hot (driver)",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "slowed down by the machine's power supply",
    pynvml.nvmlClocksThrottleReasonReliability: "slowed down for reliability",
}


class NoDriverError(Exception):
    """NVML cannot be used; the message says why."""


@dataclass(frozen=True)
class Gpu:
    """One GPU; None where it or its driver does not tell.

    Attributes:
        memory, memory_used: bytes.
        ecc: whether errors in its memory are corrected.
        uncorrected: errors in its memory since the driver was loaded that could not be corrected.
        repair_pending: bad memory that a reset of the GPU would replace.
        repair_failed: bad memory that nothing replaces.
        throttles: why its clocks are held down at this moment.
        celsius: temperature.
        processes: ids of those that use it.
        split: into instances (MIG).
        links, links_down: NVLinks that are up, and not.
        peers: numbers of the GPUs whose memory it can write directly.
    """

    number: int
    name: str
    memory: int | None
    memory_used: int | None
    ecc: bool | None
    uncorrected: int | None
    repair_pending: bool | None
    repair_failed: bool | None
    throttles: tuple[str, ...]
    celsius: int | None
    processes: tuple[int, ...]
    split: bool | None
    links: int
    links_down: int
    peers: tuple[int, ...]


@dataclass(frozen=True)
class Driver:
    """Attributes: cuda: the newest CUDA that it runs, (major, minor)."""

    version: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


def read_driver() -> Driver:
    """Ask the driver for those GPUs that CUDA would show this process.

    Raises:
        NoDriverError
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoDriverError(str(error)) from error
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        numbers = visible(os.environ.get("CUDA_VISIBLE_DEVICES"), [pynvml.nvmlDeviceGetUUID(one) for one in handles])
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return Driver(
            pynvml.nvmlSystemGetDriverVersion(),
            (cuda // 1000, cuda % 1000 // 10),
            tuple(_gpu(number, numbers, handles) for number in numbers),
        )
    except pynvml.NVMLError as error:
        raise NoDriverError(f"the driver answers with an error: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def visible(chosen: str | None, uuids: list[str]) -> list[int]:
    """Numbers of the GPUs that CUDA_VISIBLE_DEVICES lets a process see: the first entry that means none ends the list
    (CUDA C++ Programming Guide, environment variables).

    Args:
        chosen: numbers, or beginnings of UUIDs, separated by commas; None: all.
        uuids: of all GPUs, in the order of the bus.
    """
    if chosen is None:
        return list(range(len(uuids)))
    numbers = []
    for entry in map(str.strip, chosen.split(",")):
        if entry.isdigit():
            meant = [int(entry)] if int(entry) < len(uuids) else []
        else:
            meant = [number for number, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
        if not meant:
            break
        numbers.append(meant[0])
    return numbers


def gpus_on_the_bus() -> int:
    """NVIDIA display devices that the kernel sees, driver or not."""
    return sum(
        (device / "vendor").read_text().strip() == _NVIDIA_VENDOR
        and (device / "class").read_text().startswith(_DISPLAY_CLASS)
        for device in (_PCI.iterdir() if _PCI.is_dir() else ())
    )


def _gpu(number: int, numbers: list[int], handles: list[Any]) -> Gpu:
    handle = handles[number]
    memory = _asked(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    ecc = _asked(lambda: pynvml.nvmlDeviceGetEccMode(handle))
    rows = _asked(lambda: pynvml.nvmlDeviceGetRemappedRows(handle))
    pending = _asked(lambda: pynvml.nvmlDeviceGetRetiredPagesPendingStatus(handle))
    reasons = _asked(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
    links = [
        _asked(lambda link=link: pynvml.nvmlDeviceGetNvLinkState(handle, link))  # type: ignore[misc]
        for link in range(pynvml.NVML_NVLINK_MAX_LINKS)
    ]
    split = _asked(lambda: pynvml.nvmlDeviceGetMigMode(handle))
    return Gpu(
        number=number,
        name=pynvml.nvmlDeviceGetName(handle),
        memory=None if memory is None else int(memory.total),
        memory_used=None if memory is None else int(memory.used),
        ecc=None if ecc is None else ecc[0] == pynvml.NVML_FEATURE_ENABLED,
        uncorrected=_asked(
            lambda: pynvml.nvmlDeviceGetTotalEccErrors(
                handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            )
        ),
        # (corrected, uncorrected, pending, failed) of newer GPUs; older ones retire whole pages.
        repair_pending=bool(rows[2]) if rows is not None else None if pending is None else bool(pending),
        repair_failed=None if rows is None else bool(rows[3]),
        throttles=tuple(words for bit, words in THROTTLES.items() if reasons & bit),
        celsius=_asked(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        processes=tuple(
            process.pid for process in _asked(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) or ()
        ),
        split=None if split is None else split[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
        links=links.count(pynvml.NVML_FEATURE_ENABLED),
        links_down=links.count(pynvml.NVML_FEATURE_DISABLED),
        peers=tuple(other for other in numbers if other != number and _reaches(handle, handles[other])),
    )


def _reaches(one: Any, other: Any) -> bool:
    status = _asked(lambda: pynvml.nvmlDeviceGetP2PStatus(one, other, pynvml.NVML_P2P_CAPS_INDEX_WRITE))
    return status == pynvml.NVML_P2P_STATUS_OK


def _asked(question: Callable[[], T]) -> T | None:
    """None where this GPU or this driver has no such thing, or a container may not ask."""
    try:
        return question()
    except pynvml.NVMLError:
        return None
