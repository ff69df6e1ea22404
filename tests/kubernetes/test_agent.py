"""The agent on a real Kubernetes: it warns, suspends and deletes, keeps what was there, and may do no more than that."""

from __future__ import annotations

import base64
import datetime
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sp_ray_ml.cluster import agent
from sp_ray_ml.cluster._activity import ask_activity
from sp_ray_ml.cluster._agent_manifest import (
    NAME,
    NOT_FROM_A_QUEUE,
    agent_problem,
    install_agent,
    retire_agent,
)
from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._events import event_subject, event_time
from sp_ray_ml.cluster._exec import run_in_pod
from sp_ray_ml.cluster._kinds import (
    CLUSTER_LABEL,
    CONFIG_MAP,
    CRON_JOB,
    EVENT,
    JOB,
    POD,
    PVC,
    QUEUE_LABEL,
    RAY_CLUSTER,
    ROLE,
    SECRET,
    WORKLOAD,
    Kind,
)
from sp_ray_ml.cluster._lifetime import extend, lifetime_lines, resumed_annotations
from sp_ray_ml.cluster._lifetime_rules import ACTIVITY, WARNING, Lifetime
from sp_ray_ml.cluster._permissions import Need, agent_needs
from sp_ray_ml.cluster._post_mortem import read_post_mortem
from sp_ray_ml.cluster._snapshot import is_ready, own_pods
from sp_ray_ml.cluster._wait import wait_until
from sp_ray_ml.cluster._watch import Feed, Watch
from sp_ray_ml.errors import ClusterError

from .conftest import kubeconfig, new_namespace

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900), pytest.mark.usefixtures("agent_by_hand")]

Body = dict[str, Any]
MINUTE, HOUR = datetime.timedelta(minutes=1), datetime.timedelta(hours=1)
PYTHON_CACHE = {"name": "PYTHONPYCACHEPREFIX", "value": "/home/workbench/.cache/python"}
"""The image has no compiled modules: on a busy machine Ray only starts in time when it need not compile again."""
PERSISTENT_VOLUME = Kind("PersistentVolume", "/api/v1", "persistentvolumes", namespaced=False)


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def await_objects(
    api: Api, kind: Kind, namespace: str, holds: Callable[[list[Body]], bool], labels: str = ""
) -> list[Body]:
    """Wait until the objects of a kind are so; the bound only ends a test that fails."""
    feed = Feed()
    with Watch(api, kind, namespace, feed, labels=labels) as watch:
        while not (watch.synced and holds(watch.objects())):
            assert feed.next(480), f"in vain waited for {kind.plural}"
        return watch.objects()


def ray_cluster(name: str, image: str, *, idle: str = "never", ttl: str = "never", **more: Any) -> Body:
    """A small cluster of a head alone."""
    container: Body = {
        "name": "ray-head",
        "image": image,
        "env": [PYTHON_CACHE],
        "resources": {"requests": {"cpu": "600m", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}},
        **more.pop("container", {}),
    }
    pod = {"terminationGracePeriodSeconds": 1, "containers": [container], **more.pop("pod", {})}
    return {
        "apiVersion": RAY_CLUSTER.api_version,
        "kind": RAY_CLUSTER.name,
        "metadata": {"name": name, "annotations": {"sp-ray/idle-timeout": idle, "sp-ray/ttl": ttl}},
        "spec": {
            "rayVersion": "2.60.0",
            "headGroupSpec": {"rayStartParams": {}, "template": {"spec": pod}},
            "workerGroupSpecs": [],
            **more,
        },
    }


@pytest.fixture
def fake(api, namespace, fake_node):
    """Makes clusters whose pods only seem to run, and of which therefore nobody knows whether they are in use."""
    node = fake_node("--cpu", "64")
    place = {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
    }

    def make(name: str, **limits: str) -> Body:
        made = api.create(RAY_CLUSTER, namespace, ray_cluster(name, "fake", pod=place, **limits))
        uid = made["metadata"]["uid"]
        await_objects(
            api, POD, namespace,
            lambda pods: any(is_ready(p) and p["metadata"]["ownerReferences"][0]["uid"] == uid for p in pods),
        )  # fmt: skip

        def settled(clusters: list[Body]) -> bool:
            """Whether the operator has written so: until then its write may come between two of the test's."""
            mine = next((each for each in clusters if each["metadata"]["uid"] == uid), {})
            return (mine.get("status") or {}).get("state") == "ready"

        await_objects(api, RAY_CLUSTER, namespace, settled)
        return api.get(RAY_CLUSTER, namespace, name)

    return make


