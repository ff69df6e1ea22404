"""Forwarded ports and programs in pods, against a server on loopback that speaks the subprotocols."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from sp_ray_ml.cluster._exec import exec_in_pod, run_in_pod
from sp_ray_ml.cluster._port_forward import PortForward
from sp_ray_ml.errors import (
    ClusterError,
    ClusterNotFoundError,
    ClusterTimeoutError,
    KubernetesAccessError,
    KubernetesError,
)

from .pod_server import PodServer, api_of, proxy_server

NAMESPACE, POD, CONTAINER = "default", "head-1", "ray-head"


@contextmanager
def backend(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server within the pod, one thread a connection; its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=handle, args=(connection,)))
            threads[-1].start()

    def handle(connection: socket.socket) -> None:
        with connection:
            serve(connection)

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()


def echo(connection: socket.socket) -> None:
    try:
        while data := connection.recv(65_536):
            connection.sendall(data)
    except ConnectionError:
        pass


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while block := connection.recv(65_536):
        data += block
    return data


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread


@pytest.fixture
def server() -> Iterator[PodServer]:
    with PodServer() as started:
        yield started


def test_data_comes_back_unchanged_and_both_ways_at_once(server, tmp_path):
    sent = os.urandom(8_000_000)
    with (
        backend(echo) as port,
        PortForward(api_of(server, tmp_path), NAMESPACE, lambda: POD, {0: port}) as forward,
    ):
        with socket.create_connection(("127.0.0.1", forward.local_port(port))) as connection:
            sender = threading.Thread(target=connection.sendall, args=(sent,))
            sender.start()
            received = bytearray()
            while len(received) < len(sent):
                received += connection.recv(65_536)
            sender.join()
    assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()


def test_many_connections_at_once_are_kept_apart(server, tmp_path):
    with (
        backend(echo) as port,
        PortForward(api_of(server, tmp_path), NAMESPACE, lambda: POD, {0: port}) as forward,
    ):

        def talk(number: int) -> bool:
            with socket.create_connection(("127.0.0.1", forward.local_port(port))) as connection:
                word = f"{number:08d}".encode() * 1000
                connection.sendall(word)
                return connection.makefile("rb").read(len(word)) == word

        with ThreadPoolExecutor(40) as pool:
            assert all(pool.map(talk, range(120)))


def test_taken_port_becomes_a_free_one(server, tmp_path):
    with (
        backend(echo) as port,
        PortForward(api_of(server, tmp_path), NAMESPACE, lambda: POD, {port: port}) as forward,
    ):
        assert forward.local_port(port) != port  # the backend itself has it
        with socket.create_connection(("127.0.0.1", forward.local_port(port))) as connection:
            connection.sendall(b"hello")
            assert connection.recv(5) == b"hello"


def test_free_port_is_the_one_asked_for(server, tmp_path):
    wanted = free_port()
    with PortForward(api_of(server, tmp_path), NAMESPACE, lambda: POD, {wanted: 8265}) as forward:
        assert forward.ports == {8265: wanted}


def test_answer_comes_whole_after_the_client_ended_its_half(server, tmp_path):
    answer = os.urandom(3_000_000)

    def serve(connection: socket.socket) -> None:
        assert connection.recv(7) == b"request"
        connection.sendall(answer)

    with (
        backend(serve) as port,
        PortForward(api_of(server, tmp_path), NAMESPACE, lambda: POD, {0: port}) as forward,
    ):
        with socket.create_connection(("127.0.0.1", forward.local_port(port))) as connection:
            connection.sendall(b"request")
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == answer


def test_new_connections_go_to_the_pod_that_came_next(server, tmp_path):
    current = [POD]
    with (
        backend(echo) as port,
        PortForward(api_of(server, tmp_path), NAMESPACE, lambda: current[0], {0: port}) as forward,
    ):
        for name in (POD, "head-2"):
            server.pods, current[0] = {name}, name
            with socket.create_connection(("127.0.0.1", forward.local_port(port))) as connection:
                connection.sendall(b"hello")
                assert connection.recv(5) == b"hello"
    assert server.asked[-1] == "head-2"


FORWARDING = """
import sys
from pathlib import Path
from sp_ray_ml.cluster._api import Api
from sp_ray_ml.cluster._port_forward import PortForward

kubeconfig, pod, port = sys.argv[1:]
with Api(kubeconfig) as api, PortForward(api, "default", Path(pod).read_text, {0: int(port)}) as forward:
    print(forward.local_port(int(port)), flush=True)
    sys.stdin.read()
