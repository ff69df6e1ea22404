"""A real cluster's ports on this machine: they outlive the head's pod, carry megabytes, and end on Ctrl-C."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from sp_ray_ml.cluster._connect import Connection, running_head
from sp_ray_ml.cluster._exec import run_in_pod
from sp_ray_ml.cluster._kinds import POD
from sp_ray_ml.cluster._port_forward import PortForward
from sp_ray_ml.cluster._snapshot import is_ready
from sp_ray_ml.errors import ClusterNotFoundError
from tests.sp_ray import SP_RAY

from .conftest import kubeconfig, wait_for

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(900)]

SERVE = "cd /tmp && mkdir -p www && cd www && hostname > name && exec httpd -f -p 8265"
"""An HTTP server as small as a pod can have it; it tells its pod's name."""


def server_pod(api, namespace: str, name: str) -> None:
    probe = {"httpGet": {"path": "/name", "port": 8265}, "periodSeconds": 1}
    container = {
        "name": "main",
        "image": "localhost/busybox:local",
        "command": ["sh", "-c", SERVE],
        "readinessProbe": probe,
        "resources": {"requests": {"cpu": "100m"}},  # or else it has what all others leave, at times nothing
    }
    spec = {
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
    }
    labels = {"ray.io/cluster": "small", "ray.io/node-type": "head"}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
    api.create(POD, namespace, body)
    wait_for(lambda: is_ready(api.get(POD, namespace, name)), lambda: f"pod {name} to answer")


def answering_head(api, namespace: str) -> str:
    """The head that runs, once its server listens: until then it would refuse."""
    pod = api.get(POD, namespace, running_head(api, namespace, "small"))
    if not is_ready(pod):
        raise ClusterNotFoundError("no head answers")
    return pod["metadata"]["name"]


def test_forwarded_port_survives_the_pods_deletion(api, namespace):
    server_pod(api, namespace, "first")
    find = lambda: answering_head(api, namespace)  # noqa: E731
    with PortForward(api, namespace, find, {8265: 8265}) as forward:
        url = f"http://127.0.0.1:{forward.local_port(8265)}/name"
        assert urllib.request.urlopen(url).read() == b"first\n"
        api.delete(POD, namespace, "first")
        server_pod(api, namespace, "second")
        # The first one after it may still go to the pod that is gone, as any that was open then.
        answers = []
        while b"second\n" not in answers:
            try:
                answers.append(urllib.request.urlopen(url).read())
            except OSError:
                answers.append(b"broken")
            assert len(answers) < 20, answers
        assert answers[-1] == b"second\n"


def test_connection_made_while_there_is_no_pod_waits_for_the_next(api, namespace):
    find = lambda: answering_head(api, namespace)  # noqa: E731
    with PortForward(api, namespace, find, {0: 8265}) as forward:
        answer: list[bytes] = []
        url = f"http://127.0.0.1:{forward.local_port(8265)}/name"
        asking = threading.Thread(target=lambda: answer.append(urllib.request.urlopen(url).read()))
        asking.start()
        server_pod(api, namespace, "late")
        asking.join()
    assert answer == [b"late\n"]


def test_megabytes_arrive_whole(api, namespace):
    server_pod(api, namespace, "big")
    script = "head -c 40000000 /dev/urandom > /tmp/www/big && sha256sum /tmp/www/big"
    wanted = run_in_pod(api, namespace, "big", "main", ["sh", "-c", script]).stdout.split()[0].decode()
    with PortForward(api, namespace, lambda: "big", {0: 8265}) as forward:
        data = urllib.request.urlopen(f"http://127.0.0.1:{forward.local_port(8265)}/big").read()
    assert hashlib.sha256(data).hexdigest() == wanted


@pytest.mark.parametrize("code", [0, 3])
def test_exit_codes_of_programs_come_back(api, namespace, code):
    server_pod(api, namespace, "programs")
    done = run_in_pod(
        api, namespace, "programs", "main", ["sh", "-c", f"cat; exit {code}"], stdin=b"in and out"
    )
    assert (done.code, done.stdout) == (code, b"in and out")


def test_ray_client_and_jobs_work_from_outside(api, workbench, tmp_path):
    """In a process of its own: Ray reads the token's variables once."""
    script = tmp_path / "client.py"
    script.write_text(
        "import sys\n"
        "from sp_ray_ml.cluster import RayCluster\n"
        "cluster = RayCluster.get_cluster(sys.argv[1], sys.argv[2], kubeconfig=sys.argv[3])\n"
        "with cluster.connect(check_versions=False) as connection:\n"
        "    import ray\n"
        "    ray.init(log_to_driver=False)\n"
        "    print('address', ray.util.get_node_ip_address() and connection.address)\n"
        "    print('node', ray.get(ray.remote(lambda: __import__('os').uname().nodename).remote()))\n"
        "    ray.shutdown()\n"
    )
    words = [sys.executable, script, workbench.name, workbench.namespace, kubeconfig()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    head = running_head(api, workbench.namespace, workbench.name)
    if done.returncode:
        script = "cd /tmp/ray/session_latest/logs && tail -n 20 ray_client_server*"
        logs = run_in_pod(api, workbench.namespace, head, "ray-head", ["sh", "-c", script])
        pytest.fail(f"{done.stderr}\n{logs.stdout.decode()}")
    assert f"node {head}" in done.stdout
    assert "address ray://127.0.0.1:" in done.stdout


def test_environment_is_as_it_was_afterwards(api, workbench, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    before = dict(os.environ)
    with Connection(api, workbench.namespace, workbench.name) as connection:
        assert os.environ["RAY_ADDRESS"] == connection.address
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert dict(os.environ) == before


def test_connect_command_prints_addresses_and_ends_cleanly_on_ctrl_c(workbench):
    taken = socket.socket()
    try:
        taken.bind(("127.0.0.1", 8265))
        taken.listen()
    except OSError:
        pass  # taken by another already, which serves as well
    words = [
        SP_RAY, "connect", "cluster", workbench.name, "-n", workbench.namespace,
        "--kubeconfig", kubeconfig(),
    ]  # fmt: skip
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        lines = [process.stdout.readline() for _ in range(6)]
        shown = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in lines)
        assert shown["server"].startswith("ray://127.0.0.1:")
        assert urllib.request.urlopen(shown["notebook server"]).status == 200
        assert not shown["dashboard"].endswith(":8265")
        assert urllib.request.urlopen(shown["dashboard"]).status == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
        taken.close()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