def created(cluster: Body) -> datetime.datetime:
    return Lifetime.of(cluster).created


def look(api: Api, namespace: str, now: datetime.datetime) -> dict[str, Any]:
    return agent.run_pass(api, namespace, clock=lambda: now, direct=True)


def reasons(api: Api, namespace: str, cluster: Body) -> list[str]:
    """Of the agent's Events about a cluster, in their order."""
    mine = [
        e for e in api.list(EVENT, namespace)[0] if event_subject(e).get("uid") == cluster["metadata"]["uid"]
    ]
    return [e["reason"] for e in sorted(mine, key=event_time) if e["reason"].startswith("SpRay")]


# --- clusters on fake nodes ---------------------------------------------------------------------------------------


def test_a_cluster_that_cannot_be_asked_is_not_taken_for_idle_and_it_is_said(api, namespace, fake):
    cluster = fake("quiet", idle="2h")
    for hours in (1, 2, 30):
        look(api, namespace, created(cluster) + hours * HOUR)
    found = api.get(RAY_CLUSTER, namespace, "quiet")
    assert not found["spec"].get("suspend")
    assert WARNING not in found["metadata"]["annotations"]
    assert lifetime_lines(found)[0].startswith("activity unknown (")


def test_a_cluster_whose_time_is_over_is_warned_of_suspended_and_deleted_and_can_be_read_of(
    api, namespace, fake
):
    cluster = fake("old", ttl="6h")
    start = created(cluster)
    assert look(api, namespace, start + 4 * HOUR)["old"].startswith("unknown")
    assert look(api, namespace, start + 5 * HOUR)["old"].startswith("warned: is suspended at ")
    # It cannot be asked, and so it is given as much again.
    assert not api.get(RAY_CLUSTER, namespace, "old")["spec"].get("suspend")
    assert look(api, namespace, start + 12 * HOUR)["old"].startswith("suspended: its time (6 h) is over")
    await_objects(api, POD, namespace, lambda pods: pods == [])
    assert look(api, namespace, start + 13 * HOUR)["old"].startswith("warned: is deleted at ")
    assert look(api, namespace, start + 14 * HOUR)["old"].startswith("deleted: its time (6 h) is over")
    assert api.find(RAY_CLUSTER, namespace, "old") is None
    assert reasons(api, namespace, cluster) == [
        "SpRayWarning",
        "SpRaySuspended",
        "SpRayWarning",
        "SpRayDeleted",
    ]
    lines = read_post_mortem(api, namespace, "old").lines()
    assert lines[0] == f"{namespace}/old: deleted: its time (6 h) is over"
    assert any(line.startswith("  old-head") for line in lines)
    assert any("SpRaySuspended" in line for line in lines)


def test_one_clusters_failure_does_not_stop_the_others(api, namespace, fake):
    cluster = fake("good", ttl="6h")
    api.create(RAY_CLUSTER, namespace, ray_cluster("bad", "fake", ttl="six hours"))
    done = look(api, namespace, created(cluster) + 5 * HOUR)
    assert isinstance(done["bad"], ClusterError)
    assert "six hours" in done["bad"].message
    assert done["good"].startswith("warned")


def test_an_extension_is_kept_to_and_two_at_once_both_count(api, namespace, fake):
    cluster = fake("mine", ttl="6h")
    start = created(cluster)
    look(api, namespace, start + 5 * HOUR)
    assert WARNING in api.get(RAY_CLUSTER, namespace, "mine")["metadata"]["annotations"]
    together = threading.Barrier(2)

    def extend_once(_: int) -> datetime.datetime:
        together.wait()
        return extend(api, namespace, "mine", "1d", now=start + 5 * HOUR)

    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(extend_once, range(2))) == start + 54 * HOUR
    assert look(api, namespace, start + 12 * HOUR)["mine"].startswith("unknown")
    found = api.get(RAY_CLUSTER, namespace, "mine")
    assert WARNING not in found["metadata"]["annotations"]
    assert not found["spec"].get("suspend")


