"""A cluster's ports on this machine, with the addresses and tokens to use them; and where one is when within a cluster."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sp_ray_ml._variables import variables
from sp_ray_ml.cluster._kinds import CLUSTER_LABEL, NODE_TYPE_LABEL, POD, RAY_CLUSTER
from sp_ray_ml.cluster._workbench import workbench_ports, workbench_token
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError

if TYPE_CHECKING:
    from typing import Self

    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster._port_forward import PortForward

__all__ = ["CLIENT_PORT", "DASHBOARD_PORT", "Connection", "inside_cluster_address", "ray_of", "running_head"]

CLIENT_PORT = 10001
DASHBOARD_PORT = 8265
_LOOK_UP_S = 5.0
_PROBE_S = 5.0


@contextlib.contextmanager
def ray_of(cluster: Literal["auto", "local"]) -> Iterator[None]:
    """Have Ray's own variable name the cluster that a run means, while the block lasts."""
    with variables({"RAY_ADDRESS": inside_cluster_address() if cluster == "auto" else None}):
        yield


def inside_cluster_address() -> str | None:
    """Address to give `ray.init` where this process runs within a Ray cluster, on its head say; None elsewhere."""
    if address := os.environ.get("RAY_ADDRESS", "").strip():
        return address
    # `ray start` leaves it for the drivers of this machine; on a laptop it would be of a Ray of one's own.
    file = Path("/tmp/ray/ray_current_cluster")  # noqa: S108 - Ray's own place
    if os.environ.get("KUBERNETES_SERVICE_HOST") and file.exists():
        return file.read_text().strip() or None
    return None


