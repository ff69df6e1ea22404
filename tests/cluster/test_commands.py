"""What the commands on clusters say, over HTTP: recordings of the real operator, and a dashboard behind their proxy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sp_ray_ml.cli.__main__ import main
from sp_ray_ml.cluster import RayCluster
from sp_ray_ml.cluster._black_box import save_black_box
from sp_ray_ml.errors import ClusterError

from .recorded import RecordedServer

READY_S, SUSPENDED_S = 5.0, 20.0
"""When the clusters of the recordings are so."""
VERSIONS = {"data": {"rayVersion": "2.60.0"}}
JOBS = [
    {"submission_id": "nightly-1", "type": "SUBMISSION", "start_time": 1},
    {"submission_id": "nightly-2", "type": "SUBMISSION", "start_time": 2},
    {"submission_id": None, "job_id": "02000000", "type": "DRIVER", "start_time": 3},
]
LOG = "one\ntwo\nthree\n"


class Dashboard:
    """Ray's dashboard as far as jobs go; each call is kept."""

    def __init__(self, status: str = "SUCCEEDED", message: str = "") -> None:
        self.info = {"status": status, "message": message}
        self.asked: list[tuple[str, str]] = []

    def __call__(self, method: str, path: str, headers: Any) -> tuple[int, bytes]:
        self.asked.append((method, path))
        answers: dict[str, Any] = {
            "/api/v0/cluster_metadata": VERSIONS,
            "/api/jobs/": {"submission_id": "nightly-2"} if method == "POST" else JOBS,
            "/api/jobs/nightly-2": self.info,
            "/api/jobs/nightly-2/logs": {"logs": LOG},
        }
        if path not in answers:
            return 404, b"Job does not exist"  # Ray's own words have the id in them
        return 200, json.dumps(answers[path]).encode()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sp_ray(capsys: Any, monkeypatch: Any) -> Run:
    """Runs `sp-ray … -n NAMESPACE` in this process on a recording."""

    def run(server: RecordedServer, *arguments: str, bare: bool = False) -> tuple[int, str, str]:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        monkeypatch.delenv("SP_RAY_DEBUG", raising=False)
        capsys.readouterr()
        code = main(list(arguments) if bare else [*arguments[:3], "-n", server.namespace, *arguments[3:]])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


# --- jobs ---------------------------------------------------------------------------------------------------------------


def test_a_job_that_is_not_there_is_named_with_a_near_one_and_the_command(sp_ray: Run) -> None:
    with RecordedServer("01-ready", at=READY_S, proxy=Dashboard()) as server:
        code, out, err = sp_ray(server, "logs", "cluster", "demo", "--job", "nightly-22")
    assert (code, out) == (2, "")
    place = f"{server.namespace}/demo"
    assert err.splitlines() == [
        f"error: {place}: there is no job nightly-22; did you mean nightly-2?",
        "  There are, the latest first: 02000000, nightly-2, nightly-1. "
        f"Run: sp-ray logs cluster demo -n {server.namespace} --job 02000000",
    ]


def test_a_job_is_not_taken_for_a_path_of_the_dashboard(sp_ray: Run) -> None:
    dashboard = Dashboard()
    with RecordedServer("01-ready", at=READY_S, proxy=dashboard) as server:
        code, _, err = sp_ray(server, "logs", "cluster", "demo", "--job", "../v0/cluster_metadata")
    assert code == 2
    assert "there is no job ../v0/cluster_metadata" in err
    assert dashboard.asked[0] == ("GET", "/api/jobs/..%2Fv0%2Fcluster_metadata")


@pytest.mark.parametrize(("tail", "printed"), [((), LOG), (("--tail", "2"), "two\nthree\n")])
def test_of_a_jobs_log_only_the_lines_that_were_asked_for_are_printed(
    sp_ray: Run, tail: tuple[str, ...], printed: str
) -> None:
    with RecordedServer("01-ready", at=READY_S, proxy=Dashboard()) as server:
        assert sp_ray(server, "logs", "cluster", "demo", "--job", "nightly-2", *tail) == (0, printed, "")


FAILED = (
    "Job entrypoint command failed with exit code 3, last available logs (truncated to 20,000 chars):\n" + LOG
)