def test_whoever_extends_while_the_black_box_is_saved_keeps_the_cluster(api, namespace, fake, monkeypatch):
    cluster = fake("late", ttl="6h")
    start = created(cluster)
    look(api, namespace, start + 5 * HOUR)
    save = agent.save_black_box

    def slow(*arguments: Any, **more: Any) -> str:
        place = save(*arguments, **more)
        extend(api, namespace, "late", "1d", now=start + 12 * HOUR)
        return place

    monkeypatch.setattr(agent, "save_black_box", slow)
    assert look(api, namespace, start + 12 * HOUR)["late"].startswith("left alone after all")
    assert not api.get(RAY_CLUSTER, namespace, "late")["spec"].get("suspend")


def test_what_cannot_be_saved_is_neither_suspended_nor_deleted(api, namespace, fake):
    cluster = fake("full", ttl="6h")
    start = created(cluster)
    notes = {"sp-ray/black-box": "file:///proc/no-such-place"}
    api.patch(RAY_CLUSTER, namespace, "full", {"metadata": {"annotations": notes}})
    look(api, namespace, start + 5 * HOUR)
    done = look(api, namespace, start + 12 * HOUR)
    assert isinstance(done["full"], Exception)
    found = api.get(RAY_CLUSTER, namespace, "full")
    assert not found["spec"].get("suspend")
    assert found["metadata"]["annotations"][WARNING].startswith("not suspended: cannot write")


def test_resuming_gives_the_idle_time_anew(api, namespace, fake):
    cluster = fake("back", idle="2h")
    start = created(cluster)
    api.patch(RAY_CLUSTER, namespace, "back", {"spec": {"suspend": True}})
    wait_until(api, namespace, "back", "suspended", 120)
    look(api, namespace, start + HOUR)
    assert Lifetime.of(api.get(RAY_CLUSTER, namespace, "back")).suspended_at == start + HOUR
    patch = {"spec": {"suspend": False}, "metadata": {"annotations": resumed_annotations(start + 9 * HOUR)}}
    api.patch(RAY_CLUSTER, namespace, "back", patch)
    life = Lifetime.of(api.get(RAY_CLUSTER, namespace, "back"))
    assert (life.suspended_at, life.idle_ends) == (None, start + 11 * HOUR)


# --- a real Ray ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(api: Api, image: str) -> Iterator[Body]:
    """A cluster of a real head, with a token, and a home on no volume."""
    source = new_namespace(api, "test_agent_real")
    namespace = next(source)
    try:
        container = {"volumeMounts": [{"name": "home", "mountPath": "/home/workbench"}],
                     "env": [{"name": "HOME", "value": "/home/workbench"}, PYTHON_CACHE]}  # fmt: skip
        pod = {
            "volumes": [{"name": "home", "emptyDir": {}}],
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000, "runAsNonRoot": True},
        }
        body = ray_cluster(
            "real", image, idle="2h", container=container, pod=pod, authOptions={"mode": "token"}
        )
        api.create(RAY_CLUSTER, namespace, body)
        await_objects(api, POD, namespace, lambda pods: any(is_ready(each) for each in pods))
        yield api.get(RAY_CLUSTER, namespace, "real")
    finally:
        next(source, None)


def head_of(api: Api, cluster: Body) -> Body:
    meta = cluster["metadata"]
    pods, _ = api.list(POD, meta["namespace"], labels=f"{CLUSTER_LABEL}={meta['name']}")
    return dict(own_pods(cluster, pods)[0])


def in_head(api: Api, cluster: Body, *command: str) -> str:
    pod = head_of(api, cluster)["metadata"]
    done = run_in_pod(api, pod["namespace"], pod["name"], "ray-head", command, timeout_s=120)
    assert done.code == 0, done.stderr.decode()
    return done.stdout.decode()


def ray_token(api: Api, cluster: Body) -> str:
    secret = api.get(SECRET, cluster["metadata"]["namespace"], "real")
    return base64.b64decode(secret["data"]["auth_token"]).decode()


