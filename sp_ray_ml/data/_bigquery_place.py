"""Where a BigQuery dataset is: its URL and options, clients for it, and calls repeated while that may help."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from sp_ray_ml.config import near_match
from sp_ray_ml.data._bigquery_errors import no_credentials, told, transient
from sp_ray_ml.errors import ConfigError, SpRayError
from sp_ray_ml.logger import LOGGER
from sp_ray_ml.optional import require

__all__ = ["Place", "Waits", "parse_url"]

T = TypeVar("T")
N = TypeVar("N", int, float)

_OPTIONS = ("location", "max_bytes_billed", "billing_project", "streams", "patience", "staging")
_PROJECT = re.compile(r"^[a-z0-9.-]+(:[a-z0-9-]+)?$", re.IGNORECASE)
_STAGING = re.compile(r"^gs://[a-z0-9][a-z0-9._-]{1,221}(/[^*?#\[\]]*)?$")  # `*` is a pattern to load jobs
_DATASET = re.compile(r"^[A-Za-z0-9_]{1,1024}$")
_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
# A connection on which nothing answers is given up, and the stream goes on from its last row.
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
]


@dataclass(frozen=True)
class Place:
    """A dataset and how it is reached; small, and pickled into Ray's tasks.

    Attributes:
        project: The project of the dataset.
        dataset: Its name.
        billing: The project that jobs and reads are billed to.
        location: `EU`, `US`, `europe-west3` …; None to ask the dataset.
        max_bytes_billed: What one query may read at most, in bytes; None for no limit.
        streams: How many streams are read at once at most.
        patience: Seconds for which an answer of "later" is asked again.
        staging: Where the parts of a write lie while they are loaded, `gs://…`; None to upload them to BigQuery.
        rest: An emulator's address, as `BIGQUERY_EMULATOR_HOST` says it; empty for Google's.
        grpc: The same emulator's `host:port` for the Storage Read API, of `BIGQUERY_STORAGE_EMULATOR_HOST`.
    """

    project: str
    dataset: str
    billing: str
    location: str | None = None
    max_bytes_billed: int | None = None
    streams: int = 8
    patience: float = 600.0
    staging: str | None = None
    rest: str = ""
    grpc: str = ""

    @property
    def url(self) -> str:
        """For messages."""
        return f"bigquery://{self.project}/{self.dataset}"

    @property
    def timeout(self) -> float:
        """Seconds for one answer."""
        return max(1.0, min(60.0, self.patience / 2))

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A `google.cloud.bigquery.Client`."""
        bigquery = require("google.cloud.bigquery", "bigquery://")
        options = {"api_endpoint": self.rest} if self.rest else None
        client = bigquery.Client(
            project=self.billing,
            credentials=_credentials(self.rest),
            location=self.location,
            client_options=options,
        )
        try:
            yield client
        finally:
            client.close()

    @contextmanager
    def reader(self) -> Iterator[Any]:
        """The Storage Read API's own client, without the loops around it that never give up."""
        require("google.cloud.bigquery_storage", "bigquery://")
        from google.cloud.bigquery_storage_v1.services.big_query_read import BigQueryReadClient
        from google.cloud.bigquery_storage_v1.services.big_query_read.transports import (
            BigQueryReadGrpcTransport,
        )

        if self.grpc:
            import grpc

            channel = grpc.insecure_channel(self.grpc, options=_CHANNEL)
        elif self.rest:
            raise ConfigError(
                "BIGQUERY_EMULATOR_HOST is set, but not where the emulator serves the Storage Read API",
                where=self.url,
                hint="Set it: export BIGQUERY_STORAGE_EMULATOR_HOST=localhost:9060",
            )
        else:
            channel = BigQueryReadGrpcTransport.create_channel(credentials=_credentials(""), options=_CHANNEL)
        try:
            yield BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=channel))
        finally:
            channel.close()

    def call(self, work: Callable[[], T], *, table: str = "", job: str = "") -> T:
        """Do `work`, again where BigQuery said "later" (quota, 5xx, a connection lost), with growing waits.

        Args:
            work: Asks once. What it does must do no harm when it is done twice.
            table: What messages are about.
            job: A job's id, for messages.

        Raises:
            SpRayError: It failed for good, or for longer than `patience`.
        """
        waits = Waits(self, table=table, job=job)
        while True:
            try:
                return work()
            except SpRayError:
                raise
            except Exception as error:  # noqa: BLE001 - `after` raises what is for good
                wait = waits.after(error)
                LOGGER.warning("%s: %s; asking again in %.1f s", self.url, type(error).__name__, wait)
            time.sleep(wait)


