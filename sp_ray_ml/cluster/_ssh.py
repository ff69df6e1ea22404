"""Shells on a head, and SSH for programs that speak it, all through the API server: no daemon, no open port."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sp_ray_ml.cluster._connect import running_head
from sp_ray_ml.cluster._exec import Terminal, exec_in_pod
from sp_ray_ml.cluster._workbench import ray_container
from sp_ray_ml.errors import ClusterError, MissingDependencyError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api
    from sp_ray_ml.cluster.ray_cluster import RayCluster

__all__ = ["proxy", "run_proxy", "run_shell", "ssh_config"]

_USER = "ray"
"""User 1000 of Ray's own images and of ours. Another cannot be logged in as: the server is no root."""
_NO_SERVER = 127
_SHELL = 'cd "$HOME" 2>/dev/null; if command -v bash >/dev/null; then exec bash; else exec sh; fi'
_COMMAND = 'cd "$HOME" 2>/dev/null; exec "$@"'
_SERVER = Path(__file__).with_name("_ssh_server.sh")


def proxy(cluster: RayCluster) -> int:
    """`run_proxy` on a cluster's head."""
    cluster.check_not_suspended()
    return run_proxy(cluster._api, cluster.namespace, cluster.name)


def run_shell(api: Api, namespace: str, name: str, command: Sequence[str] = ()) -> int:
    """A shell on a cluster's head, or a command, with this process's streams and terminal.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        name: The cluster's name.
        command: The command and its arguments; no shell reads them.

    Returns:
        Its exit code.

    Raises:
        ClusterError: No head is running, or the connection broke.
    """
    pod = running_head(api, namespace, name)
    words = ["sh", "-c", _COMMAND, "sp-ray", *command] if command else ["sh", "-c", _SHELL]
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return exec_in_pod(
        api, namespace, pod, ray_container(api, namespace, pod), words,
        stdin=sys.stdin.buffer, stdout=sys.stdout.buffer, stderr=sys.stderr.buffer,
        terminal=Terminal(sys.stdin.fileno()) if on_terminal else None,
    )  # fmt: skip


def run_proxy(api: Api, namespace: str, name: str) -> int:
    """Speak SSH on standard input and output: an sshd for this one connection runs on the head.

    Args:
        api: The API server.
        namespace: The cluster's namespace.
        name: The cluster's name.

    Returns:
        The server's exit code.

    Raises:
        ClusterError: No head is running, or its image has no sshd.
    """
    pod = running_head(api, namespace, name)
    key = identity().with_suffix(".pub").read_text().strip()
    code = exec_in_pod(
        api, namespace, pod, ray_container(api, namespace, pod),
        ["sh", "-c", _SERVER.read_text(), "sp-ray-ssh", key],
        stdin=sys.stdin.buffer, stdout=sys.stdout.buffer, stderr=sys.stderr.buffer,
    )  # fmt: skip
    if code == _NO_SERVER:
        raise ClusterError(
            "the image has no OpenSSH server", where=f"{namespace}/{pod}",
            hint="Take one that has it, as docker/Dockerfile's target workbench; shells need none: "
            f"sp-ray ssh cluster {name} -n {namespace}",
        )  # fmt: skip
    return code


def ssh_config(
    name: str,
    namespace: str,
    *,
    kubeconfig: str | os.PathLike[str] | None = None,
    context: str | None = None,
) -> str:
    """The block for `~/.ssh/config` by which `ssh sp-ray-NAMESPACE-NAME`, and VS Code Remote, reach a cluster's head.

    Args:
        name: The cluster's name.
        namespace: The cluster's namespace.
        kubeconfig: Kubeconfig to name in it; that of `KUBECONFIG` without.
        context: Context to name in it.
    """
    words = [*_program(), "ssh", "cluster", name, "--namespace", namespace, "--proxy"]
    # VS Code has the environment of a desktop, and not of the shell where this was asked for.
    kubeconfig = kubeconfig or os.environ.get("KUBECONFIG")
    if kubeconfig and os.pathsep not in str(kubeconfig):
        words += ["--kubeconfig", str(Path(kubeconfig).expanduser().absolute())]
    if context:
        words += ["--context", context]
    return "\n".join(
        [
            f"Host sp-ray-{namespace}-{name}",
            f"    User {_USER}",
            # ssh itself reads percent signs.
            f"    ProxyCommand {shlex.join(words).replace('%', '%%')}",
            f'    IdentityFile "{identity()}"',
            "    IdentitiesOnly yes",
            # Kubernetes has made sure of whom it is already: TLS to the API server, and the pod by its name.
            "    StrictHostKeyChecking no",
            "    UserKnownHostsFile /dev/null",
            "    LogLevel ERROR",
        ]
    )


def identity() -> Path:
    """The private key for heads, made when there is none: one of its own, so that no agent and no passphrase is needed.

    Raises:
        MissingDependencyError: OpenSSH is not installed here.
        ClusterError: It cannot be made.
    """
    place = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "sp-ray"
    key = place / "id_ed25519"
    if not key.with_suffix(".pub").exists():
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "sp-ray", "-f", str(key)]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError:
            raise MissingDependencyError(
                "there is no ssh-keygen here",
                hint="Install OpenSSH's client: sudo apt install openssh-client",
            ) from None
        if done.returncode and not key.with_suffix(".pub").exists():
            raise ClusterError(f"no key can be made: {done.stderr.strip()}", where=str(key))
    return key


def _program() -> list[str]:
    """How ssh is to call this program, whatever its own PATH."""
    script = Path(sys.executable).with_name("sp-ray")
    return [str(script)] if script.exists() else [sys.executable, "-m", "sp_ray_ml.cli"]
