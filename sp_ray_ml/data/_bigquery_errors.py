"""What BigQuery answers, told in our errors: what, where, the job's id, and the command that helps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import (
    ColumnNotFoundError,
    DataError,
    LockedError,
    SpRayError,
    TableNotFoundError,
    WarehouseError,
)

if TYPE_CHECKING:
    from sp_ray_ml.data._bigquery_place import Place

__all__ = ["missing_table", "no_credentials", "reasons", "told", "transient"]

_LOGIN = "Run: gcloud auth application-default login (or set GOOGLE_APPLICATION_CREDENTIALS to a key's file)"
_LATER = {
    "backendError", "internalError", "jobBackendError", "jobInternalError", "jobRateLimitExceeded", "quotaExceeded",
    "rateLimitExceeded", "tableUnavailable", "badGateway",
}  # fmt: skip
_QUOTA = {"quotaExceeded", "rateLimitExceeded", "jobRateLimitExceeded", "RESOURCE_EXHAUSTED"}
_TABLE = re.compile(r"Not found: Table [`\"]?(?:[\w.-]+[:.])?(?:\w+\.)?([^\s`\";]+)", re.IGNORECASE)
# The second is what the emulator's engine says.
_COLUMN = re.compile(
    r"Unrecognized name: `?([^\s;`]+)|Referenced column \"([^\"]+)\" not found|Name (\S+) not found inside"
)
_PERMISSION = re.compile(r"bigquery\.\w+\.\w+")
_ROLES = {
    "bigquery.jobs.create": "roles/bigquery.jobUser",
    "bigquery.readsessions.create": "roles/bigquery.readSessionUser",
    "bigquery.tables.get": "roles/bigquery.dataViewer",
    "bigquery.tables.getData": "roles/bigquery.dataViewer",
    "bigquery.tables.list": "roles/bigquery.dataViewer",
    "bigquery.datasets.get": "roles/bigquery.dataViewer",
    "bigquery.datasets.create": "roles/bigquery.user",
}
_CONFLICT = re.compile(
    r"aborted due to concurrent update|concurrent update|Could not serialize", re.IGNORECASE
)


def reasons(error: BaseException) -> set[str]:
    """What BigQuery's error says it is: `notFound`, `quotaExceeded` …"""
    listed: Any = getattr(error, "errors", None) or ()
    return {str(one.get("reason")) for one in listed if isinstance(one, dict) and one.get("reason")}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps: retries and uploads put their own around the answer."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = (
            getattr(seen, "cause", None)
            if isinstance(getattr(seen, "cause", None), BaseException)
            else seen.__cause__
        )


def transient(error: BaseException) -> bool:
    """Whether asking again may help: quotas that fill up again, 5xx, connections that were lost or say nothing."""
    import requests.exceptions
    from google.api_core import exceptions
    from google.auth.exceptions import RefreshError, TransportError

    later = (
        exceptions.TooManyRequests,
        exceptions.InternalServerError,
        exceptions.BadGateway,
        exceptions.ServiceUnavailable,
        exceptions.GatewayTimeout,
        exceptions.Unknown,
        exceptions.Aborted,
        requests.exceptions.ConnectionError,
        requests.exceptions.ChunkedEncodingError,
        requests.exceptions.Timeout,
        requests.exceptions.JSONDecodeError,
        TransportError,
        ConnectionError,
    )
    for one in _chain(error):
        if isinstance(one, requests.exceptions.SSLError | RefreshError):
            return False
        if isinstance(one, later) or reasons(one) & _LATER or _CONFLICT.search(str(one)):
            return True
    return False


def no_credentials(error: BaseException) -> WarehouseError:
    """The error of somebody who is not logged in."""
    return WarehouseError(f"no credentials for Google Cloud: {_first_line(error)}", hint=_LOGIN)


def missing_table(error: BaseException) -> str | None:
    """The table that an error says is not there."""
    found = _TABLE.search(str(error))
    return found[1].rstrip(".") if found else None


