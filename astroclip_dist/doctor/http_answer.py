"""A server, asked over HTTP by nobody in particular."""

from __future__ import annotations

import urllib.error
import urllib.request
from email.message import Message
from http.client import HTTPException
from urllib.parse import urlsplit


def answer_of(url: str, deadline_s: float) -> tuple[int, Message]:
    """Status and headers of the answer to a GET, a refusal's, too. A login in the URL is not sent.

    Raises:
        OSError: there is no answer, or none in HTTP; or the URL is none.
    """
    try:
        parts = urlsplit(url)
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        with urllib.request.urlopen(plain, timeout=deadline_s) as response:
            return response.status, response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from error
    except (HTTPException, ValueError) as error:
        raise OSError(f"{type(error).__name__}: {str(error).strip()}") from error
