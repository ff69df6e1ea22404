"""`cluster: auto` attaches to the Ray that a run is in; `cluster: local` never does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sp_ray_ml.cluster._connect import ray_of
from sp_ray_ml.errors import ConfigError, ResourceError
from sp_ray_ml.pipeline import load_config
from sp_ray_ml.train._ray_start import start_ray
from tests.sp_ray import SP_RAY

RAY = """
import ray, sys
print(ray.init("local", num_cpus=7, include_dashboard=False).address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("cluster", ["auto", "local"])
@pytest.mark.parametrize("address", [None, "ray://10.0.0.1:10001"])
def test_rays_address_is_the_surrounding_clusters_or_none_and_put_back(cluster, address, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "")
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    before = os.environ.get("RAY_ADDRESS")
    with ray_of(cluster):
        assert os.environ.get("RAY_ADDRESS") == (address if cluster == "auto" else None)
    assert os.environ.get("RAY_ADDRESS") == before


def test_another_word_for_the_cluster_is_refused():
    with pytest.raises(ConfigError, match="cluster: expected auto, local or a mapping"):
        load_config({"name": "a", "warehouse": "w", "cluster": "autp"})


def test_a_cluster_that_is_gone_is_named_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ResourceError, match=r"does not answer.*cluster=local"):
        start_ray()


@pytest.mark.slow
def test_a_run_within_a_cluster_is_held_against_its_resources(tmp_path):
    """What cannot be given is refused before anything starts: by this the run tells which Ray it looks at."""
    from .world import make_world

    make_world().write(tmp_path / "house")
    config = tmp_path / "run.yaml"
    config.write_text(
        f"name: there\nwarehouse: {tmp_path / 'house'}\n"
        "events: {table: events, user: user_id, item: item_id, time: seconds}\n"
        "nodes: {user: {table: users, id: user_id}, item: {table: items, id: item_id}}\n"
        "train: {kind: pyg, scaling: {workers: 99}}\ntracking: {enabled: false}\n"
    )
    # A Ray of this machine would ask for a token of its own.
    without_token = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        [sys.executable, "-c", RAY],
        env=without_token,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as head:
        environment = {**without_token, "RAY_ADDRESS": head.stdout.readline().strip()}
        said = {}
        for cluster in ("auto", "local"):
            run = [SP_RAY, "run", config, "--set", f"cluster={cluster}"]
            done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 2, done.stderr
            said[cluster] = done.stderr
        head.stdin.close()  # ends it
    assert "99 workers × 1 CPU = 99, but the Ray cluster has 7" in said["auto"]
    assert "but this machine has" in said["local"]


ASKS_OF_ITSELF = """
from sp_ray_ml.train._ray_start import start_ray
start_ray()
import ray

@ray.remote
class Controller:
    def alive(self):
        from ray.util.state import get_actor
        from ray.util.state.exception import RayStateApiException
        try:
            return get_actor(ray.get_runtime_context().get_actor_id())
        except RayStateApiException:
            return "no API server to ask"

print(len(ray.nodes()), ray.get(Controller.remote().alive.remote()))
"""


@pytest.mark.slow
def test_what_another_ray_has_left_on_this_machine_holds_nothing_up_and_is_not_asked_of_actors_of_ours():
    """Ray goes by a file of the last `ray start`, also when that was killed; Ray Train ends workers by what it says."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # sockets need a short path
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("192.0.2.2:6379")
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(
            [sys.executable, "-c", ASKS_OF_ITSELF], env={**environment, "RAY_TMPDIR": folder}, capture_output=True,
            text=True, timeout=240, check=False,
        )  # fmt: skip
    assert done.stdout.strip() == "1 no API server to ask", done.stderr