"""


def test_a_forwarded_port_works_again_after_a_sleep_in_which_all_was_lost(server, tmp_path):
    pod = tmp_path / "pod"
    pod.write_text(POD)
    kubeconfig = tmp_path / "kubeconfig"
    api_of(server, tmp_path).close()
    with backend(echo) as port:
        command = [sys.executable, "-c", FORWARDING, str(kubeconfig), str(pod), str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            local = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", local)) as connection:
                connection.sendall(b"before")
                assert connection.recv(6) == b"before"
                process.send_signal(signal.SIGSTOP)  # as a laptop whose lid is shut: nothing of it runs
                server.drop()
                server.pods = {"head-2"}
                pod.write_text("head-2")
                process.send_signal(signal.SIGCONT)
                with pytest.raises(ConnectionResetError):  # what was open is lost, and not taken for complete
                    read_all(connection)
            with socket.create_connection(("127.0.0.1", local)) as connection:
                connection.sendall(b"after")
                assert connection.recv(5) == b"after"
            process.stdin.close()
    assert process.returncode == 0
    assert server.asked[-1] == "head-2"


def test_connection_is_held_while_there_is_no_pod(server, tmp_path):
    looked = threading.Event()
    there = threading.Event()

    def find() -> str:
        looked.set()
        if not there.is_set():
            raise ClusterNotFoundError("no head is running")
        return POD

    with backend(echo) as port, PortForward(api_of(server, tmp_path), NAMESPACE, find, {0: port}) as forward:
        with socket.create_connection(("127.0.0.1", forward.local_port(port))) as connection:
            connection.sendall(b"early")
            assert looked.wait(20)
            there.set()
            assert connection.recv(5) == b"early"


def test_connection_is_given_up_when_no_pod_comes(server, tmp_path):
    def find() -> str:
        raise ClusterNotFoundError("no head is running")

    problems: list[str] = []
    forward = PortForward(
        api_of(server, tmp_path), NAMESPACE, find, {0: 8265}, patience_s=0.3, on_problem=problems.append
    )
    with forward, socket.create_connection(("127.0.0.1", forward.local_port(8265))) as connection:
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert problems == ["port 8265: no head is running"]


def test_port_that_nothing_listens_on_is_told_and_reset(server, tmp_path):
    problems: list[str] = []
    port = free_port()
    forward = PortForward(
        api_of(server, tmp_path), NAMESPACE, lambda: POD, {0: port}, on_problem=problems.append
    )
    with forward, socket.create_connection(("127.0.0.1", forward.local_port(port))) as connection:
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert problems == [f"port {port}: nothing listens there"]


def test_broken_connection_is_no_complete_answer(server, tmp_path):
    """A pod's server that dies in the middle shows as an end; an API server that dies, as a reset."""
    hold = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"half")
        hold.wait(20)

    with backend(serve) as port:
        broken = PodServer()
        broken.__enter__()
        forward = PortForward(api_of(broken, tmp_path), NAMESPACE, lambda: POD, {0: port}).start()
        try:
            with socket.create_connection(("127.0.0.1", forward.local_port(port))) as connection:
                assert connection.recv(4) == b"half"

                def cut() -> None:
                    for transport in list(broken._runner.server.connections):
                        transport.transport.abort()

                broken._loop.call_soon_threadsafe(cut)
                with pytest.raises(ConnectionResetError):
                    connection.recv(1)
        finally:
            hold.set()
            forward.close()
            broken.__exit__()


def test_closing_ends_open_connections_at_once(server, tmp_path):
    with backend(echo) as port:
        forward = PortForward(api_of(server, tmp_path), NAMESPACE, lambda: POD, {0: port}).start()
        with socket.create_connection(("127.0.0.1", forward.local_port(port))) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            local = forward.local_port(port)
            forward.close()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", local)).close()


