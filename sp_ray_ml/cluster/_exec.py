"""Programs run in a pod: their streams over one WebSocket, their exit code, and a terminal where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from sp_ray_ml.cluster._kinds import POD
from sp_ray_ml.cluster._loop import run_apart
from sp_ray_ml.cluster._websocket import WebSocket
from sp_ray_ml.errors import ClusterError, ClusterTimeoutError, KubernetesError

if TYPE_CHECKING:
    from sp_ray_ml.cluster._api import Api

__all__ = ["Output", "Terminal", "exec_in_pod", "run_in_pod"]

_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""Version 5 (Kubernetes 1.30) can tell the program that its input has ended."""
_STDIN, _STDOUT, _STDERR, _STATUS, _RESIZE, _END = 0, 1, 2, 3, 4, 255
_BLOCK = 2**15


@dataclass(frozen=True)
class Output:
    """What a program did.

    Attributes:
        code: Its exit code.
        stdout: What it printed.
        stderr: And to its standard error.
    """

    code: int
    stdout: bytes
    stderr: bytes


class Terminal:
    """This process's terminal, handed to a program in a pod: raw within the block, and resized with the window.

    Args:
        descriptor: The terminal's file descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.on_resize: Callable[[], None] | None = None

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        return os.get_terminal_size(self._descriptor)

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Pass every key on, Ctrl-C too."""
        import termios
        import tty

        def resized(*_: object) -> None:
            if self.on_resize:
                self.on_resize()

        before = termios.tcgetattr(self._descriptor)
        mine = threading.current_thread() is threading.main_thread()  # others may not set signals
        handler = signal.signal(signal.SIGWINCH, resized) if mine else None
        try:
            tty.setraw(self._descriptor)
            yield
        finally:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, before)
            if mine:
                signal.signal(signal.SIGWINCH, handler)


def exec_in_pod(
    api: Api,
    namespace: str,
    pod: str,
    container: str,
    command: Sequence[str],
    *,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
    terminal: Terminal | None = None,
    timeout_s: float | None = None,
) -> int:
    """Run a program in a pod and return its exit code.

    Args:
        api: The API server.
        namespace: The pod's namespace.
        pod: The pod.
        container: The container.
        command: The program and its arguments; no shell is in between.
        stdin: Its input; none without.
        stdout: Gets what it prints.
        stderr: Gets what it prints to standard error; with a terminal, `stdout` gets both.
        terminal: Run it on a terminal, this one.
        timeout_s: The longest it may take.

    Raises:
        ClusterError: It cannot be started, or the connection broke.
        ClusterTimeoutError: It took too long; it may still run.
    """
    query = [("container", container), *(("command", word) for word in command)]
    wanted = {
        "stdin": stdin is not None,
        "stdout": True,
        "stderr": terminal is None,
        "tty": terminal is not None,
    }
    query += [(name, "true") for name, value in wanted.items() if value]
    session = _Session(api, f"{POD.path(namespace, pod)}/exec", query, stdin, stdout, stderr, terminal)
    where = f"{namespace}/{pod}"

    async def run() -> int:
        try:
            async with asyncio.timeout(timeout_s):
                return await session.run()
        except TimeoutError:
            raise ClusterTimeoutError(f"{command[0]} took more than {timeout_s:g} s", where=where) from None

    status = contextlib.nullcontext() if terminal is None else terminal.raw()
    with status:
        return run_apart(run())


def run_in_pod(
    api: Api,
    namespace: str,
    pod: str,
    container: str,
    command: Sequence[str],
    *,
    stdin: bytes | None = None,
    timeout_s: float | None = 60.0,
) -> Output:
    """`exec_in_pod` with bytes in and out."""
    out, err = io.BytesIO(), io.BytesIO()
    code = exec_in_pod(
        api, namespace, pod, container, command, stdin=None if stdin is None else io.BytesIO(stdin),
        stdout=out, stderr=err, timeout_s=timeout_s,
    )  # fmt: skip
    return Output(code, out.getvalue(), err.getvalue())


class _Session:
    """One run of a program."""

    def __init__(
        self,
        api: Api,
        path: str,
        query: Sequence[tuple[str, str]],
        stdin: IO[bytes] | None,
        stdout: IO[bytes] | None,
        stderr: IO[bytes] | None,
        terminal: Terminal | None,
    ) -> None:
        self._api, self._path, self._query = api, path, query
        self._stdin, self._terminal = stdin, terminal
        self._sinks = {_STDOUT: stdout, _STDERR: stderr}
        self._where = path.removesuffix("/exec").rpartition("/")[2]

    async def run(self) -> int:
        connection = await WebSocket.open(self._api, self._path, self._query, _PROTOCOLS)
        helpers = []
        if self._stdin is not None:
            helpers.append(asyncio.ensure_future(self._feed(connection, self._stdin)))
        if self._terminal is not None:
            helpers.append(asyncio.ensure_future(self._resize(connection, self._terminal)))
        try:
            return await self._listen(connection)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await connection.close()

    async def _listen(self, connection: WebSocket) -> int:
        status = b""
        while (message := await connection.receive()) is not None:
            if not message:
                continue
            channel, data = message[0], message[1:]
            if channel == _STATUS:
                status += data
            elif data and (sink := self._sinks.get(channel)) is not None:
                sink.write(data)
                sink.flush()
        if not status:
            raise KubernetesError("the connection broke before the program ended", where=self._where)
        return self._exit_code(json.loads(status))

    def _exit_code(self, status: dict[str, Any]) -> int:
        if status.get("status") == "Success":
            return 0
        for cause in (status.get("details") or {}).get("causes") or ():
            if cause.get("reason") == "ExitCode":
                return int(cause["message"])
        message = " ".join(str(status.get("message") or "the program cannot be started").split())
        if missing := re.search(
            r'exec: "([^"]*)": (executable file not found|stat .* no such file)', message
        ):
            message = f"there is no program {missing[1]} in the container"
        raise ClusterError(message, where=self._where)

    async def _feed(self, connection: WebSocket, stdin: IO[bytes]) -> None:
        async for data in _blocks(stdin):
            await connection.send(bytes([_STDIN]) + data)
        if connection.subprotocol == _PROTOCOLS[0]:
            await connection.send(bytes([_END, _STDIN]))

    async def _resize(self, connection: WebSocket, terminal: Terminal) -> None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def resized() -> None:
            loop.call_soon_threadsafe(changed.set)

        terminal.on_resize = resized
        try:
            while True:
                changed.clear()
                columns, lines = terminal.size()
                size = json.dumps({"Width": columns, "Height": lines}).encode()
                await connection.send(bytes([_RESIZE]) + size)
                await changed.wait()
        finally:
            terminal.on_resize = None


async def _blocks(stream: IO[bytes]) -> Any:
    """What a stream has, as it comes; nobody is left reading from it when this ends."""
    try:
        descriptor = stream.fileno()
    except (OSError, AttributeError):
        while data := stream.read(_BLOCK):
            yield data
        return
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(descriptor, readable.set)
    except PermissionError:  # a file, which can always be read
        while data := os.read(descriptor, _BLOCK):
            yield data
        return
    try:
        while True:
            await readable.wait()
            readable.clear()
            if not (data := os.read(descriptor, _BLOCK)):
                return
            # While it is passed on, the loop is not to spin on what comes next.
            loop.remove_reader(descriptor)
            yield data
            loop.add_reader(descriptor, readable.set)
    finally:
        loop.remove_reader(descriptor)
