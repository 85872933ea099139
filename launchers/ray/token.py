"""The token of a Ray cluster, from where Ray's own commands take it; read here because importing Ray takes seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from astroclip_dist.errors import ConfigError

HOW = "set RAY_AUTH_TOKEN_PATH to a file with its token, or RAY_AUTH_TOKEN"


@dataclass(frozen=True)
class Token:
    """What proves to a cluster that one may use it.

    Attributes:
        source: the variable or file that it is from.
    """

    value: str
    source: str

    def __repr__(self) -> str:
        return f"Token(***, {self.source!r})"


def cluster_token() -> Token | None:
    """The first of ``RAY_AUTH_TOKEN``, the file ``RAY_AUTH_TOKEN_PATH`` and ``~/.ray/auth_token``, as Ray has it.

    Raises:
        ConfigError: the file cannot be read, or what it holds is no token.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None
    if value := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return _checked(value, "RAY_AUTH_TOKEN")
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray/auth_token"
    source = f"RAY_AUTH_TOKEN_PATH={given}" if given else str(path)
    try:
        value = path.read_text().strip()
    except FileNotFoundError:
        if not given:
            return None
        raise ConfigError("RAY_AUTH_TOKEN_PATH", given, "No such file: copy the token's file of the cluster.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(source, "unreadable", f"It has to be a text file with the token ({error}).") from error
    return _checked(value, source)


def _checked(value: str, source: str) -> Token:
    if not value or not all("!" <= character <= "~" for character in value):
        raise ConfigError(source, "no token", "A token is one word of visible ASCII characters.")
    return Token(value, source)