class Waits:
    """How long to wait before the next try: twice as long each time, until the place's patience is over.

    Args:
        place: The dataset.
        table: What messages are about.
        job: A job's id, for messages.
    """

    def __init__(self, place: Place, *, table: str = "", job: str = "") -> None:
        self._place, self._table, self._job = place, table, job
        self.again()

    def again(self) -> None:
        """Begin anew: there was an answer."""
        self._wait, self._end = _FIRST_WAIT, time.monotonic() + self._place.patience

    def next(self) -> float | None:
        """Seconds to wait, None when the patience is over."""
        wait, self._wait = self._wait, min(2 * self._wait, _LONGEST_WAIT)
        return wait if time.monotonic() + wait <= self._end else None

    def after(self, error: Exception) -> float:
        """Seconds to wait after an error.

        Raises:
            SpRayError: To ask again does not help, or not any more.
        """
        if transient(error) and (wait := self.next()) is not None:
            return wait
        if (ours := told(error, self._place, table=self._table, job=self._job)) is None:
            raise error
        raise ours from error


@cache
def _credentials(emulator: str) -> Any:
    if emulator:
        from google.auth.credentials import AnonymousCredentials

        return AnonymousCredentials()
    require("google.cloud.bigquery", "bigquery://")
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        return google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])[0]
    except DefaultCredentialsError as error:
        raise no_credentials(error) from error


def parse_url(url: str) -> Place:
    """`bigquery://PROJECT/DATASET?OPTION=VALUE&…` as a place.

    Raises:
        ConfigError: It is no such URL, or an option is unknown or has a wrong value.
    """
    parts = urlsplit(url)
    project, dataset = parts.netloc, parts.path.strip("/")
    where = f"bigquery://{project}/{dataset}"
    if not _PROJECT.match(project) or not _DATASET.match(dataset):
        raise ConfigError(
            "a BigQuery URL names a project and a dataset",
            where=where,
            hint="For example: bigquery://my-project/my_dataset",
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in given:
        if name not in _OPTIONS:
            raise ConfigError(
                f"unknown option {name!r}{near_match(name, _OPTIONS)}",
                where=where,
                hint=f"Known: {', '.join(_OPTIONS)}",
            )
    staging = given.get("staging", "").rstrip("/")
    if staging and not _STAGING.match(staging):
        raise ConfigError(
            f"staging is a place in Google Cloud Storage, got {given['staging']!r}",
            where=where,
            hint="For example: staging=gs://my-bucket/staging",
        )
    emulator = os.environ.get("BIGQUERY_EMULATOR_HOST", "")
    return Place(
        project,
        dataset,
        billing=given.get("billing_project") or project,
        location=given.get("location") or None,
        max_bytes_billed=_number(given, "max_bytes_billed", where, _bytes),
        streams=_number(given, "streams", where, int) or 8,
        patience=600.0 if (patience := _number(given, "patience", where, float)) is None else patience,
        staging=staging or None,
        rest=emulator if "://" in emulator or not emulator else f"http://{emulator}",
        grpc=os.environ.get("BIGQUERY_STORAGE_EMULATOR_HOST", "").rpartition("/")[2] if emulator else "",
    )


def _number(given: dict[str, str], name: str, where: str, read: Callable[[str], N]) -> N | None:
    if name not in given:
        return None
    try:
        value = read(given[name])
    except ValueError:
        value = None
    if value is None or not 0 <= value < float("inf"):
        raise ConfigError(f"{name} is a number that is not negative, got {given[name]!r}", where=where)
    return value


def _bytes(text: str) -> int:
    """`5000000`, `10GB` or `1TiB` as bytes."""
    found = re.match(r"^\s*([0-9.]+)\s*([KMGT]?I?B?)\s*$", text.upper())
    if found is None or found[2] not in _UNITS:
        raise ValueError(text)
    return int(float(found[1]) * _UNITS[found[2]])
