"""File systems of URLs, by fsspec: object stores with bounded patience, and what goes wrong there told in our errors."""

from __future__ import annotations

import datetime
import email.utils
import errno
import importlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sp_ray_ml._secrets import redact
from sp_ray_ml.config import near_match
from sp_ray_ml.errors import ConfigError, StorageError
from sp_ray_ml.optional import check_installed

__all__ = [
    "age",
    "below",
    "check_url",
    "create",
    "filesystem",
    "is_remote",
    "join",
    "protocol",
    "read_bytes",
    "remote_errors",
]

_LIBRARIES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_CLASSES = {"s3fs": "S3FileSystem", "gcsfs": "GCSFileSystem"}
_LOGIN = {
    "s3": "aws sso login (or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)",
    "gs": "gcloud auth application-default login (or set GOOGLE_APPLICATION_CREDENTIALS)",
}
_WHO = {"s3": "aws sts get-caller-identity", "gs": "gcloud auth list"}
_MAKE = {"s3": "aws s3 mb s3://{bucket}", "gs": "gcloud storage buckets create gs://{bucket}"}
_STALLS = 3
_S3_TRIES = 2
_PACKAGES = {"aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs", "urllib3"}  # fmt: skip


def _patience() -> float:
    """Seconds for one answer, before it is asked for again."""
    return float(os.environ.get("SP_RAY_STORAGE_TIMEOUT", "20"))


def is_remote(path: object) -> bool:
    """Whether a path is a URL of a store, and no file or folder of this machine."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    return isinstance(text, str) and "://" in text and not text.startswith(("file://", "local://"))


def join(url: str, *parts: str) -> str:
    """A URL below another."""
    return "/".join([url.rstrip("/"), *parts])


def below(folder: str | os.PathLike[str], *parts: str) -> Path | str:
    """What lies below a folder, given by its path or its URL."""
    return join(os.fspath(folder), *parts) if is_remote(folder) else Path(folder, *parts)


def check_url(url: str) -> None:
    """Check that there is such a kind of store, without a look at credentials or the network.

    Raises:
        ConfigError: There is no such kind of store.
        MissingDependencyError: Its library is not installed.
    """
    import fsspec

    scheme = url.partition("://")[0]
    if scheme in _LIBRARIES:
        check_installed(_LIBRARIES[scheme], f"{scheme}://")
    elif scheme not in fsspec.available_protocols():
        raise ConfigError(
            f"unknown kind of storage {scheme!r}{near_match(scheme, ['s3', 'gs', 'file'])}",
            where=str(redact(url)),
            hint="Give a path, s3://…, gs://… or a URL of an installed fsspec library",
        )


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path there.

    Credentials are what the library finds: the environment, its configuration files, the machine's own. Listings
    are never remembered, since others write, too.

    Raises:
        ConfigError: As of `check_url`.
        MissingDependencyError: As of `check_url`.
    """
    import fsspec

    check_url(url)
    scheme = url.partition("://")[0]
    options: dict[str, Any] = {}
    if _LIBRARIES.get(scheme) == "s3fs":
        options = _s3()
    elif _LIBRARIES.get(scheme) == "gcsfs":
        options = _gcs()
    try:
        if (library := _LIBRARIES.get(scheme)) is not None:
            # Not by fsspec's registry: Flyte's SDK puts another library's there under these schemes.
            kind = getattr(importlib.import_module(library), _CLASSES[library])
            _as_the_environment_is(kind, library)
            fs = kind(**{**kind._get_kwargs_from_urls(url), **options})
            path = kind._strip_protocol(url)
        else:
            fs, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        raise ConfigError(f"{scheme}:// cannot be used: {error}", where=str(redact(url))) from error
    if _LIBRARIES.get(scheme) == "s3fs":
        fs.retries = _S3_TRIES
    elif _LIBRARIES.get(scheme) == "gcsfs" and "_request" not in vars(fs):
        _bound_stalls(fs)
    return fs, str(path).rstrip("/")


_VARIABLES = {"s3fs": ("AWS_", "FSSPEC_S3"), "gcsfs": ("GOOGLE_", "GCLOUD_", "CLOUDSDK_", "STORAGE_EMULATOR_", "FSSPEC_GS")}  # fmt: skip
_environments: dict[str, int] = {}


