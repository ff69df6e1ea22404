"""The workbench on a real head: both pages in a real browser, the tutorial, and what an image lacks."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sp_ray_ml.cluster._connect import Connection, running_head
from sp_ray_ml.cluster._exec import run_in_pod
from sp_ray_ml.cluster._kinds import POD
from sp_ray_ml.cluster._workbench import await_workbench, upload_tutorials, workbench_patch, workbench_ports
from sp_ray_ml.cluster.settings import ClusterSettings
from sp_ray_ml.errors import ClusterUnhealthyError

from .browser import Browser
from .runs import await_running

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(900)]

FOLDER = Path(os.environ.get("SP_RAY_TEST_SCREENSHOTS", ""))
"""Where screenshots are kept for looking at; with the test's other files without."""


@pytest.fixture
def screenshots(tmp_path) -> Path:
    if not os.environ.get("SP_RAY_TEST_SCREENSHOTS"):
        return tmp_path
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FOLDER


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as started:
        yield started


@pytest.fixture
def connection(api, workbench) -> Iterator[Connection]:
    head = running_head(api, workbench.namespace, workbench.name)
    await_workbench(api, workbench.namespace, head, workbench_ports(workbench.manifest))
    with Connection(api, workbench.namespace, workbench.name) as opened:
        yield opened


