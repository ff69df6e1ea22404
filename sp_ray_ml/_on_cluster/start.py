"""What a run on a cluster takes along, and how its job is started there, also once more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml._on_cluster.hold import READY_S, RunReporter
from sp_ray_ml._on_cluster.main import PACKAGE, SPEC
from sp_ray_ml._on_cluster.places import check_places
from sp_ray_ml._runs import Reporter
from sp_ray_ml.cluster import _run_jobs
from sp_ray_ml.cluster._working_dir import Package, folder_package
from sp_ray_ml.cluster.ray_cluster import RayCluster
from sp_ray_ml.config import document_of, dump
from sp_ray_ml.errors import ConfigError, VersionMismatchError
from sp_ray_ml.tracking._store import is_file_store, tracking_uri

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._run_jobs import RunJob
    from sp_ray_ml.pipeline import Pipeline

__all__ = [
    "ENTRYPOINT",
    "Starts",
    "Travels",
    "environment_of",
    "local_tracking",
    "refuse_secrets",
    "spec_of",
]

ENTRYPOINT = "python -m sp_ray_ml._on_cluster.main"
_CACHE = "SP_RAY_CACHE"
_EXTRA = {"torch": ["torch"], "pyg": ["torch", "torch_geometric"], "two_tower": ["torch", "torch_geometric"], "tensorflow": ["tensorflow"], "rllib": ["torch", "gymnasium"]}  # fmt: skip
"""What trainers need beside the base install."""
_STORES = {"s3": "s3fs", "gs": "gcsfs", "bigquery": "google.cloud.bigquery", "iceberg": "pyiceberg"}


@dataclass(frozen=True)
class Travels:
    """What goes to the cluster.

    Attributes:
        folder: The working directory.
        projects: Wheels of the projects that are installed from folders.
        spec: What is to be run, as a package.
        said: And as it is.
    """

    folder: Package
    projects: Sequence[Package]
    spec: Package
    said: dict[str, Any]

    @classmethod
    def of(
        cls, p: Pipeline, here: Path, id: str, *, fresh: bool, verbose: bool, predict: Mapping[str, Any] | None = None
    ) -> Travels:  # fmt: skip
        from sp_ray_ml.cluster._project_packages import project_packages

        folder = folder_package(here)
        check_places(p, here, folder, (predict or {}).get("predictor"))
        spec = spec_of(p, fresh=fresh, verbose=verbose, id=id, predict=predict)
        module = {f"{PACKAGE}/__init__.py": b"", f"{PACKAGE}/{SPEC}": json.dumps(spec).encode()}
        return cls(folder, project_packages(), Package.of(module), spec)

    def kept(self, place: Path) -> Travels:
        """The same from copies: people go on editing while a cluster comes, and while their run is on it.

        Args:
            place: An empty folder, which outlives the run.

        Raises:
            ConfigError: A file was changed since it was looked at.
            StorageError: It cannot be copied.
        """
        projects = [each.kept(place / each.name) for each in self.projects]
        return replace(self, folder=self.folder.kept(place / self.folder.name), projects=projects)


def spec_of(
    p: Pipeline, *, fresh: bool, verbose: bool, id: str = "", predict: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a job is to run: the config, on the cluster that it finds itself in.

    Args:
        p: The pipeline.
        fresh: Start over, when it is started first.
        verbose: Print what the libraries print.
        id: The job's id, by which it knows whether it is started first.
        predict: Predict without training: with `predictor` and `all_events`.
    """
    config = {**document_of(p).data, "cluster": "auto"}
    if local_tracking(p):  # it would be a file of the pod: the journal is sent from here
        config["tracking"] = {**config["tracking"], "uri": None}
    return {
        **({} if predict is None else {"predict": dict(predict)}),
        "job": id,
        "config": config,
        "fresh": fresh,
        "verbose": verbose,
    }


def local_tracking(p: Pipeline) -> str | None:
    """The MLflow that a config names, where that is a file of this machine."""
    uri = tracking_uri(p.tracking, ".") if p.tracking.uri else ""
    return uri if is_file_store(uri) else None


def refuse_secrets(p: Pipeline) -> None:
    """Refuse a config that holds a secret, where it is written beside the runs.

    Raises:
        ConfigError: It does.
    """
    if {**dump(p), "cluster": None} != {**document_of(p).data, "cluster": None}:
        raise ConfigError(
            "the config holds a secret, which would lie in the bucket beside the runs", where=p.name,
            hint="Leave passwords and tokens to the cluster: a service account, or variables of its pods",
        )  # fmt: skip


