"""A real Prometheus on the loopback interface, with the scrape jobs and alert rules of ops/prometheus/.

    python ops/prometheus.py start DIR [--port N] [--targets FOLDER] [--ray http://HEAD:8265] [--ray-token FILE]
                                       [--alertmanager HOST:PORT] [--rules FILE] [--interval 15s] [--foreground]
    python ops/prometheus.py uri DIR
    python ops/prometheus.py stop DIR

Runs that are started with ``metrics.port=0 metrics.targets_folder=DIR/targets`` are found at once. The program is the
machine's own or that of the Debian package ``prometheus``, which is fetched and not installed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from debian_package import PackageError, program
from server_process import HOST, ServerError, ServerProcess, free_ports

SHIPPED = Path(__file__).resolve().parent / "prometheus"


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    server = ServerProcess("prometheus", options.folder)
    try:
        if options.command == "stop":
            print("stopped" if server.stop(options.grace) else "was not running")
        elif options.command == "uri":
            if not server.process():
                raise ServerError(f"no Prometheus runs in {server.folder}")
            print(server.state()["uri"])
        else:
            print(start(server, options), flush=True)
            if options.foreground:
                server.wait()
    except (ServerError, PackageError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    start_parser = commands.add_parser("start", help="start, wait until it answers, print its URI")
    start_parser.add_argument("folder", type=Path)
    start_parser.add_argument("--port", type=int, default=0, help="0: the port of the last start, else any free one")
    start_parser.add_argument("--targets", type=Path, help="metrics.targets_folder of the runs (default: DIR/targets)")
    start_parser.add_argument("--ray", help="dashboard of a Ray cluster; without it no cluster is asked")
    start_parser.add_argument("--ray-token", type=Path, help="file with the cluster's token")
    start_parser.add_argument("--alertmanager", help="whom alerts are sent to; nobody if unset")
    start_parser.add_argument("--rules", type=Path, default=SHIPPED / "alerts.yml", help="default: the shipped ones")
    start_parser.add_argument("--interval", default="15s", help="of scraping, of looking for runs, and of the rules")
    start_parser.add_argument("--foreground", action="store_true", help="stay until the server ends")
    stop_parser = commands.add_parser("stop", help="stop the server of a folder")
    stop_parser.add_argument("folder", type=Path)
    stop_parser.add_argument("--grace", type=float, default=5.0, help="seconds before it is killed")
    uri_parser = commands.add_parser("uri", help="print where it answers")
    uri_parser.add_argument("folder", type=Path)
    return parser


def start(server: ServerProcess, options: argparse.Namespace) -> str:
    """Start the server in the background; returns its URI.

    Raises:
        ServerError, PackageError
    """
    executable = program("prometheus", "prometheus")
    server.folder.mkdir(parents=True, exist_ok=True)
    targets: Path = (options.targets or server.folder / "targets").resolve()
    targets.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.rules, server.folder / "alerts.yml")
    settings = server.folder / "prometheus.yml"
    settings.write_text(yaml.safe_dump(_settings(options, targets), sort_keys=False))
    port = options.port or server.state().get("port") or free_ports(1)[0]
    uri = f"http://{HOST}:{port}"
    server.start(
        [
            str(executable),
            f"--config.file={settings}",
            f"--storage.tsdb.path={server.folder / 'data'}",
            f"--web.listen-address={HOST}:{port}",
        ],
        port,
        lambda: _answers(uri),
        {"uri": uri, "port": port},
    )
    return uri


def _settings(options: argparse.Namespace, targets: Path) -> dict[str, Any]:
    """The shipped configuration with this start's places and interval."""
    settings: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": options.interval, "evaluation_interval": options.interval}
    runs, ray = settings["scrape_configs"]
    runs["file_sd_configs"] = [{"files": [f"{targets}/*.json"], "refresh_interval": options.interval}]
    if options.ray:
        [discovery] = ray["http_sd_configs"]
        discovery |= {"url": f"{options.ray.rstrip('/')}/api/prometheus/sd", "refresh_interval": options.interval}
        if options.ray_token:
            discovery["authorization"]["credentials_file"] = str(options.ray_token.resolve(strict=True))
        else:
            del discovery["authorization"]
    else:
        settings["scrape_configs"] = [runs]
    if options.alertmanager:
        settings["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [options.alertmanager]
    else:
        del settings["alerting"]
    return settings


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/-/ready", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