def test_jupyterlab_opens_in_a_browser_with_the_tutorial(connection, browser, screenshots):
    browser.open(
        connection.urls["notebook server"].replace("/lab?", "/lab/tree/tutorials/first_cluster.ipynb?")
    )
    browser.wait_for("document.body && document.body.innerText.includes('Your first Ray cluster')")
    browser.wait_for("document.querySelectorAll('.jp-Notebook .jp-Cell').length > 5")
    picture = browser.screenshot(screenshots / "jupyterlab.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Jupyter news" not in browser.text()


def test_vscode_opens_in_a_browser_behind_its_password(connection, browser, screenshots):
    browser.open(connection.urls["OpenVSCode server"])
    browser.wait_for("document.querySelector('input[type=password]')")
    browser.screenshot(screenshots / "vscode_login.png")
    password = connection.lines()[-1].split()[-1]
    browser.evaluate("document.querySelector('input[type=password]').focus()")
    browser.type(password)
    browser.evaluate("document.querySelector('form').requestSubmit()")
    browser.wait_for(
        "document.querySelector('.monaco-workbench .explorer-viewlet, .monaco-workbench .explorer-folders-view')"
    )
    browser.wait_for("document.body.innerText.toLowerCase().includes('tutorials')")
    browser.screenshot(screenshots / "vscode.png")


def test_dashboard_takes_its_token_in_a_browser(connection, browser, screenshots):
    browser.open(connection.dashboard)
    browser.wait_for("document.body && document.body.innerText.includes('Authentication Token Required')")
    browser.evaluate("document.querySelector('[role=dialog] input').focus()")
    browser.type(connection.token)
    browser.evaluate(
        "[...document.querySelectorAll('[role=dialog] button')].find((b) => /submit/i.test(b.innerText)).click()"
    )
    browser.wait_for(
        "document.body && document.querySelector('[role=dialog]') === null && document.body.innerText.includes('Cluster status')"
    )
    browser.open(f"{connection.dashboard}/#/cluster")
    browser.wait_for("document.body.innerText.includes('ALIVE')")
    browser.screenshot(screenshots / "dashboard.png")


@pytest.mark.parametrize("place", ["notebook server", "dashboard"])
def test_nobody_comes_in_without_the_token(connection, place):
    path = {"notebook server": "/api/contents", "dashboard": "/api/jobs/"}[place]
    base = connection.urls[place].partition("/lab")[0]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(base + path)
    assert refused.value.code in (401, 403)


def test_tutorial_runs_on_the_head(api, workbench):
    """By nbconvert on the head, with the kernel that JupyterLab starts there."""
    head = running_head(api, workbench.namespace, workbench.name)
    done = run_in_pod(
        api, workbench.namespace, head, "ray-head",
        ["jupyter", "nbconvert", "--to", "notebook", "--execute", "--stdout", "/home/workbench/tutorials/first_cluster.ipynb"],
        timeout_s=240,
    )  # fmt: skip
    assert not done.code, done.stderr.decode()
    outputs = [out for cell in json.loads(done.stdout)["cells"] for out in cell.get("outputs", ())]
    text = "".join("".join(out.get("text", "")) for out in outputs)
    assert f"computed on ['{head}']" in text
    assert "GiB" in text
    assert any("recall@10" in str(out.get("data")) for out in outputs)


def test_uploading_again_keeps_what_the_user_changed(api, workbench):
    head = running_head(api, workbench.namespace, workbench.name)

    def sh(script: str) -> str:
        done = run_in_pod(api, workbench.namespace, head, "ray-head", ["sh", "-c", script])
        assert not done.code, done.stderr
        return done.stdout.decode()

    file = "/home/workbench/tutorials/first_cluster.ipynb"
    assert upload_tutorials(api, workbench.namespace, head) == []
    before = sh(f"cat {file}")
    try:
        sh(f"echo changed > {file}")
        assert upload_tutorials(api, workbench.namespace, head) == ["first_cluster.ipynb"]
        assert sh(f"cat {file}") == "changed\n"
        sh(f"rm {file}")
        assert upload_tutorials(api, workbench.namespace, head) == []
        assert sh(f"cat {file}") == before
    finally:
        sh(f"rm -f {file}")
        upload_tutorials(api, workbench.namespace, head)


def test_server_that_ends_is_started_again(api, workbench):
    head = running_head(api, workbench.namespace, workbench.name)
    ports = workbench_ports(workbench.manifest)
    await_workbench(api, workbench.namespace, head, ports)
    kill = (
        "import os, signal, pathlib\n"
        "for p in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "    words = p.read_bytes().split(bytes(1))\n"
        "    if any(w.endswith(b'entry.js') for w in words): os.kill(int(p.parent.name), signal.SIGKILL)\n"
    )
    done = run_in_pod(api, workbench.namespace, head, "ray-head", ["python", "-c", kill])
    assert not done.code, done.stderr
    await_workbench(api, workbench.namespace, head, ports)


def test_image_without_the_servers_says_so_and_the_container_runs_on(api, namespace):
    """A plain image: the hook neither blocks nor fails the container."""
    settings = ClusterSettings(name="bare", tutorials=True, vscode_server=True)
    patch = workbench_patch(settings)
    container = {
        "name": "ray-head", "image": "localhost/busybox:local", "command": ["sleep", "1000"],
        "env": [each for each in patch["env"] if "value" in each], "lifecycle": patch["lifecycle"],
        "volumeMounts": patch["volumeMounts"],
    }  # fmt: skip
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare"},
        "spec": {
            "containers": [container], "volumes": [{"name": "home", "emptyDir": {}}], "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
        },
    }  # fmt: skip
    api.create(POD, namespace, pod)
    await_running(api, namespace, "bare")
    done = run_in_pod(api, namespace, "bare", "ray-head", ["sh", "-c", UNTIL_BOTH_ARE_MISSED])
    assert done.stdout.decode().splitlines() == [
        "this image has no JupyterLab",
        "this image has neither openvscode-server nor code-server",
    ]


def test_missing_server_is_an_error_that_names_the_image(api, workbench):
    head = running_head(api, workbench.namespace, workbench.name)
    with pytest.raises(ClusterUnhealthyError, match="does not listen: it was never started") as error:
        await_workbench(api, workbench.namespace, head, {"nothing": 3999}, timeout_s=0.5)
    assert "docker/Dockerfile" in error.value.hint


UNTIL_BOTH_ARE_MISSED = """
cd /tmp/ray-workbench
for i in 1 2 3 4 5 6 7 8 9 10; do [ -e notebook.missing ] && [ -e vscode.missing ] && break; sleep 1; done
cat notebook.missing vscode.missing
"""
