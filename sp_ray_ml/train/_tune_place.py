"""Where a trial works: in the tuning's folder, or on a node without that disk, from which all goes to a URL.

URL/trials/0007/result.json      how it ended: written when all that it speaks of is there
URL/trials/0007/evolution.json   how far a population's trial is
URL/trials/0007/model/           what is kept of a finished trial
URL/trials/0007/part-1-…/        a model that others of a population go on from
URL/trials/0007/trial.json       the values of a trial that has left something to go on from
URL/trials/0007/so-far/          its checkpoints: what it goes on from where it is cut off
URL/trials/0007/work/            those of its own workers, and what it shares with them
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_ray_ml._pinned import pin
from sp_ray_ml._places import forget, keep_at
from sp_ray_ml._remote import filesystem, join, read_bytes, remote_errors
from sp_ray_ml._transfer import DamagedError, cache_folder, complete_name, download_folder, upload_folder
from sp_ray_ml.errors import StorageError, TrainingError
from sp_ray_ml.logger import LOGGER
from sp_ray_ml.storage import read_json, remove, storage_errors, write_bytes, write_json
from sp_ray_ml.train._checkpoints import INDEX
from sp_ray_ml.train._tune_store import (
    EVOLUTION,
    KEPT,
    MODEL,
    RESULT,
    TRIAL,
    trial_folder,
    trial_url,
    write_result,
)
from sp_ray_ml.train.tuning import Trial

__all__ = ["Keeper", "TrialPlace", "trial_place"]

SO_FAR = "so-far"
_EVERY_S = 5.0
_TIMES_AS_LONG = 10
"""Of a training's time, sending its checkpoints takes a tenth at most."""


@dataclass(frozen=True)
class TrialPlace:
    """Where a trial works.

    Attributes:
        folder: Of this machine.
        url: Where others find what comes of it; None where they see the folder.
    """

    folder: Path
    url: str | None = None

    def shared(self, folder: Path) -> str:
        """A complete folder in here as the trials on all nodes find it.

        Raises:
            StorageError: It could not be sent.
        """
        if self.url is None:
            return str(folder)
        url = join(self.url, folder.relative_to(self.folder).as_posix().replace("/", "-"))
        upload_folder(folder, url)
        return url

    def evolution(self) -> dict[str, Any] | None:
        """What `evolve_to` was told last, in this process or another."""
        file = self.folder / EVOLUTION
        if self.url is not None and (known := read_bytes(join(self.url, EVOLUTION))) is not None:
            write_bytes(file, known)
        return read_json(file) if file.exists() else None

    def evolve_to(self, state: Mapping[str, Any]) -> None:
        """Note how far the trial is."""
        write_json(self.folder / EVOLUTION, state)
        self._put(EVOLUTION)

    def end(self, trial: Trial, history: list[dict[str, Any]], plots: Mapping[str, Any]) -> None:
        """Note how the trial ended.

        Raises:
            StorageError: It could not be sent.
        """
        write_result(self.folder, trial, history=history, plots=plots)
        if self.url is None:
            return
        if trial.status == "finished":
            for part in self.folder.iterdir():
                if part.name not in KEPT and part.name != "predictor":
                    remove(part)
            upload_folder(self.folder, join(self.url, MODEL))
        self._put(RESULT)
        fs, top = filesystem(join(self.url, SO_FAR))
        with remote_errors(join(self.url, SO_FAR), "remove"), suppress(FileNotFoundError):
            fs.rm(top, recursive=True)

    def go_on(self) -> None:
        """Have here what `keep` has sent, from another process on another node; nothing where nobody did."""
        if self.url is None or complete_name(url := join(self.url, SO_FAR)) is None:
            return
        scratch = self.folder / f".{SO_FAR}"
        try:
            download_folder(url, scratch)
        except DamagedError as damaged:
            LOGGER.warning("a trial begins anew: %s", damaged)
            return
        with storage_errors(self.folder):
            for part in scratch.iterdir():
                part.rename(self.folder / part.name)
        remove(scratch)

    def keep(self, params: Mapping[str, Any]) -> None:
        """Send the checkpoints, of which none may be written meanwhile, for the trial to be gone on with elsewhere.

        Args:
            params: The trial's values.
        """
        assert self.url is not None
        scratch = self.folder / f".{SO_FAR}"
        try:
            with storage_errors(self.folder):
                for file in sorted(self.folder.rglob(INDEX)):
                    pin(file.parent, scratch / file.parent.relative_to(self.folder), {})
            if scratch.exists():
                write_json(self.folder / TRIAL, {"params": dict(params)})
                self._put(TRIAL)
                upload_folder(scratch, join(self.url, SO_FAR))
        except StorageError as error:  # the training goes on, and the next ones are sent all the same
            LOGGER.warning("a trial's checkpoints could not be sent: %s", error)
        finally:
            remove(scratch)

    def _put(self, name: str) -> None:
        if self.url is not None:
            fs, top = filesystem(self.url)
            with remote_errors(join(self.url, name)):
                fs.pipe_file(f"{top}/{name}", (self.folder / name).read_bytes())


@contextmanager
def trial_place(folder: Path, url: str | None, number: int) -> Iterator[TrialPlace]:
    """Where this process works on a trial, for the block.

    Args:
        folder: The tuning's, as the process sees it that the trials are of.
        url: Where that is kept for nodes that do not see it; None where all do.
        number: The trial's.

    Raises:
        TrainingError: The folder is to be seen, and is not.
    """
    if url is None:
        own = trial_folder(folder, number)
        if not (own / TRIAL).exists():
            raise TrainingError(
                "the folder of the tuning is not there on this machine",
                where=str(folder),
                hint="Use a folder that all machines of the cluster share, or a run that is kept at a URL: "
                "runs: s3://…",
            )
        yield TrialPlace(own)
        return
    import ray

    # Ray tells its processes where they are without it, and by it `_places` knows that there are other nodes.
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    theirs = trial_url(url, number)
    with _own_folder() as own:
        keep_at(own, join(theirs, "work"))
        try:
            place = TrialPlace(own, theirs)
            place.go_on()
            yield place
        finally:
            forget(own)


class Keeper:
    """Has a trial's place keep the checkpoints now and then, when an epoch's are written.

    Args:
        place: The place; it has a URL.
        params: The trial's values.
    """

    def __init__(self, place: TrialPlace, params: Mapping[str, Any]) -> None:
        self._place, self._params = place, params
        self._due = time.monotonic() + _EVERY_S

    def __call__(self) -> None:
        """Keep them, where it is time to."""
        began = time.monotonic()
        if began >= self._due:
            self._place.keep(self._params)
            self._due = (ended := time.monotonic()) + max(_EVERY_S, _TIMES_AS_LONG * (ended - began))


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder of this node, which is removed also when the trial is stopped: Ray raises SystemExit in its report.

    Where the process is killed, the next one that comes here removes it: the kernel has let go of its lock.
    """
    top = cache_folder() / "trials"
    folder = top / uuid.uuid4().hex
    lock = folder.with_suffix(".lock")
    with storage_errors(top):
        top.mkdir(parents=True, exist_ok=True)
        for left in top.glob("*.lock"):
            with suppress(OSError), left.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(left.with_suffix(""))
                left.unlink()
        file = lock.open("w")
    with file:
        with storage_errors(folder):
            fcntl.flock(file, fcntl.LOCK_EX)
            folder.mkdir()
        try:
            yield folder
        finally:
            remove(folder)
            remove(lock)
