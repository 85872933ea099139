"""This machine's clock against those of the servers that a run talks to."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from astroclip_dist.doctor.context import Context
from astroclip_dist.doctor.findings import Finding, Values, fine, problem, warning
from astroclip_dist.doctor.http_answer import answer_of
from astroclip_dist.errors import ConfigError
from astroclip_dist.train.records import mask

_DEADLINE_S = 5.0
# Records of a run come from several machines. S3 refuses requests that are 15 minutes off (RequestTimeTooSkewed).
_LATE_S, _REFUSED_S = 5.0, 600.0
_MEND = "Start a time service: chronyd or systemd-timesyncd (timedatectl); in a virtual machine, look at its host."


def check_clocks(context: Context) -> list[Finding]:
    """The Date header of object storage and of MLflow."""
    urls = [*context.datasets, *([context.run] if context.run else []), *context.urls]
    servers = {endpoint: f"the storage at {urlsplit(endpoint).netloc}" for url in urls if (endpoint := _endpoint(url))}
    # That none is named for a run that needs one is said by the check of MLflow.
    with suppress(ConfigError):
        if (tracking := context.tracking_uri) and tracking.startswith("http"):
            servers[tracking] = f"MLflow at {urlsplit(mask(tracking)).netloc}"
    return [_compare(url, who) for url, who in servers.items()]


def _compare(url: str, who: str) -> Finding:
    skew = clock_skew(url)
    if skew is None:
        return warning(f"{who} does not tell the time", "See what the other checks say of it.")
    values: Values = {"server": who, "ahead_s": round(skew, 1)}
    if abs(skew) < _LATE_S:
        return fine(f"{who} and this machine agree on the time", **values)
    about = f"{who} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine"
    if abs(skew) < _REFUSED_S:
        return warning(f"{about}: records of a run come in the wrong order", _MEND, **values)
    return problem(f"{about}: requests are refused", _MEND, **values)


def clock_skew(url: str) -> float | None:
    """Seconds by which a server's clock is ahead of ours, to one second; None when it does not say."""
    began = time.time()
    try:
        _, headers = answer_of(url, _DEADLINE_S)
    except OSError:
        return None
    date = headers["Date"]
    if not date:
        return None
    # The header has whole seconds: the true time is half a second later on average.
    return parsedate_to_datetime(date).timestamp() + 0.5 - (began + time.time()) / 2


def _endpoint(url: str) -> str | None:
    """Where the server of a storage URL answers."""
    scheme, bucket = urlsplit(url).scheme, urlsplit(url).netloc
    if scheme == "s3":
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return os.environ.get("AWS_ENDPOINT_URL") or f"https://{bucket}.s3.{region}.amazonaws.com"
    if scheme == "gs":
        return "https://storage.googleapis.com"
    if scheme in ("az", "azure", "abfs", "abfss"):
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        return f"https://{account}.blob.core.windows.net" if account else None
    return None
