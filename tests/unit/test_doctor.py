"""The doctor's checks of this machine: what is there, what is missing, what is wrong."""

from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from astroclip_dist.cli import main
from astroclip_dist.config import RunConfig, load_config
from astroclip_dist.doctor import disks, tracking_server
from astroclip_dist.doctor.checks import CHECKS, Check
from astroclip_dist.doctor.clocks import check_clocks
from astroclip_dist.doctor.context import Context, context_of
from astroclip_dist.doctor.disks import check_disks
from astroclip_dist.doctor.examination import Examined, examine
from astroclip_dist.doctor.findings import Finding, fine, problem
from astroclip_dist.doctor.interfaces import check_interfaces
from astroclip_dist.doctor.kubernetes import check_kubernetes
from astroclip_dist.doctor.machine import check_machine
from astroclip_dist.doctor.ports import check_ports
from astroclip_dist.doctor.ray_cluster import check_ray
from astroclip_dist.doctor.showing import as_json, lines
from astroclip_dist.doctor.slurm import check_slurm
from astroclip_dist.doctor.tracking_server import check_tracking
from astroclip_dist.doctor.versions import check_versions
from astroclip_dist.errors import UserError
from tests.conftest import REPOSITORY


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    path = REPOSITORY / "configs" / "demo" / "align.yaml"
    return load_config(path, [f"data={tmp_path}/data", f"run={tmp_path}/run", *overrides])


def problems(findings: list[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.state == "problem"]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("", 0)) as stranger:
        yield stranger.getsockname()[1]


def test_the_environment_of_the_tests_has_what_the_project_pins() -> None:
    (found,) = check_versions(Context())
    assert found.state == "ok"
    assert {"torch", "ray", "mlflow", "deepspeed", "obstore", "python"} <= found.values.keys()


def test_wrong_and_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, about in {
        "astroclip_dist-0.1.0": "Name: astroclip-dist\nVersion: 0.1.0\nRequires-Python: >=99\n"
        "Requires-Dist: obstore<0.13,>=0.12\nRequires-Dist: no-such-package>=1\n"
        "Requires-Dist: neither-this>=1; extra == 'test'\n",
        "obstore-9.9": "Name: obstore\nVersion: 9.9\n",
    }.items():
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\n{about}")
    monkeypatch.syspath_prepend(tmp_path)
    assert [finding.what.split(", but")[0].split(" is not")[0] for finding in check_versions(Context())[1:-1]] == [
        "obstore 9.9",
        "no-such-package",
    ]
    assert "but >=99 is needed" in check_versions(Context())[0].what


def test_few_open_files_are_a_warning() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        (found,) = [finding for finding in check_machine(Context()) if "open files" in finding.what]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.state == "warning"
    assert found.values == {"open_files": 1024}


def test_a_disk_is_measured_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astroclip_dist.doctor.disks._LONGEST_S", 0.05)
    found = check_disks(Context(config(tmp_path, f"reading.cache={{folder: {tmp_path}/a/b, limit: 1 MB}}")))
    assert [finding.what.split(" (")[0] for finding in found] == ["temporary files", "cache", "run"]
    assert not problems(found)
    assert all(int(str(finding.values["written_bytes_a_second"])) > 0 for finding in found)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_on_the_command_line_is_examined_unless_it_is_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("astroclip_dist.doctor.disks._LONGEST_S", 0.05)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").touch()
    found = check_disks(context_of([f"{tmp_path}/data", str(tmp_path), f"file://{tmp_path}/new", "file:///proc/x"]))
    assert [finding.what.split(")")[0] for finding in found[1:]] == [
        f"folder ({tmp_path}",
        f"folder ({tmp_path}/new",
        "folder (/proc/x",
    ]
    assert [finding.state == "problem" for finding in found[1:]] == [False, False, True]


def test_a_cache_larger_than_its_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astroclip_dist.doctor.disks._LONGEST_S", 0.05)
    cache = f"reading.cache={{folder: {tmp_path}/cache, limit: 900 TB}}"
    (said,) = problems(check_disks(Context(config(tmp_path, cache))))
    assert said.startswith(f"cache ({tmp_path}/cache)")
    assert said.endswith("less than the cache may take")