def test_a_job_that_fails_says_why_once(sp_ray: Run) -> None:
    with RecordedServer("01-ready", at=READY_S, proxy=Dashboard("FAILED", FAILED)) as server:
        code, out, err = sp_ray(server, "submit", "cluster", "demo", "--", "false")
        assert (code, out) == (1, LOG)
        assert (
            err
            == "Job nightly-2\nerror: nightly-2: the job failed: Job entrypoint command failed with exit code 3\n"
        )
        # Who has not seen its log is told the end of it.
        cluster = RayCluster.get_cluster("demo", server.namespace, kubeconfig=server.kubeconfig)
        with pytest.raises(ClusterError, match=r"exit code 3\none\ntwo\nthree$"):
            cluster.job("nightly-2").wait()


def test_a_job_that_was_stopped_is_no_success(sp_ray: Run) -> None:
    with RecordedServer("01-ready", at=READY_S, proxy=Dashboard("STOPPED")) as server:
        code, _, err = sp_ray(server, "submit", "cluster", "demo", "--", "sleep", "9")
        assert code == 1
        assert err.endswith("error: nightly-2: the job was stopped before its end\n")


# --- a suspended cluster ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [("submit", "cluster", "demo", "--", "true"), ("ssh", "cluster", "demo", "--", "true"), ("connect", "cluster", "demo"),
     ("logs", "cluster", "demo", "--job", "nightly-2")],
)  # fmt: skip
def test_what_needs_a_head_names_the_way_back_for_a_suspended_cluster(
    sp_ray: Run, command: tuple[str, ...]
) -> None:
    with RecordedServer("11-suspend", at=SUSPENDED_S) as server:
        code, out, err = sp_ray(server, *command)
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"error: {server.namespace}/demo: it is suspended",
        f"  {'Run' if command[0] == 'connect' else 'Bring it back'}: sp-ray resume cluster demo -n {server.namespace}",
    ]


def test_logs_of_a_suspended_cluster_say_where_they_are(sp_ray: Run) -> None:
    with RecordedServer("11-suspend", at=SUSPENDED_S) as server:
        code, out, err = sp_ray(server, "logs", "cluster", "demo")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"error: {server.namespace}/demo: it is suspended: its pods are gone, and their logs with them",
        f"  Bring it back: sp-ray resume cluster demo -n {server.namespace}",
        f"  What was saved of it before: sp-ray describe --post-mortem demo -n {server.namespace}",
    ]


def test_a_post_mortem_takes_the_name_alone(sp_ray: Run, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with RecordedServer("01-ready", at=READY_S) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        place = save_black_box(server.api(), server.namespace, "demo")
        command = ["describe", "--post-mortem", "demo", "-n", server.namespace]
        code, out, _ = sp_ray(server, *command, bare=True)
        assert code == 0
        assert out.startswith(f"{server.namespace}/demo: it is being deleted\n")
        assert place in out
        assert (0, out) == sp_ray(server, "describe", "cluster", "demo", "--post-mortem")[:2]
        code, out, err = sp_ray(server, *command[:2], "dmo", *command[3:], bare=True)
        assert (code, out) == (2, "")
        assert "there is no black box of this name" in err


# --- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("extend", "cluster", "demo", "--by", "soon"), "--by: expected a duration such as"),
        (("extend", "cluster", "demo", "--by", "0h"), "--by: must be more than nothing"),
        (("wait", "cluster", "demo", "--for", "redy"), "--for: 'redy' is nothing to wait for; did you mean ready?"),
        (("wait", "cluster", "demo", "--timeout", "soon"), "--timeout: expected a duration such as"),
        (("create", "cluster", "mine", "--wait-for", "redy"), "--wait-for: 'redy' is nothing to wait for"),
        (("create", "cluster", "mine", "--worker-replicas", "-1"), "--worker-replicas: must be greater than or equal to 0, got -1"),
        (("create", "cluster", "mine", "--memory-in-head", "48GB"), "--memory-in-head: "),
        (("create", "cluster", "mine", "--idle-timeout", "soon"), "--idle-timeout: "),
        (("create", "cluster", "mine", "--min-workers", "5", "--max-workers", "3"), "--min-workers 5 is more than --max-workers 3"),
        (("create", "cluster", "mine", "--worker-gpu-type", "t4"), "--worker-gpu-type is t4, but --gpus-per-worker is 0"),
        (("plan", "cluster", "mine", "--cpu-request", "99"), "--cpu-request 99 is more than the limit 15"),
    ],
)  # fmt: skip
def test_a_mistake_bears_the_name_that_its_option_has(
    sp_ray: Run, arguments: tuple[str, ...], words: str
) -> None:
    with RecordedServer("01-ready", at=READY_S) as server:
        code, out, err = sp_ray(server, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "_" not in err.splitlines()[0].replace(server.namespace, "")
