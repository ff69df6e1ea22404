"""The black box: whole or absent, without secrets, and readable when its cluster is long gone."""

from __future__ import annotations

import base64
import datetime
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from sp_ray_ml.cluster import _black_box, _black_box_store
from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._black_box import IN_CLUSTER, save_black_box
from sp_ray_ml.cluster._post_mortem import read_post_mortem
from sp_ray_ml.cluster._redactor import Redactor
from sp_ray_ml.errors import ClusterNotFoundError, StorageError

RAY_TOKEN = "zBq7-ray-token-planted-9931"
PASSWORD = "correct-horse-battery-7"
AWS_KEY = "AKIAIOSFODNN7EXAMPLE"
GITHUB = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"
SECRETS = (RAY_TOKEN, PASSWORD, AWS_KEY, GITHUB, "hunter2hunter2")
UID = "3f6c1a52-aaaa-bbbb-cccc-0123456789ab"
WHEN = datetime.datetime(2026, 11, 24, 20, 0, tzinfo=datetime.UTC)
LOG = f"""starting
password={PASSWORD}
Authorization: Bearer {RAY_TOKEN}
connecting to postgres://user:hunter2hunter2@db/x
key {AWS_KEY} and {GITHUB}
RuntimeError: CUDA out of memory
"""


def cluster() -> dict[str, Any]:
    head = {
        "name": "ray-head",
        "image": "x",
        "env": [
            {"name": "DB_PASSWORD", "value": PASSWORD},
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "demo", "key": "auth_token"}}},
        ],
    }
    template = {"spec": {"containers": [head]}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": "demo", "namespace": "play", "uid": UID, "resourceVersion": "7",
            "creationTimestamp": "2026-11-21T20:00:00Z",
            "annotations": {
                "sp-ray/warning": "is deleted at Tue 24 Nov 20:00 UTC: its time (3 d) is over",
                "kubectl.kubernetes.io/last-applied-configuration": json.dumps({"spec": head}),
            },
        },
        "spec": {"headGroupSpec": {"template": template}, "workerGroupSpecs": []},
        "status": {"state": "ready", "conditions": [{"type": "HeadPodReady", "status": "True"}]},
    }  # fmt: skip


def pod(name: str, kind: str, state: dict[str, Any], **more: Any) -> dict[str, Any]:
    containers = cluster()["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    return {
        "metadata": {
            "name": name, "namespace": "play", "uid": f"uid-{name}",
            "labels": {"ray.io/cluster": "demo", "ray.io/node-type": kind},
            "ownerReferences": [{"uid": UID, "kind": "RayCluster", "name": "demo"}],
        },
        "spec": {"containers": containers},
        "status": {"phase": "Running", "containerStatuses": [{"name": "ray-head", "state": state, **more}]},
    }  # fmt: skip