def test_a_cache_in_use_may_lose_a_file_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shard").write_bytes(bytes(7))
    (tmp_path / "taken-out").symlink_to(tmp_path / "nowhere")
    # It was there when somebody asked, and is gone now.
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    assert disks._bytes_below(tmp_path) == 7
    assert disks._bytes_below(tmp_path / "not-there") == 0


@pytest.mark.parametrize("folder", ["/proc/astroclip", "FILE/run"])
def test_a_folder_that_cannot_be_written_is_a_problem(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = folder.replace("FILE", str(tmp_path / "file"))
    (said,) = problems(check_disks(Context(config(tmp_path, f"run={run}"))))
    assert said.startswith(f"run ({run})")


@pytest.mark.parametrize(
    ("variable", "value", "state"),
    [
        ("GLOO_SOCKET_IFNAME", "lo", "ok"),
        ("GLOO_SOCKET_IFNAME", "nosuch0", "problem"),
        ("NCCL_SOCKET_IFNAME", "l", "ok"),
        ("NCCL_SOCKET_IFNAME", "=l", "problem"),
        ("NCCL_SOCKET_IFNAME", "^nosuch", "ok"),
    ],
)
def test_interfaces_that_are_named_must_exist(
    variable: str, value: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    found = check_interfaces(Context())[0]
    assert found.state == state
    assert found.what.startswith(f"{variable}={value}: ")


def test_a_taken_port_is_named_with_who_has_it(
    taken_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("MASTER_PORT", str(taken_port))
    found = check_ports(Context(config(tmp_path, f"metrics.port={taken_port}")))
    assert [said.split(" is taken by ")[0] for said in problems(found)] == [
        f"port {taken_port} (MASTER_PORT)",
        f"port {taken_port} (metrics.port)",
    ]
    assert all(f"(process {os.getpid()})" in said for said in problems(found))


def test_queues_that_are_not_there_are_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "KUBECONFIG", "SLURM_CONF", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for check in (check_slurm, check_ray, check_kubernetes):
        (found,) = check(Context())
        assert (found.state, found.values) == ("ok", {"usable": False})


def test_queues_that_are_named_and_do_not_answer_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sinfo, sbatch = tmp_path / "sinfo", tmp_path / "sbatch"
    for command in (sinfo, sbatch):
        command.write_text("#!/bin/sh\necho 'slurm_load_partitions: Unable to contact slurm controller' >&2\nexit 1\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert problems(check_slurm(Context())) == [
        "Slurm's controller does not answer: slurm_load_partitions: Unable to contact slurm controller"
    ]
    assert problems(check_ray(Context())) == ["Ray at 127.0.0.1:9 does not answer: Connection refused"]
    assert problems(check_kubernetes(Context())) == [f"KUBECONFIG={tmp_path}/none: no such file"]


class _ApiServer(BaseHTTPRequestHandler):
    """Answers what a client asks first of a Kubernetes API server, for one token."""

    groups: tuple[str, ...] = ()

    def do_GET(self) -> None:
        answers: dict[str, object] = {
            "version": dict.fromkeys(("buildDate", "compiler", "gitCommit", "gitTreeState", "platform"), "")
            | {"goVersion": "", "major": "1", "minor": "31", "gitVersion": "v1.31.0"},
            "apis": {"groups": [{"name": name, "versions": []} for name in self.groups]},
        }
        allowed = self.headers["Authorization"] == "Bearer right"
        body = json.dumps(answers[self.path.strip("/")] if allowed else {}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("groups", "token", "state", "said"),
    [
        (("ray.io", "kueue.x-k8s.io"), "right", "ok", "v1.31.0 at {} answers"),
        (("ray.io",), "right", "problem", "at {} has no Kueue"),
        ((), "wrong", "problem", "at {} refuses us: 401"),
        (None, "right", "problem", "at {} does not answer"),
    ],
)
def test_a_kubernetes_cluster_is_asked_what_it_knows(
    groups: tuple[str, ...] | None, token: str, state: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kubernetes")
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (_ApiServer,), {"groups": groups or ()}))
    url = f"http://127.0.0.1:{server.server_port}"
    if groups is None:
        server.server_close()
    else:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(
        f"{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: '{url}'}}}}],"
        f" users: [{{name: c, user: {{token: {token}}}}}], contexts: [{{name: c, context: {{cluster: c, user: c}}}}]}}"
    )
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    (found,) = check_kubernetes(Context())
    assert found.state == state
    assert said.format(url) in found.what
    if groups is not None:
        server.shutdown()
        server.server_close()


def test_a_pod_without_an_account_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As launchers/kubernetes makes its pods.
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    (found,) = check_kubernetes(Context())
    assert (found.state, found.values) == ("ok", {"usable": False})


class _Gate(BaseHTTPRequestHandler):
    """A proxy that wants a login for everything, or, as ``status`` 0, something that does not speak HTTP."""

    status = 401

    def do_GET(self) -> None:
        if self.status:
            self.send_response(self.status)
            self.end_headers()
        else:
            self.wfile.write(b"\0\1\n")

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "said"), [(401, "logged in"), (404, "answers 404 Not Found"), (0, "does not answer: BadStatusLine")]
)
def test_mlflow_with_a_login_in_its_address(status: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (_Gate,), {"status": status}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    uri = f"http://me:password-of-mine@127.0.0.1:{server.server_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(tracking_server, "_login", lambda uri, shown: [fine(f"logged in with {uri}")])
    (found,) = check_tracking(Context())
    (clock,) = check_clocks(Context())
    server.shutdown()
    server.server_close()
    assert said in found.what
    assert clock.state == ("warning" if status == 0 else "ok")
    if status != 401:
        assert "password-of-mine" not in f"{found}{clock}"


def test_an_address_that_is_none_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:port")
    (found,) = check_tracking(Context())
    assert (found.state, "nonnumeric port" in found.what, "MLFLOW_TRACKING_URI" in found.mend) == (
        "problem",
        True,
        True,
    )
    assert [finding.state for finding in check_clocks(Context())] == ["warning"]


def test_a_check_that_hangs_or_breaks_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(context: Context) -> list[Finding]:
        time.sleep(30)
        return []

    def break_down(context: Context) -> list[Finding]:
        raise RuntimeError("secret-of-mine is not found at http://me:word@host/")

    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "secret-of-mine")
    began = time.monotonic()
    checks = [
        Check("hangs", hang, 0.2),
        Check("breaks", break_down, 5),
        Check("works", lambda context: [fine("secret-of-mine", key="secret-of-mine")], 5),
    ]
    hung, broken, worked = (examined.findings[0] for examined in examine(Context(), checks))
    assert time.monotonic() - began < 5
    assert hung.what == "no answer within 0.2 s"
    assert broken.what == "the check itself failed: RuntimeError: *** is not found at http://***@host/"
    assert (worked.what, worked.values) == ("***", {"key": "***"})


