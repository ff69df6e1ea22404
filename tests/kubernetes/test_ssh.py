"""Shells on a real head, and a real SSH client that reaches it through the API server."""

from __future__ import annotations

import hashlib
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from sp_ray_ml.cluster._connect import running_head
from tests.sp_ray import SP_RAY

from .conftest import kubeconfig

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(900)]


def sp_ray(workbench, *words: str, **options) -> subprocess.CompletedProcess:
    command = [
        SP_RAY, "ssh", "cluster", workbench.name, "-n", workbench.namespace,
        "--kubeconfig", kubeconfig(), *words,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def config(workbench, tmp_path, monkeypatch) -> Path:
    """A configuration of ssh with the block that we print."""
    if not shutil.which("ssh"):
        pytest.skip("there is no ssh here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    file = tmp_path / "ssh_config"
    file.write_text(sp_ray(workbench, "--config").stdout)
    return file


def ssh(config: Path, *words: str, **options) -> subprocess.CompletedProcess:
    host = config.read_text().splitlines()[0].split()[1]
    return subprocess.run(["ssh", "-F", config, host, *words], capture_output=True, check=False, **options)


def test_command_runs_in_the_home_and_its_exit_code_is_ours(workbench):
    done = sp_ray(workbench, "--", "sh", "-c", "pwd; echo to stderr >&2; exit 7", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (7, "/home/workbench\n", "to stderr\n")


def test_commands_take_input_from_a_pipe(workbench):
    assert sp_ray(workbench, "--", "wc", "-c", input="x" * 100_000).stdout.strip() == "100000"
    assert sp_ray(workbench, input="cd /; pwd\n").stdout == "/\n"


def test_arguments_reach_the_command_unread_by_a_shell(workbench):
    done = sp_ray(workbench, "--", "printf", "%s|", "a b", "$HOME", "*", "'", stdin=subprocess.DEVNULL)
    assert done.stdout == "a b|$HOME|*|'|"


def test_shell_has_a_terminal_of_this_ones_size(workbench):
    """With a pseudo-terminal as its own, on which the user types."""
    import fcntl
    import struct
    import termios

    pid, terminal = pty.fork()
    if pid == 0:
        words = ["ssh", "cluster", workbench.name, "-n", workbench.namespace, "--kubeconfig", kubeconfig()]
        os.execv(SP_RAY, [SP_RAY, *words])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 97, 0, 0))
    shown = b""
    try:
        while b"$ " not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, b"stty size; echo 'e''nd'\n")
        while b"end\r\n" not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, b"exit 9\n")
        while True:
            try:
                if not os.read(terminal, 4096):
                    break
            except OSError:  # the other end is closed
                break
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert b"33 97" in shown
    assert os.waitstatus_to_exitcode(status) == 9


def test_real_ssh_client_runs_commands_with_rays_environment(api, workbench, config):
    done = ssh(config, "hostname; pwd; echo $RAY_ADDRESS; ray --version; exit 5")
    head = running_head(api, workbench.namespace, workbench.name)
    lines = done.stdout.decode().splitlines()
    assert lines[0] == head
    assert lines[1:3] == ["/home/workbench", "127.0.0.1:6379"]
    assert lines[3].startswith("ray, version")
    assert done.returncode == 5, done.stderr


def test_files_are_copied_whole_by_the_client(workbench, config, tmp_path):
    data = os.urandom(10_000_000)
    (tmp_path / "here").write_bytes(data)
    host = config.read_text().splitlines()[0].split()[1]
    for words in (["here", f"{host}:/tmp/there"], [f"{host}:/tmp/there", "back"]):
        done = subprocess.run(
            ["scp", "-q", "-F", config, *words], capture_output=True, cwd=tmp_path, check=False
        )
        assert not done.returncode, done.stderr
    assert hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_other_keys_are_refused(workbench, config, tmp_path):
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    text = config.read_text()
    mine = next(line for line in text.splitlines() if "IdentityFile" in line)
    config.write_text(text.replace(mine, f"    IdentityFile {other}"))
    done = ssh(config, "true")
    assert done.returncode == 255
    assert b"Permission denied" in done.stderr


def test_nothing_listens_or_stays_after_the_session(workbench, config):
    assert ssh(config, "true").returncode == 0
    left = "ps -eo args | grep -c '[s]shd -i\\|[s]shd: '; ls -d /tmp/tmp.* 2>/dev/null | wc -l"
    assert sp_ray(workbench, "--", "sh", "-c", left, stdin=subprocess.DEVNULL).stdout.split() == ["0", "0"]
