"""What the command line says of a run's cluster, which `sp-ray run` and `sp-ray predict` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    from sp_ray_ml.pipeline import Pipeline

__all__ = ["ClusterName", "ShareNodes", "again", "with_cluster"]

ClusterName = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME|ephemeral",
        help="Run on this Ray cluster on Kubernetes, which is made where it is not there, or on one of the run's own.",
        show_default=False,
    ),
]
ShareNodes = Annotated[bool, typer.Option("--share-nodes", help="Let GPU workers share nodes.")]


def with_cluster(
    pipeline: Pipeline, cluster: str | None, namespace: str | None, *, share_nodes: bool
) -> Pipeline:
    """The pipeline with what the command line says of its cluster.

    Raises:
        ConfigError: It says so of a config that runs on none; or what it says is wrong.
    """
    from sp_ray_ml.config import document_of
    from sp_ray_ml.pipeline import pipeline_of

    said = {"name": cluster, "namespace": namespace, "share_nodes": share_nodes or None}
    given = {key: value for key, value in said.items() if value is not None}
    if not given:
        return pipeline
    if isinstance(pipeline.cluster, str) and "name" not in given:
        raise ConfigError(
            "the config runs on no cluster", where=", ".join(f"--{key.replace('_', '-')}" for key in given),
            hint="Name one: --cluster NAME, or --cluster ephemeral for one of the run's own",
        )  # fmt: skip
    data = document_of(pipeline).data
    before = {} if isinstance(pipeline.cluster, str) else pipeline.cluster.stated()
    return pipeline_of({**data, "cluster": {**before, **given}})


def again(
    command: list[str], cluster: str | None, namespace: str | None, kubeconfig: Path | None, context: str | None, *,
    share_nodes: bool,
) -> str:  # fmt: skip
    """The command line that goes on with what was broken off."""
    import shlex

    options = [f"--cluster={cluster}"] if cluster else []
    options += [f"--namespace={namespace}"] if namespace else []
    options += ["--share-nodes"] if share_nodes else []
    options += [f"--kubeconfig={kubeconfig}"] if kubeconfig else []
    options += [f"--context={context}"] if context else []
    return shlex.join(["sp-ray", *command, *options])
