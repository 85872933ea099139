"""Ray's HTTP interface for jobs (https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html).

Plain requests rather than Ray's own client: that one imports Ray, which takes seconds, and answers with its tracebacks.
"""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

from astroclip_dist.errors import ConfigError, StorageError
from launchers.ray.token import HOW, Token, cluster_token

# Seconds. Ray itself waits up to 30 for the process that takes the job.
_TIMEOUT = 45.0
# Seconds without an answer after which following a log ends, and between two tries.
_PATIENCE, _PAUSE = 300.0, 2.0
# Seconds between two signs of life: a machine that is gone closes no connection.
_HEARTBEAT = 20.0
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
FORGOTTEN = "does not know it: its head was started again, or it is another"
log = logging.getLogger(__name__)

JobInfo = dict[str, Any]


class RayJobsClient:
    """Jobs of the cluster with a dashboard at an address. Every method may raise what ``_ask`` raises.

    Args:
        address: ``http://HOST:PORT``.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._token: Token | None = cluster_token()
        # Nothing is followed to another address: the token would go there, too.
        self._opener = urllib.request.build_opener(_NoRedirect())

    def version(self) -> str:
        """Of Ray."""
        return str(self._got("/api/version")["ray_version"])

    def nodes(self) -> list[dict[str, Any]]:
        """Those that live: ``node_id``, ``node_ip``, ``resources_total`` (CPU, GPU, memory in bytes)."""
        found = self._got("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
        return [node for node in found if node["state"] == "ALIVE"]

    def train_workers(self) -> list[dict[str, Any]]:
        """Actors of Ray Train that live: ``job_id`` (of a driver), ``node_id``."""
        keys = {"state": "ALIVE", "class_name": "RayTrainWorker"}
        filters = [pair for key, value in keys.items() for pair in _filter(key, value)]
        query = urllib.parse.urlencode([*filters, ("limit", "10000"), ("detail", "1")])
        return list(self._got(f"/api/v0/actors?{query}")["data"]["result"]["result"])

    def submit(self, request: JobInfo) -> None:
        """Post a job; ``request["submission_id"]`` must be new.

        Raises:
            StorageError: among others: the id exists.
        """
        self._ask("POST", "/api/jobs/", request)

    def job(self, job_id: str) -> JobInfo | None:
        """None where the cluster has no such job."""
        return self._ask("GET", f"/api/jobs/{job_id}")

    def jobs(self) -> list[JobInfo]:
        """All that were submitted."""
        return [job for job in self._got("/api/jobs/") if job["type"] == "SUBMISSION"]

    def stop(self, job_id: str) -> None:
        """Ask a job to end; returns at once."""
        self._ask("POST", f"/api/jobs/{job_id}/stop")

    def log(self, job_id: str) -> list[str]:
        """Lines that the job has printed."""
        answer = self._ask("GET", f"/api/jobs/{job_id}/logs")
        text = "" if answer is None else str(answer["logs"])
        return text.removesuffix("\n").split("\n") if text else []

    def follow_log(self, job_id: str) -> Iterator[str]:
        """Lines as the job prints them, to its end. A dashboard that is away for a while delays them.

        Raises:
            ConfigError: the cluster does not know the job, or not any more.
            StorageError: the dashboard is away for five minutes.
        """
        shown, away = 0, False
        answered = time.monotonic()
        while True:
            try:
                for line in self._tail(job_id, skip=shown):
                    shown += 1
                    answered = time.monotonic()
                    yield line
                job = self.job(job_id)
                if job is None:
                    raise ConfigError("name", job_id, f"The cluster at {self._address} {FORGOTTEN}: submit it again.")
                if job["status"] in OVER:
                    # The end of the log may have been written after the connection was cut.
                    yield from self.log(job_id)[shown:]
                    return
                answered = time.monotonic()
                away = False
            except StorageError as error:
                if time.monotonic() - answered > _PATIENCE:
                    raise
                if not away:
                    log.warning("%s Asked again for %.0f s.", error, _PATIENCE)
                    away = True
            time.sleep(_PAUSE)

    def _tail(self, job_id: str, skip: int) -> Iterator[str]:
        """Whole lines after the first ``skip``, until the connection ends, however it does."""
        # Only who follows a log pays for the import.
        import asyncio

        import aiohttp

        async def receive(socket: aiohttp.ClientWebSocketResponse) -> str | None:
            message = await socket.receive()
            return str(message.data) if message.type is aiohttp.WSMsgType.TEXT else None

        async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
            session = aiohttp.ClientSession(headers=self._headers(), trust_env=True)
            try:
                url = f"{self._address}/api/jobs/{job_id}/logs/tail"
                return session, await session.ws_connect(url, heartbeat=_HEARTBEAT)
            except BaseException:
                await session.close()
                raise

        with asyncio.Runner() as runner:
            try:
                session, socket = runner.run(connect())
            except (aiohttp.ClientError, OSError):
                return
            try:
                begun, number = "", 0
                while (text := runner.run(receive(socket))) is not None:
                    *lines, begun = (begun + text).split("\n")
                    for line in lines:
                        number += 1
                        if number > skip:
                            yield line
            finally:
                runner.run(socket.close())
                runner.run(session.close())

    def _got(self, path: str) -> Any:
        answer = self._ask("GET", path)
        if answer is None:
            raise StorageError("launcher.address", self._address, f"No Ray with a jobs API is there (no {path}).")
        return answer

    def _ask(self, method: str, path: str, body: JobInfo | None = None) -> Any:
        """One request.

        Returns:
            The answer, None where there is no such thing.

        Raises:
            ConfigError: no token, or not this cluster's.
            StorageError: no answer, or an error.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._address}{path}", data, self._headers(), method=method)
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            if error.code == 401:
                raise ConfigError("RAY_AUTH_TOKEN", "no token", f"{self._address} wants one: {HOW}.") from None
            if error.code == 403:
                source = self._token.source if self._token else "RAY_AUTH_TOKEN"
                raise ConfigError(source, "wrong token", f"{self._address} refuses it: {HOW}.") from None
            lines = error.read().decode(errors="replace").strip().splitlines()
            said = lines[-1][:300] if lines else error.reason
            raise StorageError("launcher.address", self._address, f"Ray answers {error.code}: {said}") from error
        except (urllib.error.URLError, OSError, HTTPException) as error:
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            raise StorageError(
                "launcher.address",
                self._address,
                f"No Ray dashboard answers there ({why}): start the cluster (ops/ray_cluster.py), or mend the address.",
            ) from error
        except ValueError as error:
            raise StorageError("launcher.address", self._address, "What answers there is no Ray dashboard.") from error

    def _headers(self) -> dict[str, str]:
        token = {"Authorization": f"Bearer {self._token.value}"} if self._token else {}
        return {"Content-Type": "application/json", **token}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _filter(key: str, value: str) -> list[tuple[str, str]]:
    return [("filter_keys", key), ("filter_predicates", "="), ("filter_values", value)]
