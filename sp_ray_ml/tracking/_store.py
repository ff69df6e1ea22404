"""Where MLflow keeps runs: the tracking URI, its form without secrets, and the command that shows it."""

from __future__ import annotations

import os
import re
import socket
import sys
import urllib.parse
import urllib.request
from pathlib import Path

from sp_ray_ml._remote import is_remote
from sp_ray_ml.errors import TrackingError
from sp_ray_ml.tracking.settings import Tracking

__all__ = ["tracking_uri", "ui_command", "ui_environment"]

_REACH_S = 10.0
_SECRET_QUERY = re.compile(r"(?i)([?&][^=&]*(?:password|passwd|pwd|secret|token|api_?key)[^=&]*=)[^&#]+")


def tracking_uri(settings: Tracking, runs_folder: str | os.PathLike[str]) -> str:
    """The MLflow tracking URI of these settings, with absolute paths; it may hold a password.

    Args:
        settings: Their `uri`, else the environment's `MLFLOW_TRACKING_URI`, else an SQLite file in `runs_folder`.
        runs_folder: Folder that holds the runs' folders.

    Returns:
        The URI. Empty where nothing names one and the runs are at a URL, where no SQLite file can be: their journals
        are all that is kept, until `sync` sends them.
    """
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and is_remote(runs_folder):
        return ""
    if not uri:
        return f"sqlite:///{Path(runs_folder).absolute() / 'mlflow.db'}"
    if match := re.fullmatch(r"(sqlite(?:\+\w+)?:///)(?!/)(?!:memory:)(.+)", uri):
        return f"{match.group(1)}{Path(match.group(2)).absolute()}"
    if ":" not in uri and uri != "databricks":
        return Path(uri).absolute().as_uri()
    return uri


def is_file_store(uri: str) -> bool:
    """Whether a tracking URI is of files of this machine."""
    return uri.startswith(("sqlite", "file:"))


def answers(uri: str) -> bool:
    """Whether somebody listens at a server's address; MLflow would try for minutes. Of a file it is not asked."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(parts.hostname):
        return True  # the way there goes through somebody else
    try:
        socket.create_connection((parts.hostname, port), timeout=_REACH_S).close()
    except OSError:
        return False
    return True


def artifact_root(uri: str) -> str | None:
    """Where artifacts lie for a store that is a file of this machine: beside it; None where the server decides."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///(/.+)", uri)
    return (Path(match.group(1)).parent / "mlartifacts").as_uri() if match else None


def redact_uri(uri: str) -> str:
    """The URI without passwords, fit for files, messages and argument lists."""
    text = _SECRET_QUERY.sub(r"\1***", uri)
    userinfo = _userinfo(uri)
    if userinfo is None:
        return text
    user, colon, _ = userinfo.partition(":")
    return text.replace(f"{userinfo}@", f"{user}:***@" if colon else "***@", 1)


def secrets_of(uri: str) -> list[str]:
    """What `redact_uri` hides, as written and decoded: a sender strikes it from its log."""
    userinfo = _userinfo(uri) or ""
    found = {userinfo.partition(":")[2] or userinfo}
    found |= {match.group(0).partition("=")[2] for match in _SECRET_QUERY.finditer(uri)}
    found |= {urllib.parse.unquote(text) for text in found}
    return sorted((text for text in found if text), key=len, reverse=True)


def _userinfo(uri: str) -> str | None:
    """`user:password`, or a token in its place; a user alone is no secret where it names a database's user."""
    parts = urllib.parse.urlsplit(uri)
    userinfo, at, _ = parts.netloc.rpartition("@")
    if not at or (":" not in userinfo and parts.scheme not in {"http", "https"}):
        return None
    return userinfo


def ui_command(settings: Tracking, runs_folder: str | os.PathLike[str], port: int = 5000) -> list[str]:
    """The command that shows the runs in a browser, on this machine's loopback address only.

    The store's address goes through `ui_environment`, since an argument list can be read by every user of the
    machine. The page is then at `http://127.0.0.1:<port>`.

    Raises:
        TrackingError: A tracking server already shows them: the error names its address.
    """
    uri = tracking_uri(settings, runs_folder)
    if uri.partition(":")[0].lower() in {"http", "https", "databricks", "databricks-uc", "uc"}:
        raise TrackingError(
            "the runs are on a tracking server, which has pages of its own",
            where=redact_uri(uri),
            hint=f"Open {redact_uri(uri)} in a browser",
        )
    # One worker: each costs MLflow's import, several seconds of a core.
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--workers", "1"]


def ui_environment(settings: Tracking, runs_folder: str | os.PathLike[str]) -> dict[str, str]:
    """Environment variables that `ui_command` needs beside those of this process."""
    uri = tracking_uri(settings, runs_folder)
    root = artifact_root(uri)
    extra = {"MLFLOW_DEFAULT_ARTIFACT_ROOT": root} if root else {}
    return {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true", **extra}