class World:
    """What the API server on loopback has."""

    def __init__(self) -> None:
        oom = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2026-11-24T19:00:00Z"}}
        self.cluster: dict[str, Any] | None = cluster()
        self.pods = [
            pod("demo-head-abcde", "head", {"running": {}}, ready=True),
            pod("demo-worker-fghij", "worker", {"running": {}}, restartCount=2, lastState=oom),
        ]
        self.log = LOG
        self.ray_answers = True
        self.config_maps: dict[str, Any] = {}
        self.unknown: list[str] = []
        events = [("FailedScheduling", "0/3 nodes"), ("SpRayWarning", f"is deleted; token={RAY_TOKEN}")]
        self.events = [
            {
                "metadata": {"name": f"e{number}", "creationTimestamp": "2026-11-24T19:00:00Z"},
                "involvedObject": {"kind": "RayCluster", "name": "demo", "uid": UID},
                "type": "Warning", "reason": reason, "message": message,
                "lastTimestamp": f"2026-11-24T19:0{number}:00Z",
            }
            for number, (reason, message) in enumerate(events)
        ]  # fmt: skip

    def get(self, path: str, query: dict[str, list[str]], headers: Any) -> Any:
        core = "/api/v1/namespaces/play"
        if path == "/apis/ray.io/v1/namespaces/play/rayclusters/demo":
            return self.cluster
        if path == f"{core}/pods":
            return {"metadata": {}, "items": self.pods}
        if path == f"{core}/events":
            return {"metadata": {}, "items": self.events}
        if path == f"{core}/secrets/demo":
            return {"data": {"auth_token": base64.b64encode(RAY_TOKEN.encode()).decode()}}
        if path.startswith(f"{core}/configmaps/"):
            return self.config_maps.get(path.rpartition("/")[2])
        if path.endswith("/log"):
            return self.log.encode()
        if "/proxy" in path:
            return self.ray(path.partition("/proxy")[2], query, headers)
        self.unknown.append(path)
        return None

    def ray(self, path: str, query: dict[str, list[str]], headers: Any) -> Any:
        """Answers of Ray 2.60, to who has its token."""
        assert headers["X-Ray-Authorization"] == f"Bearer {RAY_TOKEN}"
        if not self.ray_answers:
            return None
        if path == "/api/jobs/":
            return [
                {
                    "type": "SUBMISSION", "job_id": None, "submission_id": "raysubmit_1", "status": "FAILED",
                    "entrypoint": f"python train.py --password={PASSWORD}",
                    "message": f"Job failed\nValueError: bad {AWS_KEY}", "start_time": 1,
                    "runtime_env": {"env_vars": {"DB_PASSWORD": PASSWORD, "MODE": "fast"}},
                }
            ]  # fmt: skip
        if path == "/api/v0/nodes":
            node = {"node_id": "n1", "node_ip": "10.0.0.9", "is_head_node": True, "state": "ALIVE"}
            return {"data": {"result": {"result": [node]}}}
        if path == "/api/v0/logs":
            files = {"internal": ["gcs_server.out", "old/", "../../evil"], "driver": ["job-driver-1.log"]}
            return {"data": {"result": files}}
        if path == "/api/v0/logs/file":
            return f"{query['filename'][0]}: secret_key: {GITHUB}\n".encode()
        self.unknown.append(path)
        return None


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def api(world: World, tmp_path: Path) -> Iterator[Api]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # one request a connection: no thread waits for a next one

        def log_message(self, *args: Any) -> None: ...

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            found = world.get(url.path, parse_qs(url.query), self.headers)
            if found is None:
                body = {
                    "kind": "Status",
                    "reason": "NotFound",
                    "message": "gone",
                    "details": {"name": "demo"},
                }
                self.answer(404, json.dumps(body).encode())
            else:
                self.answer(200, found if isinstance(found, bytes) else json.dumps(found).encode())

        def do_PATCH(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/apply-patch+yaml"
            world.config_maps[urlsplit(self.path).path.rpartition("/")[2]] = json.loads(data)
            self.answer(200, data)

        def answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "play"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {}}],
    }  # fmt: skip
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    try:
        with Api(file, patience_s=0.5) as connected:
            yield connected
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def save(api: Api, where: str | Path | None, when: datetime.datetime = WHEN, **more: Any) -> str:
    return save_black_box(
        api, "play", "demo", None if where is None else str(where), now=when, direct=False, **more
    )


def texts(box: str | Path) -> dict[str, str]:
    return {
        f.relative_to(box).as_posix(): f.read_text(errors="replace")
        for f in Path(box).rglob("*")
        if f.is_file()
    }


def test_a_box_has_all_that_tells_how_a_cluster_ended(api, world, tmp_path):
    box = save(api, tmp_path / "boxes")
    assert box == str(tmp_path / "boxes/play/demo-3f6c1a52/20261124T200000Z")
    found = texts(box)
    assert set(found) == {
        "summary.md", "raycluster.json", "events.json", "jobs.json", "manifest.json",
        "pods/demo-head-abcde/pod.json", "pods/demo-head-abcde/ray-head.log",
        "pods/demo-worker-fghij/pod.json", "pods/demo-worker-fghij/ray-head.log",
        "pods/demo-worker-fghij/ray-head.previous.log",
        "ray/10.0.0.9/gcs_server.out", "ray/10.0.0.9/job-driver-1.log",
    }  # fmt: skip
    assert "CUDA out of memory" in found["pods/demo-worker-fghij/ray-head.previous.log"]
    assert json.loads(found["raycluster.json"])["status"]["conditions"][0]["type"] == "HeadPodReady"
    manifest = json.loads(found["manifest.json"])
    assert {name: len(text.encode()) for name, text in found.items() if name != "manifest.json"} == manifest[
        "files"
    ]
    assert "OOMKilled (exit code 137" in found["summary.md"]
    assert not world.unknown