def running_head(api: Api, namespace: str, name: str) -> str:
    """Name of a cluster's head pod that runs, whether Ray in it is ready or not. Asked once, and quickly.

    Raises:
        ClusterNotFoundError: There is none now.
        KubernetesError: The API server cannot be reached or refused.
    """
    import json

    query = {"labelSelector": f"{CLUSTER_LABEL}={name},{NODE_TYPE_LABEL}=head"}
    data = api.request("GET", POD.path(namespace), query=query, repeat=False, timeout_s=_LOOK_UP_S)
    running = [
        pod
        for pod in json.loads(data)["items"]
        if pod.get("status", {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")
    ]
    if not running:
        raise ClusterNotFoundError(
            "no head is running", where=f"{namespace}/{name}",
            hint=f"Run: sp-ray explain cluster {name} -n {namespace}",
        )  # fmt: skip
    return str(max(running, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))["metadata"]["name"])


class Connection:
    """The client, dashboard, notebook and VS Code ports of a cluster on 127.0.0.1, while the block lasts.

    Within the block `ray.init()` and Ray's job client find the cluster by the environment: `RAY_ADDRESS`,
    `RAY_API_SERVER_ADDRESS`, and where it asks for a token `RAY_AUTH_MODE` and `RAY_AUTH_TOKEN`. Ray reads the latter once in a process: connect first.

    Example::

        with cluster.connect() as connection:
            ray.init()
            print(connection.dashboard)

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        name: The cluster's name.

    Raises:
        ClusterNotFoundError: There is no such cluster.
        ClusterError: It is suspended.
    """

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        from sp_ray_ml.cluster._dashboard import ray_token

        self._api, self._namespace, self._name = api, namespace, name
        cluster = api.get(RAY_CLUSTER, namespace, name)
        if cluster["spec"].get("suspend"):
            raise ClusterError(
                "it is suspended", where=f"{namespace}/{name}",
                hint=f"Run: sp-ray resume cluster {name} -n {namespace}",
            )  # fmt: skip
        self._workbench = workbench_ports(cluster)
        self.token = ray_token(api, namespace, cluster)
        """Ray's own token; None where it asks for none."""
        self._workbench_token = workbench_token(api, namespace, name) if self._workbench else ""
        self._forward: PortForward | None = None
        self._environment: dict[str, str | None] = {}
        self._told: set[str] = set()

    # --- opening and closing ------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen, and set the environment for Ray.

        Raises:
            ClusterError: Its head does not run, or no port of this machine is free.
        """
        from sp_ray_ml.cluster._port_forward import PortForward

        if self._forward is None:
            # Whoever connects to what is not there is told so now, and not by a page that never comes.
            running_head(self._api, self._namespace, self._name)
            ports = {port: port for port in (CLIENT_PORT, DASHBOARD_PORT, *self._workbench.values())}
            self._forward = PortForward(
                self._api, self._namespace, lambda: running_head(self._api, self._namespace, self._name),
                ports, on_problem=self._tell,
            ).start()  # fmt: skip
            addresses = {"RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard}
            self._set_environment({**addresses, **self.environment})
        return self

    def close(self) -> None:
        """End it, and put the environment back."""
        self._set_environment({})
        if self._forward:
            self._forward.close()
            self._forward = None

    def serve(self) -> None:
        """Wait until Ctrl-C, which ends it cleanly."""
        self.start()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- addresses ----------------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """For `ray.init`: `ray://127.0.0.1:10001`."""
        return f"ray://127.0.0.1:{self._local(CLIENT_PORT)}"

    @property
    def dashboard(self) -> str:
        """URL of Ray's dashboard, which is also what Ray's job client takes."""
        return f"http://127.0.0.1:{self._local(DASHBOARD_PORT)}"

    @property
    def environment(self) -> dict[str, str]:
        """What a Ray client of this cluster needs in its environment to be let in; secret."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} if self.token else {}

    @property
    def urls(self) -> dict[str, str]:
        """URLs by what they are of. Those of notebooks and VS Code let in whoever has them: they hold the token."""
        return self._urls(self._asks_for_password())

    def _urls(self, password: bool | None) -> dict[str, str]:
        found = {"server": self.address, "dashboard": self.dashboard}
        if "notebook" in self._workbench:
            port = self._local(self._workbench["notebook"])
            found["notebook server"] = f"http://127.0.0.1:{port}/lab?token={self._workbench_token}"
        if "vscode" in self._workbench:
            port = self._local(self._workbench["vscode"])
            # OpenVSCode reads the token from the address; code-server has no such thing.
            query = "" if password else f"?tkn={self._workbench_token}"
            found["OpenVSCode server"] = f"http://127.0.0.1:{port}/{query}"
        return found

    def lines(self) -> list[str]:
        """The URLs to show a user who asked for them, and what to type where a page asks."""
        password = self._asks_for_password()
        rows = list(self._urls(password).items())
        if self.token:
            at = [what for what, _ in rows].index("dashboard") + 1
            rows.insert(at, ("  its token", self.token))
        if "vscode" in self._workbench and password is not False:
            rows.append(("  its password", self._workbench_token))
        return [f"{what:<24}{value}" for what, value in rows]

    def __repr__(self) -> str:
        return f"Connection({self._namespace}/{self._name})"

    # --- within -------------------------------------------------------------------------------------------------------

    def _local(self, port: int) -> int:
        if self._forward is None:
            raise ClusterError(
                "the connection is not open", where=f"{self._namespace}/{self._name}",
                hint="Use it in a with statement",
            )  # fmt: skip
        return self._forward.local_port(port)

    def _asks_for_password(self) -> bool | None:
        """Whether the VS Code server is code-server, which sends to its login page; None where it does not answer yet."""
        import http.client

        if "vscode" not in self._workbench:
            return None
        port = self._local(self._workbench["vscode"])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_S)
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            return answer.status == 302 and "login" in (answer.getheader("Location") or "")
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _set_environment(self, wanted: Mapping[str, str]) -> None:
        """Set variables, and give those that were set before their former value."""
        for name, before in self._environment.items():
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before
        self._environment = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)

    def _tell(self, problem: str) -> None:
        """Say once what cannot be reached; browsers try for ever."""
        if problem not in self._told:
            self._told.add(problem)
            from sp_ray_ml.logger import LOGGER

            LOGGER.warning("%s/%s: %s", self._namespace, self._name, problem)
