"""A real S3 server (SeaweedFS, one process) on the loopback interface, for the demo, tests and a single workstation.

    python ops/object_store.py start DIR [--port N] [--bucket NAME ...] [--foreground]
    set -a; . DIR/trainer.env; set +a        # AWS_ENDPOINT_URL and credentials for everything that runs afterwards
    python ops/object_store.py stop DIR

Three identities, made at the first start, each in a file that only its owner may read: ``admin.env`` (also creates
buckets), ``trainer.env`` (reads, writes, lists), ``reader.env`` (reads, lists). For more than one machine use the
site's own object storage.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.store import S3Store
from server_process import HOST, ServerError, ServerProcess, free_ports, write_private

REGION = "us-east-1"
ACTIONS = {
    "admin": ["Admin", "Read", "Write", "List", "Tagging"],
    "trainer": ["Read", "Write", "List", "Tagging"],
    "reader": ["Read", "List"],
}
PORT_OPTIONS = (
    "-s3.port",
    "-s3.port.grpc",
    "-master.port",
    "-master.port.grpc",
    "-volume.port",
    "-volume.port.grpc",
    "-filer.port",
    "-filer.port.grpc",
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    start_parser = commands.add_parser("start", help="start, wait until it answers, print its endpoint")
    start_parser.add_argument("folder", type=Path)
    start_parser.add_argument("--port", type=int, default=0, help="0: the port of the last start, else any free one")
    start_parser.add_argument("--bucket", action="append", default=[], help="create this bucket (repeatable)")
    start_parser.add_argument("--foreground", action="store_true", help="stay until the server ends")
    stop_parser = commands.add_parser("stop", help="stop the server of a folder")
    stop_parser.add_argument("folder", type=Path)
    # SeaweedFS takes 19 s to leave by itself; what it acknowledged is on disk and survives being killed.
    stop_parser.add_argument("--grace", type=float, default=3.0, help="seconds before it is killed")
    bucket_parser = commands.add_parser("create-bucket", help="create a bucket on a running server")
    bucket_parser.add_argument("folder", type=Path)
    bucket_parser.add_argument("name")
    options = parser.parse_args(arguments)

    server = ServerProcess("object-store", options.folder)
    try:
        if options.command == "stop":
            print("stopped" if server.stop(options.grace) else "was not running")
        elif options.command == "create-bucket":
            create_bucket(server.folder, options.name)
        else:
            print(start(server, options.port), flush=True)
            for bucket in options.bucket:
                create_bucket(server.folder, bucket)
            if options.foreground:
                server.wait()
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def start(server: ServerProcess, port: int) -> str:
    """Start the server in the background; returns its endpoint URL."""
    server.claim()
    ports = server.state().get("ports") or free_ports(len(PORT_OPTIONS))
    if port:
        ports[0] = port
    endpoint = f"http://{HOST}:{ports[0]}"
    identities = server.folder / "identities.json"
    if not identities.exists():
        _make_identities(identities)
    _write_environments(server.folder, identities, endpoint)
    server.start(
        [
            _find_weed(),
            "-logtostderr=true",
            "server",
            f"-dir={server.folder}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",  # 10 s by default: a restart after a kill would take 18 s
            "-master.heartbeatInterval=200ms",
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=500",
            "-volume.preStopSeconds=1",
            "-filer",
            "-filer.maxMB=1",  # chunks of 1 MB: a third of the CPU of a small ranged read
            "-filer.disableHttp",  # the filer knows no credentials
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={identities}",
            *(f"{option}={number}" for option, number in zip(PORT_OPTIONS, ports, strict=True)),
        ],
        ports[0],
        lambda: _accepts_writes(server.folder),
        {"endpoint": endpoint, "ports": ports},
        {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},  # one volume a bucket at first, not seven
        private=True,
    )
    return endpoint


def create_bucket(folder: Path, name: str) -> None:
    """Create a bucket as admin; one that exists is left as it is."""
    # obstore has no such call: the object API's signed PUT on the bucket itself is S3's CreateBucket.
    url = obstore.sign(_connect(folder, name), "PUT", "", timedelta(seconds=60))
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT", data=b""), timeout=10):
            pass
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise ServerError(f"bucket {name}: the server answers {error.code} {error.reason}") from None


def _connect(folder: Path, bucket: str) -> S3Store:
    admin = dict(line.split("=", 1) for line in (folder / "admin.env").read_text().splitlines())
    return S3Store(
        bucket,
        endpoint=admin["AWS_ENDPOINT_URL"],
        access_key_id=admin["AWS_ACCESS_KEY_ID"],
        secret_access_key=admin["AWS_SECRET_ACCESS_KEY"],
        region=REGION,
        client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=5)},
    )


def _accepts_writes(folder: Path) -> bool:
    # The gateway answers a second or two before there is a volume to write to.
    try:
        create_bucket(folder, "ready")
        obstore.put(_connect(folder, "ready"), "probe", b"1")
    except (ServerError, OSError, obstore.exceptions.BaseError):
        return False
    return True


def _make_identities(path: Path) -> None:
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": f"{name}-{secrets.token_hex(4)}", "secretKey": secrets.token_urlsafe(30)}],
            "actions": actions,
        }
        for name, actions in ACTIONS.items()
    ]
    write_private(path, json.dumps({"identities": identities}, indent=1))


def _write_environments(folder: Path, identities: Path, endpoint: str) -> None:
    for identity in json.loads(identities.read_text())["identities"]:
        credentials = identity["credentials"][0]
        write_private(
            folder / f"{identity['name']}.env",
            f"AWS_ENDPOINT_URL={endpoint}\nAWS_REGION={REGION}\n"
            f"AWS_ACCESS_KEY_ID={credentials['accessKey']}\nAWS_SECRET_ACCESS_KEY={credentials['secretKey']}\n",
        )


def _find_weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise ServerError("weed (SeaweedFS) is not installed: pip install 'astroclip-dist[test]'")
    return found


if __name__ == "__main__":
    sys.exit(main())