def test_no_secret_is_in_any_file(api, tmp_path):
    found = texts(save(api, tmp_path / "boxes"))
    for name, text in found.items():
        for secret in SECRETS:
            assert secret not in text, f"{secret} in {name}"
    assert '"MODE": "fast"' in found["jobs.json"]
    environment = json.loads(found["raycluster.json"])["spec"]["headGroupSpec"]["template"]["spec"][
        "containers"
    ][0]["env"]
    assert environment[2]["valueFrom"]["secretKeyRef"] == {"name": "demo", "key": "auth_token"}
    assert "RuntimeError: CUDA out of memory" in found["pods/demo-head-abcde/ray-head.log"]


def test_no_secret_is_in_the_config_map(api, world):
    save(api, IN_CLUSTER)
    box = world.config_maps["demo-black-box"]
    said = json.dumps(box["data"])
    for packed in box["binaryData"].values():
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed))) as archive:
            files = [archive.extractfile(member) for member in archive.getmembers()]
            said += "".join(file.read().decode() for file in files if file)
    assert "CUDA out of memory" in said
    assert [secret for secret in SECRETS if secret in said] == []


def test_what_cannot_be_had_is_named_and_the_rest_is_kept(api, world, tmp_path):
    world.ray_answers = False
    found = texts(save(api, tmp_path / "boxes"))
    manifest = json.loads(found["manifest.json"])
    assert "jobs.json" not in found
    assert [line.partition(":")[0] for line in manifest["missing"]] == ["jobs", "Ray's logs"]
    assert "pods/demo-head-abcde/ray-head.log" in found


def test_a_full_disk_leaves_no_half_box(api, tmp_path, monkeypatch):
    root = tmp_path / "boxes"
    save(api, root)
    before = texts(root)
    real, written = _black_box.write_text, []

    def full(path: Path, text: str) -> None:
        written.append(path)
        if len(written) > 3:
            raise StorageError("cannot write: the disk is full") from OSError(errno.ENOSPC, "full")
        real(path, text)

    monkeypatch.setattr(_black_box, "write_text", full)
    with pytest.raises(StorageError, match="disk is full"):
        save(api, root, WHEN + datetime.timedelta(hours=1))
    assert texts(root) == before


def test_a_folder_that_cannot_be_written_is_an_error(api, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"a part of the path is a file|a file is in the way"):
        save(api, tmp_path / "file")


KILLED = """
import datetime, os, signal, sys
from sp_ray_ml.cluster import _black_box
from sp_ray_ml.cluster._api import Api

_black_box.commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with Api(sys.argv[1], patience_s=0.5) as api:
    _black_box.save_black_box(api, "play", "demo", sys.argv[2], direct=False)
"""


def test_a_process_that_is_killed_in_the_middle_leaves_no_half_box(api, tmp_path):
    root = tmp_path / "boxes"
    run = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "kubeconfig", root], check=False)
    assert run.returncode == -signal.SIGKILL
    assert list(root.rglob("*.log"))  # it had got that far
    with pytest.raises(ClusterNotFoundError):
        read_post_mortem(None, "play", "demo", str(root))
    assert read_post_mortem(None, "play", "demo", save_again(api, root)).manifest["uid"] == UID


def save_again(api: Api, root: Path) -> str:
    save(api, root)
    return str(root)


