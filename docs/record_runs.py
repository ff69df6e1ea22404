"""Records the run of docs/clusters.md on a real Kubernetes: what the commands printed there.

    KUBECONFIG=… SP_RAY_IMAGE=… MOVIELENS=… python docs/record_runs.py

`examples/movielens_on_kubernetes.yaml` is run from a folder with a copy of it. Its bucket is on a server of this machine
(moto), which pods reach at SP_RAY_TEST_HOST; so the copy has that server's address, port and credentials, and pods as
small as a test's node takes. The namespace `team-graph` must not be there, and is not afterwards.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from sp_ray_ml.cluster._api import Api  # noqa: E402
from sp_ray_ml.cluster._kinds import NAMESPACE  # noqa: E402
from tests import stores  # noqa: E402

PAGE = ROOT / "docs" / "clusters.md"
SPACE, BUCKET = "team-graph", "data"
HOST = os.environ.get("SP_RAY_TEST_HOST", "10.245.0.1")
EXAMPLE = "movielens_on_kubernetes.yaml"
RUN = ["sp-ray", "run", EXAMPLE, "--cluster", "ephemeral", "-n", SPACE]
JOBS = ["sp-ray", "get", "jobs", "-n", SPACE]


def config(variables: dict[str, str]) -> dict[str, Any]:
    """The example for the server of this machine."""
    found: dict[str, Any] = yaml.safe_load(os.path.expandvars((ROOT / "examples" / EXAMPLE).read_text()))
    port = variables["AWS_ENDPOINT_URL"].rpartition(":")[2]
    small = {"cpus": 2, "memory": "3Gi", "cpu_request": "300m", "memory_request": "1Gi"}
    found["cluster"] = {
        "image": os.environ["SP_RAY_IMAGE"], "namespace": SPACE, "head": small, "workers": {"replicas": 0, **small},
        "env": variables, "egress": [f"*:{port}"],
    }  # fmt: skip
    return found


def put_movielens(variables: dict[str, str]) -> None:
    """The example's tables, in the bucket."""
    import s3fs

    store = s3fs.S3FileSystem(
        key=variables["AWS_ACCESS_KEY_ID"], secret=variables["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=variables["AWS_ENDPOINT_URL"],
    )  # fmt: skip
    for file in Path(os.environ["MOVIELENS"]).glob("*.parquet"):
        store.put_file(str(file), f"{BUCKET}/movielens/{file.name}")


def record(folder: Path, variables: dict[str, str]) -> tuple[str, str]:
    """What the run printed, and what the list of jobs said while it trained."""
    environment = {
        **os.environ, **variables, "COLUMNS": "120", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_DATA_HOME": str(folder / "data"), "SP_RAY_CACHE": str(folder / "cache"),
    }  # fmt: skip
    lines, jobs = [], ""
    with subprocess.Popen(
        RUN, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        for line in run.stdout:
            lines.append(
                re.sub("\x1b\\[[0-9;]*m", "", line).replace(str(folder / "data"), "~/.local/share").rstrip()
            )
            if line.startswith("split "):
                jobs = subprocess.run(
                    JOBS, cwd=folder, env=environment, capture_output=True, text=True, check=True
                ).stdout
    if run.returncode:
        raise SystemExit("the run failed:\n" + "\n".join(lines))
    return "\n".join(lines), jobs.rstrip()


def block(command: list[str], said: str) -> str:
    """A command with what it printed."""
    return f"```text\n$ {' '.join(command)}\n{said}\n```\n"


def fill(text: str, mark: str, shown: str) -> str:
    """A page with a block in place of the one that is marked so."""
    before, begin, rest = text.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not end:
        raise SystemExit(f"docs/clusters.md has no block {mark!r}")
    return before + begin + shown + end + after


def main() -> None:
    """Make the bucket and the namespace, run, and rewrite the page."""
    os.environ.setdefault("BUCKET", BUCKET)
    with tempfile.TemporaryDirectory() as place, Api() as api:
        folder = Path(place) / "project"
        folder.mkdir()
        api.create(NAMESPACE, None, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
        try:
            with stores.s3(Path(place), HOST) as endpoint:
                variables = stores.environment_of("s3", endpoint)
                stores.make_bucket("s3", endpoint, BUCKET)
                put_movielens(variables)
                (folder / EXAMPLE).write_text(yaml.safe_dump(config(variables)))
                said, jobs = record(folder, variables)
        finally:
            api.delete(NAMESPACE, None, SPACE)
    text = fill(PAGE.read_text(), "a run", block(RUN, said))
    PAGE.write_text(fill(text, "its jobs", block(JOBS, jobs)))


if __name__ == "__main__":
    main()