class Starts:
    """Starts a job, and starts it again.

    Args:
        api: The API server.
        cluster: The cluster.
        travels: What goes there, as copies.
        copies: The folder that they are in.
        p: The pipeline.
        reporter: Told of what is done.
        removed: Whether the cluster is removed after the run.
    """

    def __init__(
        self, api: Api, cluster: RayCluster, travels: Travels, copies: Path, p: Pipeline, reporter: Reporter, removed: bool
    ) -> None:  # fmt: skip
        self._api, self._cluster, self._travels, self._pipeline = api, cluster, travels, p
        self._copies, self._reporter, self._removed = copies, reporter, removed
        self._own: Sequence[Package] | None = None

    def start(self, job: RunJob) -> RunJob:
        """Check what the cluster's Python has, send what it has not, and start the job."""
        from sp_ray_ml.cluster._changed_files import send_changed
        from sp_ray_ml.cluster._jobs import submit

        # First, so that whoever looks finds it even if this process ends right after the job was started, and so that
        # nobody whose run ends takes the cluster away meanwhile.
        _run_jobs.record(self._api, job, self._cluster.refresh().manifest, removed_with=self._removed)
        if self._own is None:
            self._reporter.progress(0, 0, "asking the cluster's Python")
            try:
                self._own = [each.kept(self._copies / each.name) for each in self._own_code()]
            except (ConfigError, VersionMismatchError):
                _run_jobs.forget(self._api, job)
                raise
        modules = [self._travels.spec, *self._own, *self._travels.projects]
        self._reporter.progress(0, 0, "sending what the cluster has not")
        dashboard = self._cluster.kept_dashboard()
        for package in (self._travels.folder, *modules):
            send_changed(self._api, self._cluster.namespace, self._cluster.name, dashboard, package)
        submit(
            dashboard, ENTRYPOINT, working_dir=self._travels.folder, modules=modules,
            env=environment_of(self._pipeline.cluster), job_id=job.submission, metadata=_run_jobs.metadata_of(job),
        )  # fmt: skip
        where = f"on cluster {job.cluster} in namespace {job.namespace}"
        if job.attempt == 1:
            self._reporter.note(f"job {job.id} {where}; from another machine: {job.command('attach')}")
        return job

    def again(self, job: RunJob) -> RunJob:
        """Start it once more, when the cluster is whole again."""
        self._cluster.close()
        self._cluster.wait(timeout_s=READY_S, reporter=RunReporter(self._reporter))
        return self.start(job)

    def _own_code(self) -> list[Package]:
        """This package, where the image has another version of it.

        Raises:
            VersionMismatchError: The image cannot do the run.
        """
        from sp_ray_ml.cluster._head_http import head_pod
        from sp_ray_ml.cluster._head_python import ask_python, check_python, code_digest
        from sp_ray_ml.cluster._project_packages import own_package

        pod = head_pod(self._api, self._cluster.namespace, self._cluster.name)
        found = ask_python(self._api, self._cluster.namespace, pod, modules_of(self._pipeline))
        if found is None:
            self._reporter.note(
                "whether the cluster's image can do this run was not asked: you may not run programs in its pods"
            )
            return [own_package()]
        image = str(pod["spec"]["containers"][0]["image"])
        check_python(found, image, f"{self._cluster.namespace}/{self._cluster.name}")
        if found.digest == code_digest():
            return []
        self._reporter.note(f"image {image} has another version of sp_ray_ml: this one goes with the job")
        return [own_package()]


def modules_of(p: Pipeline) -> list[str]:
    """What a run imports beside what every run does."""
    kind = document_of(p).data.get("train", {}).get("kind", "")
    urls = [p.runs, p.warehouse, *([p.predict.output.warehouse] if p.predict else [])]
    schemes = {scheme for url in urls for scheme in url.split("://")[:-1]}  # parquet://s3://… has two
    return [*_EXTRA.get(kind, []), *(_STORES[each] for each in sorted(schemes & set(_STORES)))]


def environment_of(wanted: Any) -> dict[str, str]:
    """Copies of what is in buckets lie where every user of an image may write."""
    return {} if _CACHE in {**wanted.env, **wanted.head.env} else {_CACHE: "/tmp/sp-ray-cache"}  # noqa: S108 - the pod's
