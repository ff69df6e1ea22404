"""An API server on loopback that forwards ports and runs programs over WebSockets, as a kubelet does: with aiohttp.

Its pods are this machine: their ports are those of 127.0.0.1, and their programs run here.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import WSMsgType, web

from sp_ray_ml.cluster._api import Api


class PodServer:
    """Serves in a thread of its own.

    Args:
        tls: Serve HTTPS with it.
        token: Ask for this bearer token.
        protocols: Subprotocols that it knows for programs.

    Attributes:
        ports: Ports of this machine that stand for those of the pods; the same without.
        objects: What it answers at a path.
    """

    def __init__(
        self, *, tls: ssl.SSLContext | None = None, token: str = "", protocols=("v5.channel.k8s.io", "v4.channel.k8s.io")
    ) -> None:  # fmt: skip
        self.pods = {"head-1"}
        self.ports: dict[int, int] = {}
        self.objects: dict[str, dict] = {}
        self.asked: list[str] = []
        self.sizes: list[dict] = []
        self._open: list[web.Request] = []
        self._tls, self._token, self._protocols = tls, token, protocols
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pod-server")
        self.port = 0

    def __enter__(self) -> PodServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/api/v1/namespaces/{namespace}/pods/{pod}/portforward", self._forward)
        app.router.add_get("/api/v1/namespaces/{namespace}/pods/{pod}/exec", self._exec)
        app.router.add_route("*", "/api/v1/namespaces/{namespace}/pods/{pod}/proxy{rest:.*}", self._proxy)
        app.router.add_get("/{path:.*}", self._object)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    def _refusal(self, request: web.Request) -> web.Response | None:
        pod = request.match_info["pod"]
        self.asked.append(pod)
        if self._token and request.headers.get("Authorization") != f"Bearer {self._token}":
            return web.json_response({"kind": "Status", "reason": "Unauthorized"}, status=401)
        if pod not in self.pods:
            details = {"kind": "pods", "name": pod}
            body = {
                "kind": "Status",
                "message": f'pods "{pod}" not found',
                "reason": "NotFound",
                "details": details,
            }
            return web.json_response(body, status=404)
        return None

    def drop(self) -> None:
        """Break all connections through which ports are forwarded."""

        async def abort() -> None:
            for request in self._open:
                if request.transport is not None:
                    request.transport.abort()

        asyncio.run_coroutine_threadsafe(abort(), self._loop).result()

    async def _proxy(self, request: web.Request) -> web.Response:
        """Nobody may use the proxy here."""
        self.asked.append(f"{request.method} proxy")
        return web.json_response({"kind": "Status", "reason": "Forbidden", "code": 403}, status=403)

    async def _object(self, request: web.Request) -> web.Response:
        if found := self.objects.get(request.path):
            return web.json_response(found)
        return web.json_response({"kind": "Status", "reason": "NotFound", "code": 404}, status=404)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._refusal(request):
            return refusal
        socket = web.WebSocketResponse(protocols=["v4.channel.k8s.io"], max_msg_size=0)
        await socket.prepare(request)
        self._open.append(request)
        port = int(request.query["ports"])
        name = port.to_bytes(2, "little")
        await socket.send_bytes(b"\0" + name)
        await socket.send_bytes(b"\1" + name)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.ports.get(port, port))
        except OSError:
            await socket.send_bytes(b"\1error forwarding port: connection refused")
            await socket.close()
            return socket

        async def down() -> None:
            while data := await reader.read(2**15):
                await socket.send_bytes(b"\0" + data)
            await socket.close()

        task = asyncio.ensure_future(down())
        async for message in socket:
            if message.type == WSMsgType.BINARY and message.data[0] == 0:
                writer.write(message.data[1:])
                await writer.drain()
        task.cancel()
        writer.transport.abort()
        return socket

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._refusal(request):
            return refusal
        socket = web.WebSocketResponse(protocols=self._protocols, max_msg_size=0)
        await socket.prepare(request)
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *request.query.getall("command"), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except FileNotFoundError as error:
            message = f'exec failed: unable to start container process: exec: "{error.filename}": executable file not found in $PATH: unknown'
            await socket.send_bytes(b"\3" + json.dumps({"status": "Failure", "message": message}).encode())
            await socket.close()
            return socket

        async def pass_on(channel: int, stream: asyncio.StreamReader) -> None:
            while data := await stream.read(2**15):
                await socket.send_bytes(bytes([channel]) + data)

        async def take() -> None:
            async for message in socket:
                channel, data = message.data[0], message.data[1:]
                if channel == 0:
                    process.stdin.write(data)
                    await process.stdin.drain()
                elif channel == 4:
                    self.sizes.append(json.loads(data))
                elif channel == 255 and socket.ws_protocol == "v5.channel.k8s.io":
                    process.stdin.close()
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)

        taking = asyncio.ensure_future(take())
        await asyncio.gather(pass_on(1, process.stdout), pass_on(2, process.stderr))
        code = await process.wait()
        status = {"status": "Success"}
        if code:
            causes = [{"reason": "ExitCode", "message": str(code)}]
            status = {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
        if not socket.closed:
            await socket.send_bytes(b"\3" + json.dumps(status).encode())
            await socket.close()
        await taking
        return socket


def api_of(
    server: PodServer, folder: Path, *, scheme: str = "http", user: dict | None = None, **cluster: str
) -> Api:
    """A connection to it by a kubeconfig."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "loopback",
        "contexts": [
            {"name": "loopback", "context": {"cluster": "here", "user": "me", "namespace": "default"}}
        ],
        "clusters": [
            {"name": "here", "cluster": {"server": f"{scheme}://127.0.0.1:{server.port}", **cluster}}
        ],
        "users": [{"name": "me", "user": user or {}}],
    }
    file = folder / "kubeconfig"
    file.write_text(json.dumps(config))
    return Api(file)


@contextmanager
def proxy_server(seen: list[str]) -> Iterator[int]:
    """An HTTP proxy that passes `CONNECT` on; the port that it listens on."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy")
    thread.start()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(head.splitlines()[0])
        host, _, port = head.split(" ")[1].rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(2**15):
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)

    async def serve() -> asyncio.Server:
        return await asyncio.start_server(handle, "127.0.0.1", 0)

    async def end() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(serve(), loop).result()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