def test_what_is_shown() -> None:
    examined = Examined("disks", [fine("large"), problem("full", "Free space.", free_bytes=0)], 0.12345)
    assert list(lines(examined)) == [
        "ok       disks        large",
        "problem  disks        full",
        "                      -> Free space.",
    ]
    shown = as_json([examined])
    assert not shown["ok"]
    assert shown["checks"] == [
        {
            "check": "disks",
            "seconds": 0.123,
            "findings": [
                {"state": "ok", "what": "large", "mend": "", "values": {}},
                {"state": "problem", "what": "full", "mend": "Free space.", "values": {"free_bytes": 0}},
            ],
        }
    ]


def test_the_command_line_is_understood(tmp_path: Path) -> None:
    path = str(REPOSITORY / "configs" / "demo" / "align.yaml")
    context = context_of([path, "data=s3://survey/shards", "run=s3://runs/a", "gs://elsewhere/b/", str(tmp_path)])
    assert context.datasets == ("s3://survey/shards",)
    assert context.run == "s3://runs/a"
    assert context.urls == ("gs://elsewhere/b", tmp_path.as_uri())
    for wrong in ([path, path], ["seed=3"], ["nothing-like-it"], ["s3://me:word@bucket/x"]):
        with pytest.raises(UserError) as raised:
            context_of(wrong)
        assert "word" not in str(raised.value)


def test_the_command_prints_json_and_fails_with_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = tuple(check for check in CHECKS if check.name in ("versions", "interfaces"))
    monkeypatch.setattr("astroclip_dist.doctor.checks.CHECKS", some)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("problem  interfaces   GLOO_SOCKET_IFNAME=nosuch0: ")
    assert printed[2].strip().startswith("-> Set GLOO_SOCKET_IFNAME")
    assert printed[-1].startswith("1 problem, 0 warnings in ")
    assert main(["doctor", "nothing-like-it"]) == 2