def _as_the_environment_is(kind: Any, library: str) -> None:
    """Forget open file systems when variables that they were opened by have changed: in a notebook, new credentials."""
    found = hash(
        tuple(sorted(pair for pair in os.environ.items() if pair[0].startswith(_VARIABLES[library])))
    )
    if _environments.setdefault(library, found) != found:
        _environments[library] = found
        kind.clear_instance_cache()


def protocol(fs: Any) -> str:
    """The scheme of a file system's URLs, the first one where it has several."""
    return str(fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0])


def _bound_stalls(fs: Any) -> None:
    """Have gcsfs ask three times of a store that does not answer at all, in place of six with half a minute of pauses."""
    from aiohttp import ServerTimeoutError
    from gcsfs.retry import retry_request

    def bounded(once: Any) -> Any:
        async def asked(*args: Any, **kwargs: Any) -> Any:
            stalls = 0

            async def one_try() -> Any:
                nonlocal stalls
                try:
                    return await once(fs, *args, **kwargs)
                except ServerTimeoutError as error:
                    stalls += 1
                    if stalls == _STALLS:
                        raise TimeoutError(str(error)) from error  # which it does not ask again after
                    raise

            return await retry_request(retries=fs.retries)(one_try)()

        return asked

    for name in ("_request", "_get_file_request"):
        if once := getattr(getattr(type(fs), name, None), "__wrapped__", None):  # without its own tries
            setattr(fs, name, bounded(once))


def _s3() -> dict[str, Any]:
    # s3fs asks again for everything but listings, which it leaves to botocore: both ask three times, the rest six.
    seconds = _patience()
    retries = {"max_attempts": 2, "mode": "standard"}
    times = {"connect_timeout": min(seconds, 10), "read_timeout": seconds, "retries": retries}
    return {"use_listings_cache": False, "config_kwargs": times, "default_block_size": 16 << 20}


def _gcs() -> dict[str, Any]:
    import aiohttp

    if os.environ.get(
        "STORAGE_EMULATOR_HOST"
    ):  # emulators have no gRPC, by which it asks for a bucket's kind
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints each error that it raises, too
    seconds = _patience()
    times = aiohttp.ClientTimeout(total=None, sock_connect=min(seconds, 10), sock_read=seconds)
    options = {"use_listings_cache": False, "requests_timeout": times, "block_size": 16 << 20}
    return options | ({"token": "anon"} if os.environ.get("STORAGE_EMULATOR_HOST") else {})


def read_bytes(url: str) -> bytes | None:
    """What is in a file; None where there is none.

    Raises:
        StorageError: The store cannot be read.
    """
    fs, path = filesystem(url)
    with remote_errors(url, "read"):
        try:
            return bytes(fs.cat_file(path))
        except FileNotFoundError:
            return None


def create(url: str, data: bytes) -> bool:
    """Make an object that is not there yet, in one step of the store: of two who try, one does.

    Returns:
        False if it is there already, made by another.

    Raises:
        StorageError: It could not be made, or the store knows no such writes.
    """
    fs, path = filesystem(url)
    with remote_errors(url):
        if not _made(fs, path, data):
            # An answer may be lost on its way, and the second try then finds what the first one made.
            return bool(fs.cat_file(path) == data)
        store = url.rpartition("://")[0] + "://" + urlsplit(url).netloc
        if store not in _conditional:
            if _made(fs, path, b"a second one"):
                fs.rm_file(path)
                raise StorageError(
                    "the store writes over what is there, though asked not to: of two who work there at once, both would be first",
                    where=str(redact(url)),
                    hint="Use a store with conditional writes: S3, Google Cloud Storage, MinIO of 2024 or later",
                )
            _conditional.add(store)
    return True


_conditional: set[str] = set()
"""Stores that were seen to keep the first of two."""


def _made(fs: Any, path: str, data: bytes) -> bool:
    """Whether an object was made, for it was not there."""
    for last in (False, False, True):
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # Another write of it is under way: S3 asks for another try.
            if last or _code(error) != "ConditionalRequestConflict":
                raise
        else:
            return True
    return False


