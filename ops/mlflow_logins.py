"""Logins of an MLflow server (its basic-auth app): who may, with which password, and the files that clients source.

All secrets are made at the first start and lie in files that only their owner may read; none is on a command line.
"""

from __future__ import annotations

import base64
import json
import secrets
import urllib.error
import urllib.request
from pathlib import Path

from server_process import ServerError, write_private

ADMIN = "admin"
# The trainer owns the experiments that it makes; everybody who has a login reads all of them.
USERS = ("trainer", "reader")
# A password is checked in half a second; for so long (s) a worker remembers that it was right.
_REMEMBERED_S = 60
_CONFIG = """[mlflow]
default_permission = READ
database_uri = sqlite:///{users}
admin_username = {admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = {remembered}
"""


class Logins:
    """The logins of the server in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identities = folder / "mlflow-identities.json"

    @property
    def exist(self) -> bool:
        """Whether this server asks for a login: once it does, it does at every start."""
        return self._identities.exists()

    def make(self) -> None:
        """Draw passwords and the key of the server's sessions."""
        write_private(
            self._identities,
            json.dumps(
                {
                    "secret_key": secrets.token_urlsafe(48),
                    "passwords": {user: secrets.token_urlsafe(30) for user in (ADMIN, *USERS)},
                },
                indent=1,
            ),
        )

    def environment(self) -> dict[str, str]:
        """What the server is started with."""
        config = self._folder / "mlflow-logins.ini"
        write_private(
            config,
            _CONFIG.format(users=self._folder / "mlflow-users.db", admin=ADMIN, remembered=_REMEMBERED_S),
        )
        identities = json.loads(self._identities.read_text())
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": identities["passwords"][ADMIN],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": identities["secret_key"],
        }

    def create_users(self, uri: str) -> None:
        """Create the users that a running server does not have yet, and write a file for each.

        Raises:
            ServerError: the server refuses.
        """
        passwords = json.loads(self._identities.read_text())["passwords"]
        for user, password in passwords.items():
            if user != ADMIN:
                _create(uri, passwords[ADMIN], user, password)
            write_private(
                self._folder / f"mlflow-{user}.env",
                f"MLFLOW_TRACKING_URI={uri}\nMLFLOW_TRACKING_USERNAME={user}\nMLFLOW_TRACKING_PASSWORD={password}\n",
            )


def _create(uri: str, admin_password: str, user: str, password: str) -> None:
    login = base64.b64encode(f"{ADMIN}:{admin_password}".encode()).decode()
    request = urllib.request.Request(
        f"{uri}/api/2.0/mlflow/users/create",
        json.dumps({"username": user, "password": password}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {login}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30):
            pass
    except urllib.error.HTTPError as error:
        answer = error.read().decode(errors="replace")
        if "RESOURCE_ALREADY_EXISTS" not in answer:
            raise ServerError(f"user {user}: the server answers {error.code} {answer[:300]}") from None
