"""What the first users do, on real pods from start to end: the SDK's script, and the command with its block."""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
import tarfile
from pathlib import Path

import pytest

from sp_ray_ml import __version__
from sp_ray_ml.cli.__main__ import main
from sp_ray_ml.cluster import RayCluster
from sp_ray_ml.cluster._changed_files import send_changed
from sp_ray_ml.cluster._kinds import POD, STORAGE_CLASS
from sp_ray_ml.cluster._working_dir import folder_package, is_there
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError

from .conftest import kubeconfig, wait_for

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(1800)]
# The node of a test is small: what must be free is less than what may be used.
LITTLE = {"cpu_request": "300m", "memory_request": "1Gi"}


def test_the_first_users_script_runs_from_start_to_end(namespace, image, api):
    import ray

    cluster = RayCluster.create_cluster(
        name="seed", namespace=namespace, cpus_in_head=1, memory_in_head="2Gi", cpus_per_worker=1,
        memory_per_worker="2Gi", worker_replicas=1, await_ready=True, image=image, kubeconfig=kubeconfig(), **LITTLE,
    )  # fmt: skip
    assert re.fullmatch(r"[\d.]+", cluster.head_ip)
    assert cluster.num_workers == 1
    cluster.scale_worker_group(worker_group="worker", replicas=2)
    assert cluster.num_workers == 2
    cluster = RayCluster.get_cluster(name="seed", namespace=namespace, kubeconfig=kubeconfig())

    def both_versions():
        found = cluster.describe()
        return found if found.ray_version and found.python_version else None

    described = wait_for(both_versions, lambda: f"the versions that Ray tells: {cluster.describe()}")
    assert described.ray_version == ray.__version__
    assert described.python_version == ".".join(map(str, sys.version_info[:3]))
    assert (described.state, described.workers_ready) == ("ready", 2)

    # Ready means usable: Ray itself has all three nodes, and runs work on them.
    folder = Path("job")
    folder.mkdir()
    (folder / "rows.bin").write_bytes(secrets.token_bytes(3 << 20))
    (folder / "count.py").write_text(
        "import os, ray\nray.init()\nprint(sum(n['Alive'] for n in ray.nodes()), 'nodes', os.environ['GREETING'])\n"
    )
    said = []
    job = cluster.submit("python count.py", working_dir=folder, env={"GREETING": "hello"})
    assert job.wait(said.append) == "SUCCEEDED"
    assert "3 nodes hello" in "".join(said)
    assert [each["submission_id"] for each in cluster.jobs()] == [job.id]
    said.clear()
    # Of a folder that was sent before, only what changed is sent again.
    script = (
        "import hashlib, pathlib\nprint(hashlib.sha256(pathlib.Path('rows.bin').read_bytes()).hexdigest())\n"
    )
    (folder / "count.py").write_text(script)
    package = folder_package(folder)
    where = (cluster.namespace, cluster.name)
    with cluster.dashboard() as dashboard:
        assert send_changed(cluster._api, *where, dashboard, package) == len(script)
        assert is_there(dashboard, package)
    assert cluster.submit("python count.py", working_dir=folder).wait(said.append) == "SUCCEEDED"
    assert hashlib.sha256((folder / "rows.bin").read_bytes()).hexdigest() in "".join(said)
    said.clear()
    failed = cluster.submit("""python -c 'print("the log"); raise SystemExit(3)'""", job_id="nightly")
    with pytest.raises(ClusterError, match=r"the job failed: .*exit code 3$") as raised:
        failed.wait(said.append)
    assert ("the log" in "".join(said), "the log" in raised.value.message) == (True, False)  # once
    with pytest.raises(ClusterError, match=r"exit code 3\n(.*\n)*the log"):
        failed.wait()
    stopped = cluster.submit("sleep 600")
    stopped.stop()
    assert stopped.wait() == "STOPPED"
    with pytest.raises(ClusterNotFoundError, match=r"there is no job nightli; did you mean nightly\?"):
        cluster.job("nightli").logs()
    assert any("ray start" in text or "Ray runtime started" in text for _, text in cluster.logs())

    cluster.close()
    cluster.delete()
    assert api.list(POD, namespace)[0] == []


def test_the_first_users_command_prints_its_block(namespace, image, api, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", kubeconfig())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    code = main([
        "create", "cluster", "my-cluster", "-n", namespace, "--with-tutorials", "--vscode-server", "--image", image,
        "--cpus-in-head", "1", "--memory-in-head", "3Gi", "--cpus-per-worker", "1", "--memory-per-worker", "2Gi",
        "--cpu-request", "300m", "--memory-request", "1Gi",
    ])  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0, printed.err
    lines = printed.out.splitlines()
    assert lines[:2] == [
        f"Created cluster my-cluster in namespace {namespace}",
        "Uploaded tutorial notebooks",
    ]
    values = {line[:24].rstrip(): line[24:] for line in lines[2:] if len(line) > 24 and line[23] == " "}
    head = values["head IP"]
    assert values["sp-ray version"] == __version__
    assert values["server"] == f"ray://{head}:10001"
    assert values["dashboard"] == f"http://{head}:8265"
    assert values["notebook server"] == f"http://{head}:8081"
    assert values["OpenVSCode server"] == f"http://{head}:3000"
    assert values["workers"] == "1"
    here = ["my-cluster", "-n", namespace]
    assert main(["suspend", "cluster", *here]) == 0
    if not api.list(STORAGE_CLASS, None)[0]:
        # The head's home is in its pod: it is saved, with the tutorials, before that goes.
        saved = re.search(r"Saved the head's home, which is on no volume: (.+)", capsys.readouterr().out)
        with tarfile.open(Path(saved[1]) / "home.tar.gz") as home:
            assert "./tutorials/first_cluster.ipynb" in home.getnames()
    assert main(["logs", "cluster", *here]) == 1
    assert f"sp-ray resume cluster my-cluster -n {namespace}" in capsys.readouterr().err
    assert main(["delete", "cluster", "my-cluster", "-n", namespace]) == 0
    assert main(["describe", "cluster", "my-cluster", "-n", namespace, "--post-mortem"]) == 0
    assert f"{namespace}/my-cluster" in capsys.readouterr().out
