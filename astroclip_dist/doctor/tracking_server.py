"""MLflow: reachable, of a fitting version, and whether it lets us in."""

from __future__ import annotations

import os
import time
from http.client import responses

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, fine, problem, warning
from astroclip_dist.doctor.http_answer import answer_of
from astroclip_dist.train.records import mask
from astroclip_dist.train.tracking import CLIENT_SETTINGS

_DEADLINE_S = 5.0
_SLOW_S = 2.0


def check_tracking(context: Context) -> list[Finding]:
    """The server of the run, or of MLFLOW_TRACKING_URI."""
    uri = context.tracking_uri
    if uri is None:
        return [fine("no MLflow server is named: a run on a local disk keeps mlflow.db beside its folder")]
    if not uri.startswith(("http://", "https://")):
        return [fine(f"MLflow keeps its records at {mask(uri)}, for processes of this machine", uri=mask(uri))]
    shown = mask(uri).rstrip("/")
    try:
        status, _ = answer_of(f"{uri.rstrip('/')}/health", _DEADLINE_S)
    except OSError as error:
        mend = (
            "Start it, or correct MLFLOW_TRACKING_URI or tracking.uri. A run would keep its records until it is back."
        )
        return [problem(f"MLflow at {shown} does not answer: {error}", mend, uri=shown)]
    # What a proxy in front of it asks a login for, the client is asked for, too.
    if status >= 400 and status not in (401, 403):
        mend = "Check that the URI is that of an MLflow server, and its log."
        return [problem(f"MLflow at {shown} answers {status} {responses.get(status, '')}", mend, uri=shown)]
    return _login(uri, shown)


def _login(uri: str, shown: str) -> list[Finding]:
    # Seconds to import: only when there is a server.
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    began = time.monotonic()
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except MlflowException as error:
        if error.error_code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return [
                problem(
                    f"MLflow at {shown} refuses the login",
                    "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN).",
                    uri=shown,
                )
            ]
        why = mask(str(error)).splitlines()[0][:200]
        return [problem(f"MLflow at {shown} answers with an error: {why}", "Look at its log.", uri=shown)]
    seconds = time.monotonic() - began
    answer = http_request(get_default_host_creds(uri), "/version", "GET")
    version = answer.text.strip() if answer.ok else "unknown"
    about = f"MLflow {version} at {shown} lets us in, answers in {1000 * seconds:.0f} ms"
    values = {"uri": shown, "version": version, "client_version": mlflow.__version__, "answer_s": round(seconds, 3)}
    if version.split(".")[0] != mlflow.__version__.split(".")[0]:
        mend = "Use a server and a client of the same major version."
        return [warning(f"{about}, but the client is {mlflow.__version__}", mend, **values)]
    if seconds > _SLOW_S:
        return [warning(f"slow: {about}", "A run is not slowed down by it; its records come late.", **values)]
    return [fine(about, **values)]
