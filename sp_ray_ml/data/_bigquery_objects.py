"""Parts of a write as objects in the staging bucket, for as long as a load job reads them.

They lie in a folder of the write, named by the commit, under the digest of what they hold: what a killed write left
behind is taken up by the next try, or removed by it.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase
from typing import TYPE_CHECKING, TypeVar

from sp_ray_ml._remote import join
from sp_ray_ml.data._bigquery_place import Waits
from sp_ray_ml.data._store import RemoteStore
from sp_ray_ml.errors import StorageError, WarehouseError
from sp_ray_ml.logger import LOGGER

if TYPE_CHECKING:
    from sp_ray_ml.data._bigquery_target import Target

__all__ = ["AT_ONCE", "Objects"]

T = TypeVar("T")

AT_ONCE = 4
"""Objects that are put there, or removed, at the same time."""
_COPY_BYTES = 16 << 20


class Objects:
    """The parts of one write as objects in the staging bucket, while the block lasts.

    Args:
        target: What is written.
        commit: The write's id: its next try finds the same folder. None for a folder of its own.
    """

    def __init__(self, target: Target, commit: str | None) -> None:
        self._place, self._table = target.place, target.table
        mark = "\0".join([target.path, commit]) if commit is not None else uuid.uuid4().hex
        self._url = join(
            str(target.place.staging), f"sp_ray_ml_{hashlib.sha256(mark.encode()).hexdigest()[:40]}"
        )
        self._store = RemoteStore(self._url)
        self._lock = threading.Lock()
        self._put: dict[int, str] = {}
        self._left: dict[str, str] = {}

    def __enter__(self) -> Objects:
        self._left = self._patiently(lambda: self._store.find(""))
        return self

    def __exit__(self, *_: object) -> None:
        names = {*self._left, *self._put.values()}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            kept = [name for name in pool.map(self._remove, names) if name]
        if kept:
            LOGGER.warning(
                "%s: %d staged objects could not be removed; see them: gcloud storage ls %s",
                self._place.url, len(kept), self._url,
            )  # fmt: skip

    def _remove(self, name: str) -> str:
        """Empty, or the name of what stays."""
        try:
            with self._store.errors(name, "remove"):
                self._store.fs.rm_file(self._store.full(name))
        except StorageError as error:
            return "" if isinstance(error.__cause__, FileNotFoundError) else name
        return ""

    def uris(self) -> list[str]:
        """The objects, in the order of the parts."""
        return [join(self._url, self._put[number]) for number in sorted(self._put)]

    def put(self, number: int, part: BufferedIOBase) -> None:
        """Put a part there, if it is not there from an earlier try."""
        with part:
            part.seek(0)
            digest = hashlib.file_digest(part, "sha256").hexdigest()[:40]
            size, name = part.tell(), f"part-{number:05}-{digest}.parquet"
            with self._lock:
                self._put[number] = name
            if self._left.get(name, "").partition(" ")[0] == str(size):
                return

            def send() -> None:
                part.seek(0)
                with self._store.sink(name) as sink:
                    shutil.copyfileobj(part, sink, _COPY_BYTES)

            self._patiently(send)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do it, again after what may pass: the store asks a few times itself, for half a minute."""
        waits = Waits(self._place, table=self._table)
        while True:
            try:
                return work()
            except StorageError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    bucket = self._url.split("/", 3)[2]
                    raise WarehouseError(
                        f"there is no bucket {bucket!r} for staging",
                        where=str(self._place.staging),
                        hint=f"Make it where the dataset is: gcloud storage buckets create gs://{bucket} --location={self._place.location or 'US'}",
                    ) from error
                wait = waits.next() if _passing(error) else None
                if wait is None:
                    raise
                LOGGER.warning("%s; trying again in %.1f s", error, wait)
            time.sleep(wait)


def _passing(error: StorageError) -> bool:
    """Whether the store may do it later."""
    from gcsfs.retry import is_retriable
    from google.auth.exceptions import GoogleAuthError

    cause = error.__cause__
    if not isinstance(cause, Exception) or isinstance(cause, GoogleAuthError):
        return False
    if getattr(cause, "code", None) == 401:  # which gcsfs asks again after, for its own tokens
        return False
    return isinstance(cause, TimeoutError | ConnectionError) or bool(is_retriable(cause))