def submit(api: Api, cluster: Body, *command: str) -> None:
    in_head(
        api,
        cluster,
        "ray",
        "job",
        "submit",
        "--no-wait",
        "--address",
        "http://127.0.0.1:8265",
        "--",
        *command,
    )


@pytest.mark.slow
def test_a_running_job_is_use_also_one_that_never_calls_ray_and_its_end_is_remembered(api, real):
    assert ask_activity(api, real, direct=True).state == "idle"
    assert ask_activity(api, real, direct=False).state == "idle"  # through the API server
    submit(api, real, "sleep", "600")
    busy = ask_activity(api, real, direct=True)
    assert (busy.state, busy.why) == ("active", "1 job running")
    done = look(api, real["metadata"]["namespace"], created(real) + 9 * HOUR)
    assert done["real"] == "active: 1 job running"
    jobs = json.loads(in_head(
        api, real, "python", "-c",
        "from ray.job_submission import JobSubmissionClient as C; import json\n"
        "c = C('http://127.0.0.1:8265')\n"
        "print(json.dumps([c.stop_job(j.submission_id) for j in c.list_jobs() if j.submission_id]))",
    ).splitlines()[-1])  # fmt: skip
    assert jobs == [True]
    in_head(
        api, real, "python", "-c",
        "import time; from ray.job_submission import JobSubmissionClient as C\n"
        "c = C('http://127.0.0.1:8265')\n"
        "while any(not j.status.is_terminal() for j in c.list_jobs() if j.submission_id): time.sleep(0.1)",
    )  # fmt: skip
    after = ask_activity(api, real, direct=True)
    assert after.state == "idle"
    assert after.last is not None
    assert after.last > created(real)


@pytest.mark.slow
def test_the_cron_jobs_pod_looks_after_a_cluster_with_its_own_few_rights(api, real, image):
    namespace = real["metadata"]["namespace"]
    install_agent(api, namespace, image, cluster=real)
    install_agent(api, namespace, image, cluster=real)  # again is the same
    assert len(api.list(CRON_JOB, namespace)[0]) == 1
    job = run_now(api, namespace)
    assert job["status"].get("succeeded") == 1, log_of(api, namespace, job)
    assert f"{namespace}/real: idle since" in log_of(api, namespace, job)
    # Not unknown: it had the token, and reached the dashboard.
    assert api.get(RAY_CLUSTER, namespace, "real")["metadata"]["annotations"][ACTIVITY] == "idle"
    assert agent_problem(api, namespace) is None


@pytest.mark.slow
def test_an_idle_cluster_is_suspended_with_its_home_in_the_black_box(api, real):
    namespace = real["metadata"]["namespace"]
    api.patch(RAY_CLUSTER, namespace, "real", {"metadata": {"annotations": {"sp-ray/last-activity": None}}})
    in_head(api, real, "python", "-c", "open('/home/workbench/work.txt', 'w').write('a day of work')")
    in_head(
        api,
        real,
        "python",
        "-c",
        "import os; os.makedirs('/home/workbench/.ssh'); open('/home/workbench/.ssh/id', 'w').write('key')",
    )
    token = ray_token(api, real)
    submit(api, real, "echo", f"the token is {token}")
    now = datetime.datetime.now(datetime.UTC)
    look(api, namespace, now)
    while ask_activity(api, real, direct=True).state != "idle":
        pass
    assert look(api, namespace, now + 3 * HOUR)["real"].startswith("warned: is suspended at ")
    done = look(api, namespace, now + 4 * HOUR)["real"]
    assert done.startswith("suspended: nothing has run since "), done
    await_objects(api, POD, namespace, lambda pods: pods == [], f"{CLUSTER_LABEL}=real")
    box = api.get(CONFIG_MAP, namespace, "real-black-box")
    with tarfile.open(
        fileobj=io.BytesIO(base64.b64decode(next(iter(box["binaryData"].values()))))
    ) as archive:
        files = {each.name: archive.extractfile(each).read() for each in archive.getmembers()}
    with tarfile.open(fileobj=io.BytesIO(files.pop("home.tar.gz"))) as home:
        names = home.getnames()
        assert home.extractfile("./work.txt").read() == b"a day of work"
    assert "./.ssh" not in names
    assert any(name.startswith("ray/") for name in files)
    assert [job["status"] for job in json.loads(files["jobs.json"])][-1] == "SUCCEEDED"
    assert not any(token.encode() in data for data in files.values())
    assert read_post_mortem(api, namespace, "real").manifest["home"].startswith("home.tar.gz")


