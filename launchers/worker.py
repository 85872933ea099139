"""The worker entry point that every launcher starts, one process a rank.

The local launcher runs ``python -m launchers.worker`` and writes the configuration as one line of JSON to its standard
input, which it keeps open. Another line is the request to save and leave, and says why; when the input closes, the
launcher is gone and the worker must not go on alone.
"""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import os
import signal
import sys
import threading
import traceback
import warnings

from astroclip_dist.config import RunConfig
from astroclip_dist.errors import UserError
from astroclip_dist.train.failure import OtherRankError
from astroclip_dist.train.preemption import Notice
from launchers.exit_codes import CRASHED, PREEMPTED

_PR_SET_PDEATHSIG = 1
log = logging.getLogger("astroclip")


def work(config: RunConfig, notice: Notice) -> int:
    """Train on this rank. The launcher has set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Returns:
        0 at the end of training, 75 when the process was asked to leave.
    """
    rank = os.environ["RANK"]
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(f"%(asctime)s rank {rank}  %(message)s", "%H:%M:%S"))
    for name in ("astroclip_dist", "astroclip"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if rank == "0" else logging.WARNING)
    # Torch's own modules still call the collectives by names that it has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # Imported here so that the launcher's own process does not pay for it.
    from astroclip_dist.train.loop import train

    ending = train(config, notice)
    if ending.preempted_by:
        return PREEMPTED
    log.info("done: %s", dataclasses.asdict(ending.progress))
    return 0


def _follow_the_launcher(notice: Notice) -> None:
    for reason in sys.stdin:
        notice.give(reason.strip())
    os._exit(CRASHED)


def main() -> int:
    # Also where this process hangs and cannot see its input close (prctl(2)).
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    notice = Notice()
    notice.listen()
    config = RunConfig.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_follow_the_launcher, args=(notice,), daemon=True).start()
    try:
        return work(config, notice)
    except UserError as error:
        log.error("%s", error)
        return error.exit_code
    except OtherRankError as error:
        # The rank that failed says it in full; the first rank alone repeats it.
        log.info("%s", error)
        return error.cause.exit_code if error.cause else CRASHED
    except Exception:
        log.error("rank %s: %s", os.environ["RANK"], traceback.format_exc())
        return CRASHED


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not sys.exit: threads of gloo and MLflow may hold up the interpreter's end for minutes.
    os._exit(code)
