"""A proxy in front of a real S3 server that breaks some of what passes through it.

    with FaultProxy(object_store.endpoint, seed=1) as proxy:
        proxy.inject("slow_down", probability=0.1)
        proxy.inject("reset_in_body", count=3)
        ...                                   # clients talk to proxy.endpoint
        proxy.outage(seconds=5)
        assert proxy.counts["reset_in_body"] == 3

Requests pass unchanged, the Host header too, so that signatures stay valid. Whether a request is hit depends on seed,
kind, the request and how often it was made before, and on nothing else: neither on time nor on the order in which
concurrent requests come.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

Kind = Literal[
    "internal_error",  # 500
    "slow_down",  # 503
    "reset",  # the connection is reset before the answer
    "reset_in_body",  # ... in the middle of the answer's body
    "short_body",  # the connection is closed, in order, in the middle of the body
    "flipped_bit",  # one bit of the body is another
    "delay",  # the answer comes some seconds late
    "stall",  # the body stops for some seconds in its middle
    "trickle",  # every 64 kB of the body take some seconds
    "wrong_date",  # the answer's Date is some seconds ahead
]
_REFUSALS = {
    "internal_error": (b"500 Internal Server Error", b"InternalError"),
    "slow_down": (b"503 Service Unavailable", b"SlowDown"),
}
_BODY_KINDS = ("reset_in_body", "short_body", "flipped_bit", "stall", "trickle")
_PIECE, _DROP = 256 << 10, 64 << 10


@dataclass
class _Rule:
    """Attributes: left: how many times it may still strike, None: for ever."""

    kind: Kind
    probability: float
    left: int | None
    method: str
    path: str
    seconds: float


@dataclass(frozen=True)
class _Head:
    """First line and headers of a request or an answer, as they came and as they are understood."""

    raw: bytes
    first: list[str]
    headers: dict[str, str]

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", 0))

    @property
    def is_chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() == "chunked"


class FaultProxy:
    """The proxy, in a thread of its own.

    Args:
        upstream: ``http://host:port`` of the server.
        seed: of the draws.

    Attributes:
        endpoint: what clients take as the server's URL.
        counts: faults injected so far, by kind; ``requests`` counts all requests.
    """

    def __init__(self, upstream: str, seed: int = 0) -> None:
        parts = urlsplit(upstream)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._seed = seed
        self._rules: list[_Rule] = []
        self._seen: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self._listening = _bound_socket(0)
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._clients: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._run(self._listen(self._listening))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._cut_off())
        self._run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def inject(
        self,
        kind: Kind,
        *,
        probability: float = 1.0,
        count: int | None = None,
        method: str = "GET",
        path: str = "",
        seconds: float = 1.0,
    ) -> None:
        """From now on, do this to some requests; of several faults that would hit one, the first injected does.

        Args:
            probability: that a request is hit, drawn anew for each repetition of the same request.
            count: hit so many at most.
            method, path: hit only requests with this method, and with this text in their path.
            seconds: how long ``delay``, ``stall`` and each part of ``trickle`` last; how wrong ``wrong_date`` is.
        """
        with self._lock:
            self._rules.append(_Rule(kind, probability, count, method, path, seconds))

    def clear(self) -> None:
        """Inject nothing any more; an outage goes on."""
        with self._lock:
            self._rules.clear()

    def outage(self, seconds: float) -> None:
        """Reset all connections and refuse new ones, from now on for some seconds; returns at once."""
        self._run(self._cut_off())
        asyncio.run_coroutine_threadsafe(self._come_back(time.monotonic() + seconds), self._loop)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _listen(self, bound: socket.socket) -> None:
        self._server = await asyncio.start_server(self._serve, sock=bound)

    async def _cut_off(self) -> None:
        self._server.close()
        for client in list(self._clients):
            _reset(client)

    async def _come_back(self, when: float) -> None:
        await asyncio.sleep(when - time.monotonic())
        await self._listen(_bound_socket(urlsplit(self.endpoint).port or 0))

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """One connection of a client, with one of its own to the server."""
        self._clients.add(client)
        answers, server = await asyncio.open_connection(self._host, self._port)
        try:
            while await self._exchange(reader, client, answers, server):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # one of the two is gone, and the other is told below
        finally:
            self._clients.discard(client)
            server.close()
            client.close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; False when the connection ends with it."""
        request = await _read_head(reader)
        rule, draw = self._choose(request)
        kind = rule.kind if rule else None
        if kind == "reset":
            _reset(client)
            return False
        if kind in _REFUSALS:
            await reader.readexactly(request.length)
            status, code = _REFUSALS[kind]
            body = b"<Error><Code>%s</Code><Message>injected</Message></Error>" % code
            client.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
            await client.drain()
            return True
        server.write(request.raw)
        await _copy_body(request, reader, server)
        if rule and kind == "delay":
            await asyncio.sleep(rule.seconds)
        answer = await _read_head(answers)
        client.write(_with_later_date(answer, rule.seconds) if rule and kind == "wrong_date" else answer.raw)
        bodiless = request.first[0] == "HEAD" or answer.first[1] in ("204", "304")
        if rule and kind in _BODY_KINDS and not bodiless:
            return await self._copy_faultily(rule, draw, answer.length, answers, client)
        if not bodiless:
            await _copy_body(answer, answers, client)
        await client.drain()
        return True

    async def _copy_faultily(
        self, rule: _Rule, draw: int, length: int, answers: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> bool:
        if rule.kind == "trickle":
            for first in range(0, length, _DROP):
                await asyncio.sleep(rule.seconds)
                client.write(await answers.readexactly(min(_DROP, length - first)))
                await client.drain()
            return True
        cut = length // 2
        body = bytearray(await answers.readexactly(length))
        if rule.kind == "flipped_bit" and length:
            body[draw % length] ^= 1 << draw % 8
        client.write(body[:cut])
        await client.drain()
        if rule.kind == "reset_in_body":
            await asyncio.sleep(0.01)  # a reset overtakes what it follows
            _reset(client)
        if rule.kind in ("reset_in_body", "short_body"):
            return False
        if rule.kind == "stall":
            await asyncio.sleep(rule.seconds)
        client.write(body[cut:])
        await client.drain()
        return True

    def _choose(self, request: _Head) -> tuple[_Rule | None, int]:
        """What is to happen to a request, and a random number for it."""
        method, path = request.first[:2]
        name = f"{method} {path} {request.headers.get('range', '')}".encode()
        with self._lock:
            self.counts["requests"] += 1
            self._seen[name] += 1
            for rule in self._rules:
                if rule.method != method or rule.path not in path or rule.left == 0:
                    continue
                text = b"%d %s %d %s" % (self._seed, rule.kind.encode(), self._seen[name], name)
                draw = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
                if draw < rule.probability * 2**64:
                    rule.left = None if rule.left is None else rule.left - 1
                    self.counts[rule.kind] += 1
                    return rule, draw
        return None, 0


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _reset(client: asyncio.StreamWriter) -> None:
    """Close with RST, as a crashed or overloaded peer does, not with FIN."""
    connection = client.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()


def _with_later_date(head: _Head, seconds: float) -> bytes:
    date = head.headers["date"]
    later = format_datetime(parsedate_to_datetime(date) + timedelta(seconds=seconds), usegmt=True)
    return head.raw.replace(date.encode(), later.encode())


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").rstrip().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return _Head(raw, first.split(" ", 2), {name.strip().lower(): value.strip() for name, _, value in pairs})


async def _copy_body(head: _Head, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    if head.is_chunked:
        size = -1
        while size:
            line = await source.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            target.write(line + await source.readexactly(size + 2))
        return
    left = head.length
    while left:
        piece = await source.read(min(left, _PIECE))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        target.write(piece)
        await target.drain()