@pytest.mark.slow
def test_a_home_on_a_volume_outlives_a_suspension(api, namespace, image, request):
    volume = f"{namespace}-home"
    api.create(PERSISTENT_VOLUME, None, {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": volume,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": "/tmp", "type": "Directory"},  # one that is there: nothing is left behind
        },
    })  # fmt: skip
    request.addfinalizer(lambda: api.delete(PERSISTENT_VOLUME, None, volume))
    api.create(PVC, namespace, {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "lasting-home"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": volume, "volumeName": volume,
                 "resources": {"requests": {"storage": "1Gi"}}},
    })  # fmt: skip
    container = {
        "volumeMounts": [
            {"name": "home", "mountPath": "/home/workbench"}, {"name": "cache", "mountPath": "/cache"},
        ],
        "env": [{"name": "PYTHONPYCACHEPREFIX", "value": "/cache"}],
    }  # fmt: skip
    claim = {"claimName": "lasting-home"}
    volumes = [{"name": "home", "persistentVolumeClaim": claim}, {"name": "cache", "emptyDir": {}}]
    pod = {"volumes": volumes}
    work = f"/home/workbench/{namespace}.txt"
    api.create(RAY_CLUSTER, namespace, ray_cluster("lasting", image, idle="2h", container=container, pod=pod))
    await_objects(api, POD, namespace, lambda pods: any(is_ready(each) for each in pods))
    cluster = api.get(RAY_CLUSTER, namespace, "lasting")
    in_head(api, cluster, "python", "-c", f"open({work!r}, 'w').write('a day of work')")
    now = datetime.datetime.now(datetime.UTC)
    assert look(api, namespace, now)["lasting"].startswith("idle since")
    assert look(api, namespace, now + 3 * HOUR)["lasting"].startswith("warned")
    assert look(api, namespace, now + 4 * HOUR)["lasting"].startswith("suspended")
    await_objects(api, POD, namespace, lambda pods: pods == [])
    assert read_post_mortem(api, namespace, "lasting").manifest["home"] == "on the volume lasting-home"
    api.patch(RAY_CLUSTER, namespace, "lasting", {"spec": {"suspend": False}})
    await_objects(api, POD, namespace, lambda pods: any(is_ready(each) for each in pods))
    try:
        assert in_head(api, cluster, "cat", work) == "a day of work"
    finally:
        in_head(api, cluster, "rm", work)


# --- the CronJob and its rights -----------------------------------------------------------------------------------


def run_now(api: Api, namespace: str) -> Body:
    """What `kubectl create job --from=cronjob/sp-ray-agent` does; the Job at its end."""
    cron_job = api.get(CRON_JOB, namespace, NAME)
    template = cron_job["spec"]["jobTemplate"]
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": "by-hand-", "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
    }
    name = api.create(JOB, namespace, body)["metadata"]["name"]

    def ended(jobs: list[Body]) -> bool:
        mine = next(each for each in jobs if each["metadata"]["name"] == name)
        return any(c["type"] in {"Complete", "Failed"} for c in mine["status"].get("conditions") or ())

    await_objects(api, JOB, namespace, ended)
    return api.get(JOB, namespace, name)


def log_of(api: Api, namespace: str, job: Body) -> str:
    pods, _ = api.list(POD, namespace, labels=f"batch.kubernetes.io/job-name={job['metadata']['name']}")
    return api.logs(namespace, pods[0]["metadata"]["name"], NAME)


