"""Waits until the workbench's servers listen; run on the head, so nothing but the standard library is here.

Arguments: seconds, then `name=port` each. Prints one JSON object: the servers that do not listen, each with the last
lines of its log.
"""

import json
import pathlib
import socket
import sys
import time

LOGS = pathlib.Path("/tmp/ray-workbench")  # noqa: S108 - as the start script has it


def listens(port: str) -> bool:
    """Whether something does on this port."""
    try:
        socket.create_connection(("127.0.0.1", int(port)), 1).close()
    except OSError:
        return False
    return True


def last_lines(name: str) -> str:
    """The end of a server's log, or that it is missing."""
    for file in (LOGS / f"{name}.missing", LOGS / f"{name}.log"):
        if file.exists():
            return "\n".join(file.read_text(errors="replace").splitlines()[-10:])
    return "it was never started"


def main(timeout: str, *servers: str) -> None:
    """Wait, and print."""
    end = time.monotonic() + float(timeout)
    waiting = dict(server.split("=") for server in servers)
    while True:
        waiting = {name: port for name, port in waiting.items() if not listens(port)}
        hopeless = all((LOGS / f"{name}.missing").exists() for name in waiting)
        if hopeless or time.monotonic() > end:
            break
        time.sleep(0.2)
    print(json.dumps({name: last_lines(name) for name in waiting}))  # noqa: T201 - read by the one who runs this


if __name__ == "__main__":
    main(*sys.argv[1:])
