"""What the command of a training finds at RAY_ADDRESS, before it takes Ray; trainings under Ray are in tests/system."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from astroclip_dist.errors import ConfigError
from launchers.ray import workers


def test_an_address_where_nobody_listens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_HEAD_S", 0.0)
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS: 127\.0\.0\.1:1\. No Ray cluster answers there.*refused"):
        workers._find_head("127.0.0.1:1")


def test_a_head_that_is_started_again_is_waited_for() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        threading.Timer(0.3, listener.listen).start()
        begun = time.monotonic()
        workers._find_head(f"127.0.0.1:{listener.getsockname()[1]}")
        assert time.monotonic() - begun > 0.3


def test_an_address_that_only_ray_understands_is_left_to_it() -> None:
    workers._find_head("auto")
    workers._find_head("ray://head:10001")
