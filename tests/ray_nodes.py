"""A Ray cluster of two nodes, one of which sees nothing of this machine's disk below a folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_WAIT_S = 300.0


@dataclass(frozen=True)
class OtherNode:
    """The node that all CPUs are on.

    Attributes:
        address: Of the cluster, which this process is connected to.
        process: The number of the node's process, by whose `/proc/…/root` its disk is seen.
    """

    address: str
    process: int

    def sees(self, path: Path) -> Path:
        """Where a path of the other node lies for this process."""
        return Path(f"/proc/{self.process}/root{path}")


@contextmanager
def other_node(hidden: Path, cpus: int = 2) -> Iterator[OtherNode]:
    """Start it. This process's own node, which has no CPUs, is the only one that sees what lies in `hidden`."""
    import ray
    from ray.cluster_utils import Cluster

    if os.geteuid() != 0:
        pytest.skip("a disk of its own is given to a node by unshare, which root may")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    script = f"""
mount -t tmpfs tmpfs {hidden}
cd /
exec {sys.executable} -m ray.scripts.scripts start --address {cluster.address} --num-cpus {cpus} --block --disable-usage-stats
"""
    node = subprocess.Popen(
        ["unshare", "-m", "bash", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        end = time.monotonic() + _WAIT_S
        while ray.cluster_resources().get("CPU", 0) < cpus:
            assert node.poll() is None, "the node has ended"
            assert time.monotonic() < end, f"the node has not come within {_WAIT_S:.0f}s"
            time.sleep(0.1)
        yield OtherNode(cluster.address, node.pid)
    finally:
        ray.shutdown()
        node.terminate()
        node.wait()
        cluster.shutdown()
        if before is None:
            os.environ.pop("RAY_ADDRESS", None)
        else:
            os.environ["RAY_ADDRESS"] = before
