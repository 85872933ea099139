"""A real MLflow tracking server on the loopback interface, with an SQLite database and a folder of artifacts.

    python ops/mlflow_server.py start DIR [--port N] [--artifacts s3://BUCKET/PREFIX] [--foreground]
    export MLFLOW_TRACKING_URI=$(python ops/mlflow_server.py uri DIR)
    python ops/mlflow_server.py stop DIR

Clients send artifacts through the server, so they need no credentials of the object storage; with ``--artifacts s3://``
the server itself takes them from its environment (AWS_*).
"""

from __future__ import annotations

import argparse
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from server_process import HOST, ServerError, ServerProcess, free_ports


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    start_parser = commands.add_parser("start", help="start, wait until it answers, print its URI")
    start_parser.add_argument("folder", type=Path)
    start_parser.add_argument("--port", type=int, default=0, help="0: the port of the last start, else any free one")
    start_parser.add_argument("--artifacts", help="where the server keeps artifacts (default: a folder in DIR)")
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
            print(start(server, options.port, options.artifacts), flush=True)
            if options.foreground:
                server.wait()
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def start(server: ServerProcess, port: int, artifacts: str | None) -> str:
    """Start the server in the background; returns its tracking URI."""
    server.folder.mkdir(parents=True, exist_ok=True)
    port = port or server.state().get("port") or free_ports(1)[0]
    uri = f"http://{HOST}:{port}"
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes and 500 MB that tracking does not use
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if "AWS_ENDPOINT_URL" in os.environ:
        environment["MLFLOW_S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    server.start(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{server.folder}/mlflow.db", "--serve-artifacts"),
            *("--artifacts-destination", artifacts or (server.folder / "artifacts").as_uri()),
        ],
        port,
        lambda: _answers(uri),
        {"uri": uri, "port": port},
        environment,
    )
    return uri


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
