"""A real MLflow tracking server on the loopback interface: SQLite or another database, artifacts in a folder or in S3.

    python ops/mlflow_server.py start DIR [--port N] [--artifacts s3://BUCKET/PREFIX] [--auth] [--foreground]
    export MLFLOW_TRACKING_URI=$(python ops/mlflow_server.py uri DIR)          # without --auth
    set -a; . DIR/mlflow-trainer.env; set +a                                   # with --auth: URI, user, password
    python ops/mlflow_server.py stop DIR

Clients send artifacts through the server, so they need no credentials of the object storage; with ``--artifacts s3://``
the server itself takes them from its environment (AWS_*).

The database is ``DIR/mlflow.db``, or the one of ``MLFLOW_BACKEND_STORE_URI`` (``postgresql://USER:PASSWORD@HOST/NAME``):
a variable, since a command line can be read by everybody on the machine.

With ``--auth`` nobody does anything without a login. The first start makes three: ``admin`` (also users and rights),
``trainer`` (makes experiments and runs in them) and ``reader``, each in a file that only its owner may read:
``mlflow-admin.env``, ``mlflow-trainer.env``, ``mlflow-reader.env``. A folder with logins keeps asking for them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from mlflow_logins import Logins
from server_process import HOST, ServerError, ServerProcess, free_ports

DATABASE = "MLFLOW_BACKEND_STORE_URI"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    start_parser = commands.add_parser("start", help="start, wait until it answers, print its URI")
    start_parser.add_argument("folder", type=Path)
    start_parser.add_argument("--port", type=int, default=0, help="0: the port of the last start, else any free one")
    artifacts_help = "where the server keeps artifacts (default: where the last start kept them, else a folder in DIR)"
    start_parser.add_argument("--artifacts", help=artifacts_help)
    start_parser.add_argument("--auth", action="store_true", help="ask for a login; a folder with logins always does")
    start_parser.add_argument("--foreground", action="store_true", help="stay until the server ends")
    stop_parser = commands.add_parser("stop", help="stop the server of a folder")
    stop_parser.add_argument("folder", type=Path)
    stop_parser.add_argument("--grace", type=float, default=5.0, help="seconds before it is killed")
    uri_parser = commands.add_parser("uri", help="print the tracking URI")
    uri_parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)

    server = ServerProcess("mlflow", options.folder)
    try:
        if options.command == "stop":
            print("stopped" if server.stop(options.grace) else "was not running")
        elif options.command == "uri":
            if not server.process():
                raise ServerError(f"no MLflow server runs in {server.folder}")
            print(server.state()["uri"])
        else:
            print(start(server, options.port, options.artifacts, options.auth), flush=True)
            if options.foreground:
                server.wait()
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def start(server: ServerProcess, port: int, artifacts: str | None, auth: bool) -> str:
    """Start the server in the background; returns its tracking URI."""
    server.claim()
    port = port or server.state().get("port") or free_ports(1)[0]
    artifacts = artifacts or server.state().get("artifacts") or (server.folder / "artifacts").as_uri()
    uri = f"http://{HOST}:{port}"
    environment = {
        DATABASE: _database(server.folder),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes and 500 MB that tracking does not use
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if "AWS_ENDPOINT_URL" in os.environ:
        environment["MLFLOW_S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    logins = Logins(server.folder)
    # MLflow itself would start without them, and fail at the first artifact, or at the first login.
    if artifacts.startswith("s3://"):
        _require("boto3", "artifacts in S3")
    if auth or logins.exist:
        _require("flask_wtf", "logins")
    if auth and not logins.exist:
        logins.make()
    app = []
    if logins.exist:
        environment |= logins.environment()
        app = ["--app-name", "basic-auth"]
    server.start(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
            *("--serve-artifacts", "--artifacts-destination", artifacts),
            *app,
        ],
        port,
        lambda: _answers(uri),
        {"uri": uri, "port": port, "artifacts": artifacts},
        environment,
        private=True,
    )
    if logins.exist:
        try:
            logins.create_users(uri)
        except (ServerError, OSError):
            server.stop()
            raise
    return uri


def _require(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ServerError(f"{what} need the package {package}: pip install -c constraints.txt 'astroclip-dist[server]'")


def _database(folder: Path) -> str:
    """URI of the database, whose driver is there."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    uri = os.environ.get(DATABASE) or f"sqlite:///{folder}/mlflow.db"
    try:
        make_url(uri).get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError):
        # Not repeated: it may hold a password.
        raise ServerError(f"{DATABASE} is no database: write postgresql://USER:PASSWORD@HOST/NAME") from None
    except ImportError as error:
        why = str(error).splitlines()[0]
        raise ServerError(f"{DATABASE}: no driver ({why}); for PostgreSQL: pip install 'psycopg[binary]'") from None
    return uri


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