def test_a_url_has_the_box_and_a_failed_copy_leaves_nothing(api, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    url = "memory://boxes"
    try:
        box = save(api, url)
        assert box == f"{url}/play/demo-3f6c1a52/20261124T200000Z"
        assert memory.exists("/boxes/play/demo-3f6c1a52/20261124T200000Z/manifest.json")
        real = type(memory).put_file

        def fails(self: Any, source: str, target: str, **more: Any) -> None:
            if target.endswith("summary.md"):
                raise PermissionError("no permission storage.objects.create")
            real(self, source, target, **more)

        monkeypatch.setattr(type(memory), "put_file", fails)
        with pytest.raises(StorageError, match=r"no permission storage.objects.create"):
            save(api, url, WHEN + datetime.timedelta(hours=1))
        assert not memory.exists("/boxes/play/demo-3f6c1a52/20261124T210000Z")
        assert read_post_mortem(None, "play", "demo", url).place.endswith(
            "/play/demo-3f6c1a52/20261124T200000Z"
        )
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


def test_a_config_map_is_cut_to_its_size_and_says_so(api, world):
    world.log = "".join(f"{os.urandom(40).hex()}\n" for _ in range(20_000))
    save(api, IN_CLUSTER)
    box = world.config_maps["demo-black-box"]
    size = sum(len(base64.b64decode(v)) for v in box["binaryData"].values()) + len(json.dumps(box["data"]))
    assert 100 * 2**10 < size <= 900 * 2**10
    manifest = json.loads(next(iter(box["data"].values())))
    assert any("logs are cut to their last" in line for line in manifest["missing"])


@pytest.mark.parametrize("where", ["folder", "config map"])
def test_a_deletion_keeps_what_was_saved_before_the_suspension(api, world, tmp_path, where):
    place = IN_CLUSTER if where == "config map" else str(tmp_path / "boxes")
    save(api, place, reason="suspended: nothing has run")
    world.pods = []
    save(api, place, WHEN + datetime.timedelta(days=1), reason="deleted: its time (3 d) is over")
    if where == "config map":
        assert sorted(world.config_maps["demo-black-box"]["binaryData"]) == [
            "20261124T200000Z.tar.gz",
            "20261125T200000Z.tar.gz",
        ]
    world.cluster = None
    found = read_post_mortem(api, "play", "demo", None if where == "config map" else place)
    text = "\n".join(found.lines())
    assert "play/demo: deleted: its time (3 d) is over" in text
    assert "OOMKilled (exit code 137" in text
    assert "raysubmit_1 FAILED" in text
    assert "20261124T200000Z" in next(line for line in found.lines() if line.startswith("logs"))


def test_a_post_mortem_fits_on_one_screen_and_names_the_warning(api, world, tmp_path):
    world.events *= 30
    lines = read_post_mortem(None, "play", "demo", save_again(api, tmp_path / "boxes")).lines()
    assert len(lines) <= 40
    assert "warned    is deleted at Tue 24 Nov 20:00 UTC: its time (3 d) is over" in lines
    assert not any(secret in "\n".join(lines) for secret in SECRETS)


def test_without_a_place_the_box_is_in_this_users_own_folder(api, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    box = save(api, None)
    assert box.startswith(str(tmp_path / "data/sp-ray/black-boxes/play/demo-3f6c1a52/"))
    assert (tmp_path / "data/sp-ray/black-boxes").stat().st_mode & 0o077 == 0
    assert read_post_mortem(None, "play", "demo").place == box


def test_the_clusters_own_place_is_used(api, world, tmp_path):
    world.cluster["metadata"]["annotations"]["sp-ray/black-box"] = f"file://{tmp_path}/own"
    assert save(api, None).startswith(f"{tmp_path}/own/play/")


def test_a_missing_post_mortem_says_where_was_looked(api, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(ClusterNotFoundError, match="ConfigMap nobody-black-box"):
        read_post_mortem(api, "play", "nobody")


def test_a_cluster_whose_name_begins_alike_is_another(api, tmp_path):
    save(api, tmp_path / "boxes")
    with pytest.raises(ClusterNotFoundError):
        read_post_mortem(None, "play", "dem", str(tmp_path / "boxes"))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("the token bucket was emptied", "the token bucket was emptied"),
        ("Tokens: 512 per second, max_tokens=512", "Tokens: 512 per second, max_tokens=512"),
        ("password=123456 token: 99aa88bb", "password=*** token: ***"),
        ("epoch 3: loss=0.25 tokenizer loaded", "epoch 3: loss=0.25 tokenizer loaded"),
        ("api_key='abc123'", "api_key='***'"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "***"),
        ('{"client_secret": "x-1"}', '{"client_secret": "***"}'),
        ("https://host/x?access_token=abcd&y=1", "https://host/x?access_token=***&y=1"),
    ],
)
def test_text_keeps_all_but_the_secrets(text, kept):
    assert Redactor().text(text) == kept


@pytest.mark.timeout(120)  # where a pattern looks at every letter from every other, it takes hours
@pytest.mark.parametrize(
    "word", ["a", "a.", "secret", "?token", "tokens", "http://", "https://a:", "bearer ", "eyJ"]
)
def test_a_log_of_one_endless_line_is_no_trouble(word):
    assert "planted-42" not in Redactor().text(f"{word * 200_000}\nDB_PASSWORD=planted-42")


def test_old_scratch_is_removed_and_new_left(tmp_path):
    old, new = tmp_path / ".a.x.tmp", tmp_path / ".a.y.tmp"
    for each in (old, new):
        each.mkdir()
    os.utime(old, (0, 0))
    _black_box_store.remove_scratch(tmp_path)
    assert not old.exists()
    assert new.exists()