def told(error: BaseException, place: Place, *, table: str = "", job: str = "") -> SpRayError | None:
    """The error in ours, None if it is none of BigQuery's."""
    import requests.exceptions
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    chain = list(_chain(error))
    one = next((e for e in chain if isinstance(e, exceptions.GoogleAPICallError)), None)
    known = requests.exceptions.RequestException, exceptions.GoogleAPIError, GoogleAuthError, ConnectionError
    where = f"{place.url}/{table}" if table else place.url
    job = job or _job_of(one)
    show = f"bq show --project_id={place.billing} -j {job}" if job else ""
    about = f" (job {job})" if job else ""
    if auth := next((e for e in chain if isinstance(e, GoogleAuthError)), None):
        return WarehouseError(
            f"the credentials for Google Cloud do not work (expired or withdrawn): {_first_line(auth)}{about}",
            where=where,
            hint=_LOGIN,
        )
    if one is None:
        if not any(isinstance(e, known) for e in chain):
            return None
        return WarehouseError(
            f"BigQuery does not answer: {_first_line(chain[-1])}{about}",
            where=where,
            hint=f"Look at it: {show}" if show else "Check the network, and try again",
        )
    said, why = _first_line(one), reasons(one)
    if isinstance(one, exceptions.Unauthorized):
        return WarehouseError(f"the credentials are refused: {said}", where=where, hint=_LOGIN)
    if why & _QUOTA or isinstance(one, exceptions.TooManyRequests):
        return WarehouseError(
            f"a quota is used up, for longer than {place.patience:g} s: {said}{about}",
            where=where,
            hint=f"Try again later, or ask for more: gcloud beta quotas info list --service=bigquery.googleapis.com --project={place.billing}",
        )
    if _CONFLICT.search(said):
        return LockedError(
            f"another writer changed the table at the same time{about}", where=where, hint="Try again"
        )
    if place.staging and (ours := _of_staging(said, place, where, about)):
        return ours
    if isinstance(one, exceptions.Forbidden):
        return _denied(said, place, where, about)
    if column := _COLUMN.search(said):
        return ColumnNotFoundError(f"no column {next(filter(None, column.groups()))!r}: {said}", where=where)
    if missing := missing_table(one):
        return TableNotFoundError(
            f"no table {missing!r}{about}",
            where=where,
            hint=f"See what there is: bq ls {place.project}:{place.dataset}",
        )
    if isinstance(one, exceptions.NotFound):
        return WarehouseError(
            f"not found: {said}{about}", where=where, hint=f"See what there is: bq ls {place.project}:"
        )
    if re.search(r"different (partitioning|clustering) spec", said):
        return DataError(
            f"BigQuery does not replace a table by one that is laid out in another way{about}",
            where=where,
            hint=f"Take the table's own partition_by, or remove it first: bq rm -t {place.project}:{place.dataset}.{table}",
        )
    if "bytes billed" in said.lower():
        return WarehouseError(
            f"{said}{about}", where=where, hint="Read less, or raise max_bytes_billed in the URL"
        )
    if isinstance(one, exceptions.ServerError):
        return WarehouseError(
            f"BigQuery failed: {said}{about}",
            where=where,
            hint=f"Look at it: {show}" if show else "Try again later",
        )
    if "invalid" in why or isinstance(one, exceptions.OutOfRange):
        return DataError(
            f"BigQuery refuses these rows: {said}{about}",
            where=where,
            hint=f"Look at it: {show}" if show else None,
        )
    return WarehouseError(f"{said}{about}", where=where, hint=f"Look at it: {show}" if show else None)


def _of_staging(said: str, place: Place, where: str, about: str) -> WarehouseError | None:
    """What a load job says of the objects that it reads."""
    bucket = str(place.staging).split("/", 3)[2]
    if "different locations" in said:
        return WarehouseError(
            f"the staging bucket {bucket} is in another location than the dataset: {said}{about}",
            where=where,
            hint=f"Take one that is where the dataset is: gcloud storage buckets create gs://NAME --location={place.location or 'US'}",
        )
    if "storage.objects." in said or re.search(r"Access Denied: File gs://", said, re.IGNORECASE):
        return WarehouseError(
            f"BigQuery may not read what was staged: {said}{about}",
            where=where,
            hint=f"Somebody who may grants it: gcloud storage buckets add-iam-policy-binding gs://{bucket} --member=user:YOU --role=roles/storage.objectUser",
        )
    if re.search(r"Not found: (URI|Files?) gs://", said, re.IGNORECASE):
        return WarehouseError(
            f"what was staged is gone: {said}{about}",
            where=where,
            hint="Another write of the same commit or a lifecycle rule of the bucket removed it: try again",
        )
    return None


def _denied(said: str, place: Place, where: str, about: str) -> WarehouseError:
    if "has not been used in project" in said or "accessNotConfigured" in said:
        return WarehouseError(
            f"the API is not switched on: {said}",
            where=where,
            hint=f"Run: gcloud services enable bigquery.googleapis.com bigquerystorage.googleapis.com --project={place.billing}",
        )
    needed = _PERMISSION.search(said)
    role = _ROLES.get(needed[0], "roles/bigquery.dataEditor") if needed else "roles/bigquery.dataViewer"
    project = (
        place.billing
        if needed and needed[0] in {"bigquery.jobs.create", "bigquery.readsessions.create"}
        else place.project
    )
    return WarehouseError(
        f"permission denied: {said}{about}",
        where=where,
        hint=f"Somebody who may grants it: gcloud projects add-iam-policy-binding {project} --member=user:YOU --role={role}",
    )


def _job_of(error: Any) -> str:
    job = getattr(error, "query_job", None) or getattr(error, "job", None)
    found = re.search(r"Job ID: ([\w-]+)", str(error))
    return str(getattr(job, "job_id", "") or (found[1] if found else "") or "")


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "message", "") or error).strip()
    text = re.sub(r"^(?:\d{3} )?(?:GET|POST|PUT|PATCH|DELETE) \S+: ", "", text)
    text = re.sub(r"; reason: \w+.*", "", text, flags=re.DOTALL)
    return text.split("\n", 1)[0].rstrip(". ")[:500]
