"""Ray as it runs already, or started and ended by us; an address at which nobody answers is told at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sp_ray_ml._variables import variables
from sp_ray_ml.errors import ResourceError

__all__ = ["ray_running", "start_ray"]

_REACH_S = 10.0
_APART = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
"""Has the processes of a Ray of our own ask no other Ray about themselves: nobody listens there.

It has no API server. Without an address they would go by the file `ray_current_cluster`, which every `ray start` of this
machine writes: Ray Train looked for its controller there, did not find it, and ended the workers.
"""


@contextmanager
def ray_running() -> Iterator[None]:
    """Ray as it is, or started for as long as the block lasts.

    Raises:
        ResourceError: The cluster at `RAY_ADDRESS` does not answer.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    start_ray()
    try:
        yield
    finally:
        ray.shutdown()


def start_ray() -> None:
    """Start Ray here, or connect to the cluster at `RAY_ADDRESS`.

    Raises:
        ResourceError: That cluster does not answer.
    """
    import logging

    import ray

    # Without an address Ray would go by what some `ray start` has left on this machine, and wait for it if it is gone.
    address = os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address)
    try:
        with variables(_APART if address == "local" else {}):
            ray.init(
                address=address,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                configure_logging=True,
                logging_level=logging.ERROR,
            )
    except ConnectionError as error:
        raise _unreachable(address, str(error)) from None


def _check_reachable(address: str) -> None:
    """Ray would try an address at which nobody listens for minutes."""
    import socket

    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from None


def _unreachable(address: str, why: str) -> ResourceError:
    return ResourceError(
        f"the Ray cluster does not answer, or refuses the token: {why}",
        where=f"RAY_ADDRESS={address}",
        hint="Set RAY_ADDRESS and RAY_AUTH_TOKEN anew, or use Ray on this machine: --set cluster=local",
    )
