"""`RayCluster`: a Ray cluster on Kubernetes, made, looked at, scaled, used and removed."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._find import find_cluster
from sp_ray_ml.cluster._kinds import RAY_CLUSTER
from sp_ray_ml.cluster._reporter import Reporter
from sp_ray_ml.cluster.planned import request_of
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self, Unpack

    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._connect import Connection
    from sp_ray_ml.cluster._describe import ClusterDescription
    from sp_ray_ml.cluster._head_http import HeadHttp
    from sp_ray_ml.cluster._jobs import Job
    from sp_ray_ml.cluster._post_mortem import PostMortem
    from sp_ray_ml.cluster._snapshot import Cause
    from sp_ray_ml.cluster._versions import Purpose
    from sp_ray_ml.cluster.options import ClusterOptions
    from sp_ray_ml.cluster.settings import ClusterSettings

__all__ = ["RayCluster", "list_clusters"]

_TIMEOUT_S = 900.0


class RayCluster:
    """A Ray cluster on Kubernetes. As a context manager it is deleted at the end of the block.

    Example::

        with RayCluster.create_cluster(name="mine", cpus_per_worker=4, worker_replicas=2) as cluster:
            with cluster.connect():
                ray.init()

    Attributes:
        name: Its name.
        namespace: Its namespace.
        uid: Its identity: another cluster of this name, made later, has another.
        notes: What was said when it was made.
    """

    def __init__(self, api: Api, body: Mapping[str, Any], notes: tuple[str, ...] = ()) -> None:
        self._api = api
        self._body = dict(body)
        self._dashboard: HeadHttp | None = None
        self.name = str(body["metadata"]["name"])
        self.namespace = str(body["metadata"]["namespace"])
        self.uid = str(body["metadata"]["uid"])
        self.notes = notes

    # --- making and finding -----------------------------------------------------------------------------------------

    @classmethod
    def create_cluster(
        cls,
        name: str | None = None,
        namespace: str | None = None,
        *,
        settings: ClusterSettings | str | os.PathLike[str] | None = None,
        await_ready: bool = True,
        wait_for: str = "ready",
        timeout_s: float = _TIMEOUT_S,
        plan: bool = True,
        update: bool = False,
        force: bool = False,
        reporter: Reporter | None = None,
        kubeconfig: str | os.PathLike[str] | None = None,
        context: str | None = None,
        **options: Unpack[ClusterOptions],
    ) -> RayCluster:
        """Create a cluster, and wait until it can be used. The same call again gives the same cluster.

        Args:
            name: Its name.
            namespace: Its namespace; the context's without.
            settings: `ClusterSettings`, or the path of a YAML file with them or with a full RayCluster manifest.
            await_ready: Wait until it is ready.
            wait_for: What to wait for: `ready` (usable: pods and Ray itself), `pods`, or `workers=8`.
            timeout_s: How long to wait.
            plan: Find out first whether it can fit.
            update: Where one of this name but another spec is there, change it.
            force: When changing, take over fields that others have set.
            reporter: Gets steps, notes and the state of the groups while it waits.
            kubeconfig: Path of a kubeconfig.
            context: Its context.
            **options: In flat words, `cpus_per_worker=4`: see `ClusterOptions`.

        Raises:
            ConfigError: A setting is wrong.
            ClusterExistsError: One of this name but another spec is there.
            ClusterUnhealthyError: It can never come up; the message says why. What was made is left to be looked at.
            ClusterTimeoutError: It was not ready in time; likewise.
            KubernetesError: The API server refused.
        """
        from sp_ray_ml.cluster._create import create
        from sp_ray_ml.cluster._ready import parse_target

        parse_target(wait_for)  # what is misspelt is told before anything is made
        api = _api(kubeconfig, context)
        request = request_of(api, name, namespace, settings, options)
        told = reporter or Reporter()
        made = create(api, request, with_plan=plan, update=update, force=force, on_step=told.step)
        cluster = cls(api, made.cluster, tuple(made.notes))
        told.created(cluster, existed=made.existed)
        if await_ready:
            cluster.wait(wait_for, timeout_s=timeout_s, reporter=told)
            if wait_for == "ready" and request.settings.workbench:
                cluster._finish_workbench(told, tutorials=request.settings.tutorials)
        return cluster

    @classmethod
    def get_cluster(
        cls,
        name: str,
        namespace: str | None = None,
        *,
        kubeconfig: str | os.PathLike[str] | None = None,
        context: str | None = None,
    ) -> RayCluster:
        """A cluster that is there.

        Raises:
            ClusterNotFoundError: There is none of this name; near names are in the message.
        """
        api = _api(kubeconfig, context)
        return cls(api, find_cluster(api, namespace or api.namespace, name))

    @staticmethod
    def post_mortem(
        name: str,
        namespace: str | None = None,
        *,
        where: str | None = None,
        kubeconfig: str | os.PathLike[str] | None = None,
        context: str | None = None,
    ) -> PostMortem:
        """What is known of a cluster that is gone, from its latest black box.

        Args:
            name: Its name.
            namespace: Its namespace; the context's without.
            where: Where its black boxes lie, a folder or any fsspec URL, if they are not found.
            kubeconfig: Path of a kubeconfig.
            context: Its context.

        Raises:
            ClusterNotFoundError: There is no black box of it.
        """
        from sp_ray_ml.cluster._post_mortem import read_post_mortem

        api = _api(kubeconfig, context)
        return read_post_mortem(api, namespace or api.namespace, name, where)

    # --- looking ------------------------------------------------------------------------------------------------------

    def refresh(self) -> Self:
        """Read it anew.

        Raises:
            ClusterNotFoundError: It is gone, or another one of its name is there.
        """
        body = find_cluster(self._api, self.namespace, self.name)
        if body["metadata"]["uid"] != self.uid:
            raise ClusterNotFoundError(
                "this cluster is gone; another one has its name", where=f"{self.namespace}/{self.name}"
            )
        self._body = body
        return self

    @property
    def manifest(self) -> dict[str, Any]:
        """The RayCluster object as it was last read."""
        return self._body

    @property
    def head_ip(self) -> str | None:
        """Address of the head's pod; None while it has none. It only answers within the Kubernetes cluster."""
        return self.describe(ask_ray=False).head_ip

    @property
    def num_workers(self) -> int:
        """How many workers are ready."""
        return self.describe(ask_ray=False).workers_ready

    @property
    def state(self) -> str:
        """`ready`, `starting`, `suspending`, `suspended` or `deleting`; `ready` as far as pods can tell."""
        return self.describe(ask_ray=False).state

    def describe(self, *, ask_ray: bool = True) -> ClusterDescription:
        """What it is, and how it is now.

        Args:
            ask_ray: Ask the cluster itself for its versions, too.
        """
        from sp_ray_ml.cluster._look import look

        return look(self._api, self.refresh().manifest, self.dashboard if ask_ray else None)

    def explain(self) -> Cause | None:
        """Why it is not usable; None where nothing is wrong."""
        from sp_ray_ml.cluster._explain import explain
        from sp_ray_ml.cluster._gather import gather

        return explain(gather(self._api, self.namespace, self.name))

    def wait(
        self,
        target: str = "ready",
        *,
        timeout_s: float = _TIMEOUT_S,
        reporter: Reporter | None = None,
    ) -> Self:
        """Wait until it is so.

        Args:
            target: `ready`, `pods`, `workers=N`, `suspended` or `deleted`.
            timeout_s: How long.
            reporter: Gets the state of the groups and what they wait for.

        Raises:
            ClusterUnhealthyError: It can never become so; the message says why.
            ClusterTimeoutError: It has not become so in time; likewise.
        """
        from sp_ray_ml.cluster._wait import wait_until

        told = reporter or Reporter()
        # It makes its own connection to the dashboard once the pods are ready: a new cluster has no token before.
        wait_until(
            self._api, self.namespace, self.name, target, timeout_s, uid=self.uid, on_change=told.progress
        )
        if target != "deleted":
            self.refresh()
        return self

    # --- changing -----------------------------------------------------------------------------------------------------

    def scale_worker_group(
        self,
        worker_group: str = "worker",
        replicas: int = 1,
        *,
        await_ready: bool = True,
        timeout_s: float = _TIMEOUT_S,
        reporter: Reporter | None = None,
    ) -> Self:
        """Change how many workers a group has.

        Args:
            worker_group: The group's name.
            replicas: How many it is to have.
            await_ready: Wait until it has them.
            timeout_s: How long.
            reporter: Gets the state of the groups.

        Raises:
            ClusterNotFoundError: There is no such group; near names are in the message.
            ConfigError: The number is negative, or beyond what the group's autoscaling allows.
        """
        from sp_ray_ml.cluster._scale import scale

        self._body = scale(self._api, self.namespace, self.name, worker_group, replicas)
        if await_ready:
            self.wait(timeout_s=timeout_s, reporter=reporter)
        return self

    def suspend(
        self, *, await_done: bool = True, timeout_s: float = _TIMEOUT_S, reporter: Reporter | None = None
    ) -> Self:
        """Delete its pods and keep the rest, its home's volume too, until `resume`.

        Where the head's home is on no volume, and so goes with the pod, it is saved to a black box first.

        Args:
            await_done: Wait until its pods are gone.
            timeout_s: How long.
            reporter: Is told where the home was saved.

        Raises:
            ClusterError: The home cannot be saved; nothing was suspended.
        """
        from sp_ray_ml.cluster._suspend import suspend

        self._body = suspend(self._api, self.refresh().manifest, (reporter or Reporter()).note)
        return self.wait("suspended", timeout_s=timeout_s) if await_done else self

    def resume(
        self, *, await_ready: bool = True, timeout_s: float = _TIMEOUT_S, reporter: Reporter | None = None
    ) -> Self:
        """Bring a suspended cluster's pods back; one of a queue waits there for its turn."""
        from sp_ray_ml.cluster._suspend import resume

        self._body = resume(self._api, self.refresh().manifest)
        return self.wait(timeout_s=timeout_s, reporter=reporter) if await_ready else self

    def extend(self, by: datetime.timedelta | str) -> datetime.datetime:
        """Let it live longer, and count it as used now; returns until when it lives."""
        from sp_ray_ml.cluster._lifetime import extend

        return extend(self._api, self.namespace, self.name, by)

    def delete(
        self,
        *,
        await_gone: bool = True,
        missing_ok: bool = False,
        black_box: str | os.PathLike[str] | bool = True,
        timeout_s: float = _TIMEOUT_S,
    ) -> str | None:
        """Delete it, its volumes and its secrets; returns where its black box lies.

        Args:
            await_gone: Wait until its last pod is gone.
            missing_ok: That it is gone already is no error.
            black_box: Keep its logs, Events and jobs: where, a folder or any fsspec URL; True for the cluster's own
                choice, or a folder of this user's; False not at all.
            timeout_s: How long to wait.

        Raises:
            ClusterNotFoundError: It is gone already.
            KubernetesError: It may not be deleted; no black box was saved.
            StorageError: The black box cannot be saved; nothing was deleted.
        """
        from sp_ray_ml.cluster._delete import delete

        try:
            self.refresh()
        except ClusterNotFoundError:
            if missing_ok:
                return None
            raise
        place = delete(self._api, self.namespace, self.name, self.uid, black_box)
        if await_gone:
            self.wait("deleted", timeout_s=timeout_s)
        return place

    # --- using --------------------------------------------------------------------------------------------------------

    def connect(self, *, check_versions: bool = True) -> Connection:
        """Forward its ports to this machine and let `ray.init()` find it; a context manager.

        Args:
            check_versions: Make sure first that Ray and Python here fit those there.

        Raises:
            VersionMismatchError: They do not; the message names the pin.
        """
        from sp_ray_ml.cluster._connect import Connection

        if check_versions:
            self._check_versions("client")
        return Connection(self._api, self.namespace, self.name)

    def dashboard(self) -> HeadHttp:
        """Sends requests to Ray's dashboard; a context manager."""
        from sp_ray_ml.cluster._dashboard import dashboard_of
        from sp_ray_ml.cluster._head_http import HeadHttp

        try:
            return dashboard_of(self._api, self._body)
        except ClusterNotFoundError:  # the operator has not made the token yet
            return HeadHttp(self._api, self.namespace, self.name)

    def check_not_suspended(self, *, for_logs: bool = False) -> None:
        """Make sure that it is not suspended, as it has no pod then.

        Raises:
            ClusterError: It is; the hint has the way back.
        """
        if not self.refresh().manifest["spec"].get("suspend"):
            return
        place = f"{self.name} -n {self.namespace}"
        hint = f"Bring it back: sp-ray resume cluster {place}"
        if for_logs:
            hint += f"\nWhat was saved of it before: sp-ray describe --post-mortem {place}"
        raise ClusterError(
            f"it is suspended{': its pods are gone, and their logs with them' if for_logs else ''}",
            where=f"{self.namespace}/{self.name}", hint=hint,
        )  # fmt: skip

    def kept_dashboard(self) -> HeadHttp:
        """As `dashboard`, over one connection that is kept until `close`."""
        if self._dashboard is None:
            self._dashboard = self.dashboard()
        return self._dashboard

    def submit(
        self,
        entrypoint: str,
        *,
        working_dir: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        job_id: str | None = None,
    ) -> Job:
        """Start a job on it.

        Args:
            entrypoint: The command line, run on the head.
            working_dir: A folder here that the job starts in there.
            env: Environment variables.
            runtime_env: More of Ray's runtime environment.
            job_id: Its id; Ray makes one without.

        Raises:
            ClusterError: Its head is not ready, or it refused.
            VersionMismatchError: Its Ray is too old for jobs.
        """
        from sp_ray_ml.cluster._changed_files import send_changed
        from sp_ray_ml.cluster._jobs import submit
        from sp_ray_ml.cluster._working_dir import folder_package

        self.check_not_suspended()
        self._check_versions("job")
        folder = None if working_dir is None else folder_package(Path(working_dir))
        if folder is not None:
            send_changed(self._api, self.namespace, self.name, self.kept_dashboard(), folder)
        return submit(
            self.kept_dashboard(), entrypoint, working_dir=folder, env=env, runtime_env=runtime_env, job_id=job_id
        )  # fmt: skip

    def job(self, job_id: str) -> Job:
        """A job that was submitted before."""
        from sp_ray_ml.cluster._jobs import Job

        self.check_not_suspended()
        return Job(self.kept_dashboard(), job_id)

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs that Ray knows here, as Ray describes them."""
        from sp_ray_ml.cluster._jobs import list_jobs

        self.check_not_suspended()
        return list_jobs(self.kept_dashboard())

    def logs(self, *, worker_group: str | None = None, tail: int | None = None) -> Iterator[tuple[str, str]]:
        """What its pods have printed: the pod's name and its text.

        Args:
            worker_group: Of this group's workers; of the head without.
            tail: Only so many lines of each.

        Raises:
            ClusterNotFoundError: There is no such group; near names are in the message.
            ClusterError: It is suspended: its pods are gone, and their logs with them.
        """
        from sp_ray_ml.cluster._printed import pods_of_group, printed

        pods = pods_of_group(self._api, self.refresh().manifest, worker_group)
        if not pods:
            self.check_not_suspended(for_logs=True)
        return ((pod["metadata"]["name"], printed(self._api, pod, tail)) for pod in pods)

    def ssh(self, command: Sequence[str] = ()) -> int:
        """Open a shell on its head in this terminal, or run a command there; returns the exit code.

        Args:
            command: The command and its arguments, no shell in between; a login shell without.

        Raises:
            ClusterError: Its head does not run.
        """
        from sp_ray_ml.cluster._ssh import run_shell

        self.check_not_suspended()
        return run_shell(self._api, self.namespace, self.name, command)

    def upload_tutorials(self) -> list[str]:
        """Put the tutorials into the head's home, what the user has changed there stays; returns their names."""
        from sp_ray_ml.cluster._head_http import head_pod
        from sp_ray_ml.cluster._workbench import upload_tutorials

        return upload_tutorials(
            self._api, self.namespace, head_pod(self._api, self.namespace, self.name)["metadata"]["name"]
        )

    def close(self) -> None:
        """End what this object keeps open; the cluster stays."""
        if self._dashboard:
            self._dashboard.close()
            self._dashboard = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self.delete(missing_ok=True, await_gone=False)

    def __repr__(self) -> str:
        return f"RayCluster({self.name!r}, namespace={self.namespace!r})"

    # --- within -------------------------------------------------------------------------------------------------------

    def _check_versions(self, for_what: Purpose) -> None:
        from sp_ray_ml.cluster._version_check import check_there

        check_there(self._api, self.namespace, self.name, self.kept_dashboard(), for_what)

    def _finish_workbench(self, told: Reporter, *, tutorials: bool) -> None:
        """Wait for the servers that people work with, and give them something to begin with."""
        from sp_ray_ml.cluster._head_http import head_pod
        from sp_ray_ml.cluster._workbench import await_workbench, workbench_ports

        told.step("starting the workbench")
        pod = head_pod(self._api, self.namespace, self.name)["metadata"]["name"]
        await_workbench(self._api, self.namespace, pod, workbench_ports(self._body))
        if tutorials:
            self.upload_tutorials()
            told.note("Uploaded tutorial notebooks")


def list_clusters(
    namespace: str | None = None,
    *,
    all_namespaces: bool = False,
    kubeconfig: str | os.PathLike[str] | None = None,
    context: str | None = None,
) -> list[RayCluster]:
    """The clusters of a namespace, or of all.

    Raises:
        ClusterNotFoundError: There is no such namespace.
    """
    api = _api(kubeconfig, context)
    space = None if all_namespaces else namespace or api.namespace
    found, _ = api.list(RAY_CLUSTER, space)
    if not found and space:
        api.check_namespace(space)
    return [RayCluster(api, body) for body in found]


def _api(kubeconfig: str | os.PathLike[str] | None, context: str | None) -> Api:
    from sp_ray_ml.cluster._api import Api

    return Api(kubeconfig, context)