def age(url: str) -> float:
    """Seconds since an object was written, both by the store's own clock where it tells it (S3, Google Cloud).

    Raises:
        StorageError: It is not there, or cannot be read.
    """
    fs, path = filesystem(url)
    kind = protocol(fs)
    with remote_errors(url, "read"):
        if kind in {"s3", "s3a"}:
            bucket, key, _ = fs.split_path(path)
            answer = fs.call_s3("head_object", Bucket=bucket, Key=key)
            written = answer["LastModified"]
            now = email.utils.parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        elif kind in {"gs", "gcs"}:
            bucket, key, _ = fs.split_path(path)
            headers, content = fs.call("GET", "b/{}/o/{}", bucket, key)
            written = datetime.datetime.fromisoformat(json.loads(content)["updated"])
            now = email.utils.parsedate_to_datetime(headers["Date"])
        else:
            written, now = fs.modified(path), datetime.datetime.now(datetime.UTC)
    return max(0.0, float((now - written).total_seconds()))  # answers bear whole seconds


# --- errors -----------------------------------------------------------------------------------------------------


@contextmanager
def remote_errors(url: str, doing: str = "write") -> Iterator[None]:
    """Turn what fsspec's libraries raise into a `StorageError` that says what, where, why and the next command.

    Args:
        url: What is written or read, for the message.
        doing: The verb, for the message.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _PACKAGES:
            raise
        reason, hint = _reason(error, url)
        raise StorageError(f"cannot {doing}: {reason}", where=str(redact(url)), hint=hint) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _code(error: BaseException) -> str:
    """The code of the store's answer: `AccessDenied`, `403`; empty if there is none."""
    for one in _chain(error):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict) and "Error" in answer:
            return str(answer["Error"].get("Code", ""))
        if (code := getattr(one, "code", None)) is not None:
            return str(code)
    return ""


_UNKNOWN = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "401", "Unauthorized"}
_FULL = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "StorageQuotaExceeded"}


def _reason(error: Exception, url: str) -> tuple[str, str | None]:
    """What went wrong, and what to do."""
    scheme = {"s3a": "s3", "gcs": "gs"}.get(url.partition("://")[0], url.partition("://")[0])
    bucket = urlsplit(url).netloc
    login = f"Sign in: {_LOGIN[scheme]}" if scheme in _LOGIN else None
    chain = list(_chain(error))
    names = {type(one).__name__ for one in chain}
    # What files are called says nothing: a preprocessor has nothing to do with SSO, nor a digest with status 507.
    said = " ".join(str(one) for one in chain).lower()
    code, low = _code(error), " ".join(word for word in said.split() if "/" not in word)
    if "expired" in low or code in {"ExpiredToken", "RequestExpired"} or "RefreshError" in names:
        return "the credentials have expired", login
    if code in _UNKNOWN:
        return f"the credentials are not accepted ({code})", login
    if (
        names & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
        or any(word in low for word in ("anonymous caller", "no credentials"))
        or "sso" in low.split()
    ):
        return "there are no credentials", login
    if (
        code in _FULL
        or "507" in re.findall(r"\w+", low)
        or "quota" in low
        or getattr(error, "errno", 0) in {errno.ENOSPC, errno.EDQUOT}
    ):
        return (
            "the bucket is full, or its quota is used up",
            "Remove what is not needed, or have the quota raised",
        )
    if isinstance(error, PermissionError) or code in {"AccessDenied", "403"} or "forbidden" in low:
        who = _WHO.get(scheme)
        return (
            "permission denied",
            f"See who you are: {who}; then ask for access to {bucket}" if who else None,
        )
    if "bucket" in low and ("not exist" in low or "not found" in low or code == "NoSuchBucket"):
        make = _MAKE[scheme].format(bucket=bucket) if scheme in _MAKE else None
        return f"no such bucket {bucket!r}", f"Make it: {make}" if make else None
    if isinstance(error, FileNotFoundError):
        return "no such file or folder", None
    if isinstance(error, TimeoutError) or any("Timeout" in name for name in names):
        return (
            f"the network stalls: no answer in {_patience():g} s, asked for several times",
            "See whether the store can be reached; SP_RAY_STORAGE_TIMEOUT=SECONDS waits longer",
        )
    if isinstance(error, ConnectionError) or any("Connect" in name or "Disconnect" in name for name in names):
        return f"the store cannot be reached, or broke off ({_first(error)})", "See whether it can: try again"
    return _first(error), None


def _first(error: Exception) -> str:
    said = str(error).strip().split("\n", 1)[0] or type(error).__name__
    return str(redact(said))[:300]