def test_refused_credentials_are_not_tried_again(tmp_path):
    problems: list[str] = []
    with PodServer(token="right") as server:
        api = api_of(server, tmp_path, user={"token": "wrong"})
        forward = PortForward(api, NAMESPACE, lambda: POD, {0: 8265}, on_problem=problems.append)
        with forward, socket.create_connection(("127.0.0.1", forward.local_port(8265))) as connection:
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert server.asked == [POD]
    assert "these credentials" in problems[0]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    """An authority, a server's certificate for 127.0.0.1 and a client's."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        done = subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2",
            "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    for name, extension in (
        ("server", "subjectAltName=IP:127.0.0.1"),
        ("client", "extendedKeyUsage=clientAuth"),
    ):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "extensions").write_text(extension)
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                "-out", f"{name}.pem", "-extfile", "extensions")  # fmt: skip
    return folder


def server_context(certificates: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    return context


def test_tls_client_certificates_and_tokens_are_those_of_the_kubeconfig(certificates, tmp_path):
    user = {
        "client-certificate": str(certificates / "client.pem"),
        "client-key": str(certificates / "client.key"),
        "token": "secret",
    }
    sent = os.urandom(2_000_000)
    with backend(echo) as port, PodServer(tls=server_context(certificates), token="secret") as server:
        trusting = {"certificate-authority": str(certificates / "ca.pem")}
        api = api_of(server, tmp_path, scheme="https", user=user, **trusting)
        with PortForward(api, NAMESPACE, lambda: POD, {0: port}) as forward:
            with socket.create_connection(("127.0.0.1", forward.local_port(port))) as connection:
                sender = threading.Thread(target=connection.sendall, args=(sent,))
                sender.start()
                assert connection.makefile("rb").read(len(sent)) == sent
                sender.join()
        stranger = api_of(server, tmp_path, scheme="https", user=user)
        with pytest.raises(KubernetesError, match="certificate verify failed"):
            run_in_pod(stranger, NAMESPACE, POD, CONTAINER, ["true"])


def test_proxy_of_the_kubeconfig_is_used(certificates, tmp_path):
    seen: list[str] = []
    user = {
        "client-certificate": str(certificates / "client.pem"),
        "client-key": str(certificates / "client.key"),
    }
    with PodServer(tls=server_context(certificates)) as server, proxy_server(seen) as proxy:
        cluster = {
            "certificate-authority": str(certificates / "ca.pem"),
            "proxy-url": f"http://127.0.0.1:{proxy}",
        }
        api = api_of(server, tmp_path, scheme="https", user=user, **cluster)
        assert run_in_pod(api, NAMESPACE, POD, CONTAINER, ["echo", "through"]).stdout == b"through\n"
        assert seen == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"]


# --- programs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 42])
def test_exit_code_and_both_outputs_come_back(server, tmp_path, code):
    done = run_in_pod(
        api_of(server, tmp_path),
        NAMESPACE,
        POD,
        CONTAINER,
        ["sh", "-c", f"echo out; echo err >&2; exit {code}"],
    )
    assert (done.code, done.stdout, done.stderr) == (code, b"out\n", b"err\n")


def test_program_is_told_that_its_input_has_ended(server, tmp_path):
    sent = os.urandom(3_000_000)
    done = run_in_pod(api_of(server, tmp_path), NAMESPACE, POD, CONTAINER, ["sha256sum"], stdin=sent)
    assert done.stdout.split()[0].decode() == hashlib.sha256(sent).hexdigest()


def test_older_servers_run_programs_that_know_when_their_input_ends(tmp_path):
    with PodServer(protocols=("v4.channel.k8s.io",)) as server:
        done = run_in_pod(
            api_of(server, tmp_path), NAMESPACE, POD, CONTAINER, ["head", "-c", "4"], stdin=b"four and more"
        )
    assert done.stdout == b"four"


def test_input_may_be_a_pipe_or_a_file(server, tmp_path):
    api = api_of(server, tmp_path)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin:
        os.write(writing, b"from a pipe")
        os.close(writing)
        out = io.BytesIO()
        assert exec_in_pod(api, NAMESPACE, POD, CONTAINER, ["cat"], stdin=stdin, stdout=out) == 0
    assert out.getvalue() == b"from a pipe"
    (tmp_path / "file").write_bytes(b"from a file")
    out = io.BytesIO()
    with (tmp_path / "file").open("rb") as file:
        assert exec_in_pod(api, NAMESPACE, POD, CONTAINER, ["cat"], stdin=file, stdout=out) == 0
    assert out.getvalue() == b"from a file"


def test_program_that_is_not_there_is_named(server, tmp_path):
    with pytest.raises(ClusterError, match="there is no program nonsense in the container"):
        run_in_pod(api_of(server, tmp_path), NAMESPACE, POD, CONTAINER, ["nonsense"])


def test_pod_that_is_not_there_is_named(server, tmp_path):
    with pytest.raises(ClusterNotFoundError, match="gone"):
        run_in_pod(api_of(server, tmp_path), NAMESPACE, "gone", CONTAINER, ["true"])


def test_wrong_credentials_are_an_access_error(tmp_path):
    with PodServer(token="right") as server, pytest.raises(KubernetesAccessError):
        run_in_pod(api_of(server, tmp_path, user={"token": "wrong"}), NAMESPACE, POD, CONTAINER, ["true"])


def test_program_that_takes_too_long_is_given_up(server, tmp_path):
    with pytest.raises(ClusterTimeoutError, match=r"sleep took more than 0\.3 s"):
        run_in_pod(api_of(server, tmp_path), NAMESPACE, POD, CONTAINER, ["sleep", "60"], timeout_s=0.3)


def test_programs_run_where_a_loop_runs_already(server, tmp_path):
    """As in a notebook's cell."""
    import asyncio

    async def cell() -> bytes:
        return run_in_pod(api_of(server, tmp_path), NAMESPACE, POD, CONTAINER, ["echo", "cell"]).stdout

    assert asyncio.run(cell()) == b"cell\n"


def test_ctrl_c_ends_a_program_that_is_waited_for(server, tmp_path):
    api_of(server, tmp_path)
    script = tmp_path / "waits.py"
    script.write_text(
        "import sys\n"
        "from sp_ray_ml.cluster._api import Api\n"
        "from sp_ray_ml.cluster._exec import exec_in_pod\n"
        "try:\n"
        f"    exec_in_pod(Api({str(tmp_path / 'kubeconfig')!r}), 'default', 'head-1', 'c', ['sh', '-c', 'echo up; sleep 60'],\n"
        "                stdout=sys.stdout.buffer)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    )
    try:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert out == "interrupted\n"
    assert process.returncode == 0


def hear_ctrl_c() -> None:
    """A test runner in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