def may(
    api: Api, namespace: str, verb: str, resource: str, name: str = "", *, within: str = "", group: str = ""
) -> bool:
    """Whether the agent of a namespace may do this."""
    plural, _, sub = resource.partition("/")
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:{NAME}",
            "resourceAttributes": {
                "namespace": within or namespace, "verb": verb, "group": group, "resource": plural,
                "subresource": sub, "name": name,
            },
        },
    }  # fmt: skip
    return bool(
        api.json("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body=body)["status"]["allowed"]
    )


def test_its_rights_end_at_what_it_looks_after(api, namespace, image):
    mine = api.create(RAY_CLUSTER, namespace, ray_cluster("mine", image, ttl="1d", suspend=True))
    install_agent(api, namespace, image, cluster=mine)
    ray: Any = {"group": "ray.io"}
    assert may(api, namespace, "get", "secrets", "mine")
    assert may(api, namespace, "patch", "rayclusters", "mine", **ray)
    assert may(api, namespace, "delete", "rayclusters", "mine", **ray)
    assert may(api, namespace, "patch", "configmaps", "mine-black-box")
    for verb, resource, name, more in (
        ("get", "secrets", "other", {}), ("list", "secrets", "", {}), ("create", "secrets", "", {}),
        ("get", "secrets", "mine", {"within": "default"}), ("get", "configmaps", "other", {}),
        ("list", "configmaps", "", {}), ("delete", "configmaps", "mine-black-box", {}),
        ("patch", "rayclusters", "other", ray), ("delete", "rayclusters", "other", ray),
        ("list", "rayclusters", "", {**ray, "within": "default"}), ("create", "rayclusters", "", ray),
        ("create", "pods/exec", "", {}), ("create", "pods", "", {}), ("delete", "pods", "", {}),
        ("patch", "cronjobs", NAME, {"group": "batch"}), ("create", "jobs", "", {"group": "batch"}),
        ("patch", "roles", NAME, {"group": "rbac.authorization.k8s.io"}),
    ):  # fmt: skip
        assert not may(api, namespace, verb, resource, name, **more), f"{verb} {resource} {name} {more}"


def test_who_may_not_touch_kueues_workloads_gets_an_agent_that_suspends_nothing_in_a_queue_and_says_so(
    api, namespace, image, weak_kubeconfig
):
    nowhere = {"nodeSelector": {"nobody": "has-this"}}
    body = ray_cluster("queued", image, ttl="6h", pod=nowhere)
    body["metadata"]["labels"] = {QUEUE_LABEL: "lab"}
    queued = api.create(RAY_CLUSTER, namespace, body)
    others = [need for need in agent_needs(queued) if need.kind != WORKLOAD] + [Need("get", ROLE)]
    kinds = [(n.kind.group, [f"{n.kind.plural}/{n.subresource}".rstrip("/")], [n.verb]) for n in others]
    kueue: Any = {"group": WORKLOAD.group}
    with Api(weak_kubeconfig(*kinds)) as weak:
        assert install_agent(weak, namespace, image, cluster=queued) == NOT_FROM_A_QUEUE
        assert may(api, namespace, "delete", "rayclusters", "queued", group="ray.io")
        assert not may(api, namespace, "patch", "workloads", **kueue)
        # As that agent: it does not have its pods deleted only for Kueue to make them again.
        start = created(queued)
        assert look(weak, namespace, start + 5 * HOUR)["queued"].startswith("warned: is suspended at ")
        for hours in (12, 13):
            assert (
                look(weak, namespace, start + hours * HOUR)["queued"] == f"not suspended: {NOT_FROM_A_QUEUE}"
            )
        found = api.get(RAY_CLUSTER, namespace, "queued")
        assert not found["spec"].get("suspend")
        assert found["metadata"]["annotations"][WARNING] == f"not suspended: {NOT_FROM_A_QUEUE}"
        assert reasons(api, namespace, queued) == ["SpRayWarning"] * 2
        # Somebody who may gives it the right, which nobody takes away by asking for the same again.
        assert install_agent(api, namespace, image, cluster=queued) is None
        assert install_agent(weak, namespace, image, cluster=queued) is None
    for verb in ("list", "patch"):
        assert may(api, namespace, verb, "workloads", **kueue)
    for verb, more in (("delete", kueue), ("create", kueue), ("patch", {**kueue, "within": "default"})):
        assert not may(api, namespace, verb, "workloads", **more)
    assert look(api, namespace, start + 14 * HOUR)["queued"].startswith("suspended: ")


def test_many_clusters_at_once_install_one_agent(api, namespace, image):
    bodies = [ray_cluster(f"c{number}", image, ttl="1d", suspend=True) for number in range(12)]

    def make(body: Body) -> None:
        install_agent(api, namespace, image, cluster=api.create(RAY_CLUSTER, namespace, body))

    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(make, bodies))
    assert len(api.list(CRON_JOB, namespace)[0]) == 1
    assert len(api.list(ROLE, namespace)[0]) == 1 + len(bodies)


