"""GPUs: driver, memory and its errors, clocks, neighbours."""

from __future__ import annotations

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, problem, warning
from astroclip_dist.doctor.nvml import Driver, Gpu, NoDriverError, gpus_on_the_bus, read_driver
from astroclip_dist.runs.wording import amount, many

# What a driver keeps of an idle GPU's memory is below this share.
_IN_USE = 0.05


def check_gpus(context: Context) -> list[Finding]:
    """Ask the driver, or say why there is none to ask."""
    wanted = context.config is not None and context.config.device == "cuda"
    try:
        driver = read_driver()
    except NoDriverError as error:
        if count := gpus_on_the_bus():
            return [
                problem(
                    f"{many(count, 'NVIDIA GPU')} on the bus, but the driver cannot be used: {error}",
                    "Install or reload NVIDIA's driver; in a container, start it with its GPUs (--gpus all).",
                    gpus=0,
                )
            ]
        if wanted:
            mend = "Use a machine with GPUs, or device=cpu; in a container, start it with its GPUs (--gpus all)."
            return [problem(f"the configuration wants GPUs, and there is none ({error})", mend, gpus=0)]
        return [fine("no NVIDIA GPU: training runs on the CPU", gpus=0)]
    return findings_of(driver, wanted)


def findings_of(driver: Driver, wanted: bool) -> list[Finding]:
    """What a driver's answers mean for a training.

    Args:
        wanted: whether the run cannot do without a GPU.
    """
    major, minor = driver.cuda
    about = f"driver {driver.version}, CUDA up to {major}.{minor}"
    if not driver.gpus:
        mend = "Check nvidia-smi -L and, in a container or a job, that its GPUs were asked for."
        return [(problem if wanted else warning)(f"{about}, but no GPU", mend, gpus=0)]
    findings = [fine(f"{about}, {many(len(driver.gpus), 'GPU')}", driver=driver.version, gpus=len(driver.gpus))]
    for gpu in driver.gpus:
        findings += _of_one(gpu)
    return findings + _of_all(driver.gpus)


def _of_one(gpu: Gpu) -> list[Finding]:
    who, values = f"GPU {gpu.number} ({gpu.name})", {"gpu": gpu.number}
    found = []
    if gpu.uncorrected:
        mend = "Reset the GPU or restart the machine; if errors come back, have it replaced. Its results may be wrong."
        found.append(problem(f"{who}: {many(gpu.uncorrected, 'uncorrected error')} in its memory", mend, **values))
    if gpu.repair_failed:
        found.append(problem(f"{who}: bad memory that cannot be replaced", "Have the GPU replaced.", **values))
    if gpu.repair_pending:
        found.append(warning(f"{who}: bad memory waits to be replaced", "Reset the GPU: nvidia-smi -r.", **values))
    if gpu.ecc is False:
        mend = "A flipped bit would pass unnoticed: nvidia-smi -e 1, then restart."
        found.append(warning(f"{who}: errors in its memory are not corrected (ECC is off)", mend, **values))
    if gpu.throttles:
        heat = "" if gpu.celsius is None else f" at {gpu.celsius} C"
        mend = "Look at cooling and power; every rank waits for the slowest GPU."
        found.append(warning(f"{who}: {', '.join(gpu.throttles)}{heat}", mend, **values))
    if gpu.split:
        mend = "Whole GPUs are needed by NCCL between ranks: nvidia-smi -mig 0, or one rank alone."
        found.append(warning(f"{who}: split into instances (MIG)", mend, **values))
    if gpu.processes or (gpu.memory and (gpu.memory_used or 0) > _IN_USE * gpu.memory):
        by = f" by {', '.join(map(str, gpu.processes))}" if gpu.processes else ""
        mend = "End those processes (nvidia-smi shows them) or choose another GPU."
        found.append(warning(f"{who}: in use{by}, {amount(gpu.memory_used or 0)}", mend, **values))
    if not found:
        memory = "" if gpu.memory is None else f", {amount(gpu.memory)}"
        found.append(fine(f"{who}{memory}, no errors", **values, memory_bytes=gpu.memory))
    return found


def _of_all(gpus: tuple[Gpu, ...]) -> list[Finding]:
    if len(gpus) < 2:
        return []
    found = []
    if len({(gpu.name, gpu.memory) for gpu in gpus}) > 1:
        mend = "Every rank waits for the slowest GPU and has its share of memory: choose with CUDA_VISIBLE_DEVICES."
        found.append(warning("the GPUs are not alike", mend))
    down = [gpu for gpu in gpus if gpu.links and gpu.links_down]
    if down:
        mend = "nvidia-smi nvlink -s shows which; have the link or its switch repaired."
        numbers = ", ".join(str(gpu.number) for gpu in down)
        found.append(warning(f"some NVLinks of GPU {numbers} are down", mend))
    alone = [gpu for gpu in gpus if len(gpu.peers) < len(gpus) - 1]
    if alone:
        mend = "Gradients go through the machine's memory, several times slower: check nvidia-smi topo -p2p w."
        numbers = ", ".join(str(gpu.number) for gpu in alone)
        found.append(warning(f"GPU {numbers} cannot write into the memory of all others", mend))
    else:
        links = min(gpu.links for gpu in gpus)
        over = f"over {many(links, 'NVLink')} each" if links else "over PCIe"
        found.append(fine(f"all GPUs reach each other's memory, {over}", nvlinks=links))
    return found
