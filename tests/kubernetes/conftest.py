"""What the tests on a real Kubernetes share: the API server, a namespace of their own, the image, fake nodes."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml import __version__
from sp_ray_ml.cluster import RayCluster, _agent_manifest
from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._kinds import NAMESPACE, NODE, ROLE, ROLE_BINDING, SERVICE_ACCOUNT
from sp_ray_ml.cluster.settings import ClusterSettings, HeadGroup, WorkerGroup

ROOT = Path(__file__).resolve().parents[2]
TOOL = Path(os.environ.get("SP_RAY_KUBERNETES_TOOL", ROOT.parent / "shared/kubernetes/cluster"))
PINNED_RAY = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
"""Version of Ray in the test image."""


def kubeconfig() -> str:
    """The kubeconfig of the cluster to test on.

    Raises:
        pytest.skip.Exception: None is named.
    """
    path = os.environ.get("SP_RAY_TEST_KUBECONFIG", "")
    if not path:
        pytest.skip("SP_RAY_TEST_KUBECONFIG names no kubeconfig of a cluster to test on")
    return path


def image_name() -> str:
    """Name of the image that pods of tests run: Ray, JupyterLab, VS Code, sshd and sp_ray_ml (image.sh makes it)."""
    return os.environ.get("SP_RAY_TEST_IMAGE") or f"localhost/sp-ray-test:{__version__}"


def wait_for(
    look: Callable[[], Any], what: Callable[[], str], seconds: float = 120, process: Any = None
) -> Any:
    """Look until there is something. The bound only ends a broken test."""
    end = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        ended = process is not None and process.poll() is not None
        if ended and (found := look()):
            return found
        assert not ended, f"it ended without {what()}"
        assert time.monotonic() < end, f"in vain waited for {what()}"
        time.sleep(0.2)


@pytest.fixture(autouse=True)
def _own_black_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved of deleted clusters goes with the test, not to the user's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def agent_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's CronJob starts no pass by itself: one amid a test would go by the real time."""
    monkeypatch.setattr(_agent_manifest, "_EVERY", "0 0 29 2 *")


@pytest.fixture(scope="session")
def api() -> Iterator[Api]:
    """The API server."""
    with Api(kubeconfig()) as connected:
        yield connected


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables by which pods and this machine reach an object store of the module's."""
    from .runs import object_store

    with object_store(tmp_path_factory.mktemp("store")) as variables:
        yield variables


@pytest.fixture(scope="session")
def image() -> str:
    return image_name()


@pytest.fixture
def namespace(api: Api, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, deleted after it."""
    yield from new_namespace(api, request.module.__name__)


@pytest.fixture(scope="module")
def module_namespace(api: Api, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the module's own, for what is dear to start."""
    yield from new_namespace(api, request.module.__name__)


def new_namespace(api: Api, module: str) -> Iterator[str]:
    topic = re.sub(r"[^a-z0-9]+", "-", module.rpartition(".")[2].removeprefix("test_").lower())
    name = f"test-{topic}-{secrets.token_hex(3)}"
    api.create(NAMESPACE, None, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    await_account(api, name)
    yield name
    api.delete(NAMESPACE, None, name)


def await_account(api: Api, namespace: str) -> None:
    """Wait until a new namespace takes pods: they are refused before its service account is there."""
    wait_for(
        lambda: api.find(SERVICE_ACCOUNT, namespace, "default"),
        lambda: f"the account `default` of {namespace}",
    )


@pytest.fixture
def weak_kubeconfig(api: Api, namespace: str, tmp_path: Path) -> Callable[..., Path]:
    """Makes kubeconfigs of a service account that has the rules that are given, `(group, resources, verbs)`, and none else."""

    def make(*rules: tuple[str, list[str], list[str]]) -> Path:
        name = f"weak-{secrets.token_hex(3)}"
        meta = {"metadata": {"name": name, "namespace": namespace}}
        api.create(SERVICE_ACCOUNT, namespace, {"apiVersion": "v1", "kind": "ServiceAccount", **meta})
        listed = [{"apiGroups": [group], "resources": what, "verbs": verbs} for group, what, verbs in rules]
        api.create(ROLE, namespace, {"apiVersion": ROLE.api_version, "kind": "Role", **meta, "rules": listed})
        binding = {
            "apiVersion": ROLE.api_version, "kind": "RoleBinding", **meta,
            "roleRef": {"apiGroup": ROLE.group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }  # fmt: skip
        api.create(ROLE_BINDING, namespace, binding)
        if rules:  # the API server's own authorizer hears of them by a watch
            group, (what, *_), (verb, *_) = rules[0]
            plural, _, sub = what.partition("/")
            asked = {
                "namespace": namespace,
                "group": group,
                "resource": plural,
                "subresource": sub,
                "verb": verb,
            }
            review = {
                "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": {"user": f"system:serviceaccount:{namespace}:{name}", "resourceAttributes": asked},
            }  # fmt: skip
            path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
            wait_for(
                lambda: api.json("POST", path, body=review)["status"]["allowed"],
                lambda: f"the rights of {name}",
            )
        request = {
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600},
        }  # fmt: skip
        answer = api.json("POST", f"{SERVICE_ACCOUNT.path(namespace, name)}/token", body=request)
        cluster: dict[str, str] = {"server": api.server}
        if authority := api.configuration.ssl_ca_cert:
            cluster["certificate-authority"] = authority
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "weak",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": answer["status"]["token"]}}],
            "contexts": [{"name": "weak", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
        }  # fmt: skip
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(config))
        return file

    return make


@pytest.fixture
def fake_node(api: Api) -> Iterator[Callable[..., str]]:
    """Makes nodes on which pods only seem to run: `fake_node("--gpu", "4")` gives the node's name.

    Pods need the toleration `{"key": "kwok.x-k8s.io/node", "operator": "Exists"}` to go there.
    """
    if not TOOL.exists():
        pytest.skip(f"fake nodes are made by {TOOL.name}, which is not here")
    made: list[str] = []

    def make(*options: str) -> str:
        name = f"fake-{secrets.token_hex(3)}"
        made.append(name)
        done = subprocess.run(
            [TOOL, "fake-node", name, *options], capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stderr

        def taints() -> list[str]:
            found = [taint["key"] for taint in api.get(NODE, None, name)["spec"].get("taints") or ()]
            return [key for key in found if key.startswith("node.kubernetes.io/")]

        # A node that has just come is tainted as not ready for a moment more.
        wait_for(lambda: not taints(), lambda: f"{name} to lose its taints: {taints()}")
        return name

    yield make
    for name in made:
        api.delete(NODE, None, name)


@pytest.fixture(scope="session")
def workbench(api: Api, image: str) -> Iterator[RayCluster]:
    """A cluster that people work on, ready: JupyterLab, VS Code and the tutorials on its head; shared, so leave it up."""
    for namespace in new_namespace(api, "test_workbench"):
        settings = ClusterSettings(
            name="bench",
            namespace=namespace,
            image=image,
            ray_version=PINNED_RAY,
            tutorials=True,
            vscode_server=True,
            env={"RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "300"},
            head=HeadGroup(cpus="2", memory="3Gi", cpu_request="300m", memory_request="1Gi"),
            workers=[WorkerGroup(replicas=0)],
        )
        yield RayCluster.create_cluster(settings=settings, plan=False, kubeconfig=kubeconfig())
