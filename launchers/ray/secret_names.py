"""Secrets of a Ray job: their names travel with the job, their values are in the environment of the cluster's nodes."""

from __future__ import annotations

import os
import socket

from astroclip_dist.errors import ConfigError

SECRETS_VARIABLE = "ASTROCLIP_SECRETS"


def require_secrets() -> None:
    """Called where the job starts, and in each of its workers.

    Raises:
        ConfigError: a variable is not set on this node.
    """
    names = os.environ.get(SECRETS_VARIABLE, "").split()
    if missing := [name for name in names if not os.environ.get(name)]:
        raise ConfigError(
            "secrets",
            ", ".join(missing),
            f"Not in the environment of Ray on {socket.gethostname()}: set it there before ray start.",
        )