def test_its_rights_for_a_cluster_go_with_it(api, namespace, image):
    mine = api.create(RAY_CLUSTER, namespace, ray_cluster("mine", image, ttl="1d", suspend=True))
    install_agent(api, namespace, image, cluster=mine)
    assert {role["metadata"]["name"] for role in api.list(ROLE, namespace)[0]} == {NAME, f"{NAME}-mine"}
    api.delete(RAY_CLUSTER, namespace, "mine")
    await_objects(api, ROLE, namespace, lambda roles: [r["metadata"]["name"] for r in roles] == [NAME])


def test_the_agent_goes_when_no_cluster_needs_it_but_not_when_one_has_just_asked(api, namespace, image):
    install_agent(api, namespace, image)
    remove = retire_agent(api, namespace)
    install_agent(api, namespace, image)  # a cluster was made meanwhile
    assert not remove()
    assert retire_agent(api, namespace)()
    await_objects(api, ROLE, namespace, lambda roles: roles == [])
    assert not retire_agent(api, namespace)()


@pytest.mark.slow
def test_the_agents_pod_removes_it_when_there_is_nothing_to_look_after(api, namespace, image):
    install_agent(api, namespace, image)
    run_now(api, namespace)
    assert api.find(CRON_JOB, namespace, NAME) is None


def test_an_image_without_the_package_is_said(api, namespace):
    assert agent_problem(api, namespace) == "no agent is installed in this namespace"
    install_agent(api, namespace, "localhost/busybox:local")
    assert agent_problem(api, namespace) is None
    cron_job = api.get(CRON_JOB, namespace, NAME)
    container = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    container["command"] = ["sh", "-c", "echo No module named sp_ray_ml; exit 1"]  # what such a Python says
    api.apply(
        CRON_JOB, namespace,
        {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": NAME}, "spec": cron_job["spec"]}, force=True,
    )  # fmt: skip
    run_now(api, namespace)
    assert agent_problem(api, namespace) == "the agent's last run failed: its image has no sp_ray_ml"


def test_an_image_that_cannot_be_pulled_is_said_and_replaced_by_the_next_cluster(api, namespace, image):
    install_agent(api, namespace, "localhost/no-such-image:1")
    template = api.get(CRON_JOB, namespace, NAME)["spec"]["jobTemplate"]
    body = {
        "apiVersion": "batch/v1", "kind": "Job", "spec": template["spec"],
        "metadata": {"name": "first", "labels": template["metadata"]["labels"]},
    }  # fmt: skip
    api.create(JOB, namespace, body)

    def stuck(pods: list[Body]) -> bool:
        states = [s for pod in pods for s in pod["status"].get("containerStatuses") or ()]
        return any("Image" in (s["state"].get("waiting") or {}).get("reason", "") for s in states)

    await_objects(api, POD, namespace, stuck)
    assert "the agent does not start: " in str(agent_problem(api, namespace))
    install_agent(api, namespace, image)
    pod = api.get(CRON_JOB, namespace, NAME)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == image


def test_the_pass_by_hand_exits_with_what_came_of_it(api, namespace, fake, capsys):
    fake("good", ttl="6h")
    arguments = ["--namespace", namespace, "--kubeconfig", kubeconfig()]
    assert agent.main(arguments) == 0
    assert f"{namespace}/good: unknown" in capsys.readouterr().out
    api.create(RAY_CLUSTER, namespace, ray_cluster("bad", "fake", ttl="six hours"))
    assert agent.main(arguments) == 1
    assert "six hours" in capsys.readouterr().out
