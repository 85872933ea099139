"""Torch's build against the driver: CUDA, NCCL, gloo."""

from __future__ import annotations

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, problem
from astroclip_dist.doctor.nvml import Driver, NoDriverError, read_driver

_REINSTALL = "Install torch's CUDA build: pip install -c constraints.txt torch."


def check_torch(context: Context) -> list[Finding]:
    """Whether torch can use what there is."""
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        return [problem(f"torch {torch.__version__} has no gloo", "Install torch's official build for Linux.")]
    nccl = dist.is_nccl_available()
    version = ".".join(map(str, torch.cuda.nccl.version())) if nccl else None
    about = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, NCCL {version or 'none'}, gloo"
    values = {"torch": torch.__version__, "cuda": torch.version.cuda, "nccl": version}
    try:
        driver = read_driver()
    except NoDriverError:
        return [fine(about, **values)]
    reason = why_not(torch.version.cuda, driver) if driver.gpus else None
    if reason:
        return [reason]
    if driver.gpus and not torch.cuda.is_available():
        mend = "Check CUDA_VISIBLE_DEVICES, LD_LIBRARY_PATH and `python -c 'import torch; torch.cuda.init()'`."
        return [problem("the driver shows GPUs, torch none", mend, **values)]
    if driver.gpus and not nccl:
        return [problem(f"torch {torch.__version__} has no NCCL: GPUs cannot work together", _REINSTALL, **values)]
    return [fine(about, **values)]


def why_not(cuda: str | None, driver: Driver) -> Finding | None:
    """What keeps a build for this CUDA version from using this driver."""
    if cuda is None:
        return problem("there are GPUs, but torch is built for the CPU alone", _REINSTALL)
    # Minor versions of one major version run on its first driver (CUDA Compatibility, "minor version compatibility").
    if int(cuda.split(".")[0]) > driver.cuda[0]:
        return problem(
            f"torch is built for CUDA {cuda}, driver {driver.version} runs CUDA {driver.cuda[0]}.{driver.cuda[1]}",
            f"Install a driver for CUDA {cuda}, or torch's build for CUDA {driver.cuda[0]}.",
        )
    return None
