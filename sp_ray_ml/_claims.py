"""Who works on what lies at a URL, where there are no locks: numbered claims, each made by the store's conditional write.

`URL/lock/00000003.json` is a claim; the highest number holds. Its holder rewrites it every few seconds. One that was
not rewritten for its lease, by the store's own clock, may be taken over: whoever makes the next number holds then, and
the store lets one of them make it. Before anything that counts is written, `Claim.check` finds that no higher claim is
there.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_ray_ml._remote import age, create, filesystem, join, remote_errors
from sp_ray_ml.errors import LockedError, StorageError

__all__ = ["Claim", "Holder", "holder_of", "is_held"]

LOCK = "lock"
_MARK = ".claim"
_BEATS_A_LEASE = 5
_LOOK_S = 1.0
_KEPT = 3


def _lease() -> float:
    """Seconds after which a holder that was not heard of is taken for dead."""
    return float(os.environ.get("SP_RAY_RUN_LEASE", "45"))


@dataclass(frozen=True)
class Holder:
    """A claim as it stands in the store.

    Attributes:
        number: Its number; the highest one holds.
        who: Process and machine, for messages.
        released: Whether its holder has ended by itself.
        lease: Seconds without a beat after which its holder is taken for dead.
        beat: How often it was renewed.
        key: Tells it from all others.
        boot: Of the machine, since it was started.
        folder: The folder there that is locked for as long as the holder lives.
    """

    number: int
    who: str
    released: bool
    lease: float
    beat: int
    key: str
    boot: str
    folder: str

    def died_here(self) -> bool:
        """Whether it was a process of this machine that is no more: the kernel has freed the lock on its folder."""
        lock, mark = Path(self.folder, ".lock"), Path(self.folder, _MARK)
        try:
            if self.boot != _boot() or not self.boot or mark.read_text(encoding="utf-8") != self.key:
                return False
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def holder_of(url: str) -> Holder | None:
    """The claim that holds, or was released last; None where there was none yet.

    Raises:
        StorageError: The store cannot be read, or what is there is no claim.
    """
    number = _highest(url)
    return None if number == 0 else _read(url, number)


def is_held(url: str) -> bool:
    """Whether somebody works on what is at a URL: there is a claim, and its holder was heard of within its lease."""
    holder = holder_of(url)
    if holder is None or holder.released:
        return False
    return age(_place(url, holder.number)) <= holder.lease and not holder.died_here()


class Claim:
    """An exclusive hold on what lies at a URL; a context manager.

    Args:
        url: What is held.
        what: What it is, for messages.
        folder: A folder of this machine whose `.lock` this process holds meanwhile.
        note: Told that, and how long, it is waited for a holder that may be dead.

    Raises:
        LockedError: Another process holds it, and is alive; or, of two who took over, the other was first.
        StorageError: The store cannot be read or written.
    """

    def __init__(self, url: str, what: str, folder: Path, note: Callable[[str], None]) -> None:
        self.url, self.what = url, what
        self.number = 0
        self._folder, self._note = folder, note
        self._lease_s = _lease()
        self._key = uuid.uuid4().hex
        self._beats = 0
        self._beaten = 0.0
        self._lost: LockedError | None = None
        self._turn = threading.Lock()
        self._stop = threading.Event()

    def __enter__(self) -> Claim:
        last = holder_of(self.url)
        if last is not None and not last.released:
            self._outwait(last)
        (self._folder / _MARK).write_text(self._key, encoding="utf-8")
        self.number = 1 if last is None else last.number + 1
        self._beaten = time.monotonic()
        if not create(_place(self.url, self.number), self._content()):
            raise self._locked(_read(self.url, _highest(self.url)))
        self._thread = threading.Thread(target=self._beat_on, name="sp_ray_ml-claim", daemon=True)
        self._thread.start()
        try:
            self._clear_old()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._lost is None:
            with self._turn:
                self._write(self._content(released=True))

    def check(self) -> None:
        """Find that the claim still holds. Called before each write that others go by.

        Raises:
            LockedError: It was taken over; the message says who has it.
            StorageError: The store does not answer, so that nobody knows.
        """
        self.raise_lost()
        if time.monotonic() - self._beaten > self._lease_s / 2:
            self._beat()  # nobody takes it over for a while now
        self._look()

    def raise_lost(self) -> None:
        """Stop whoever works on without the claim; as `check`, by what is known.

        Raises:
            LockedError: It was taken over.
        """
        if self._lost is not None:
            raise self._lost

    # --- taking over ------------------------------------------------------------------------------------------------

    def _outwait(self, last: Holder) -> None:
        """Return when the holder is dead, or has let go."""
        told = False
        while not last.died_here():
            since = age(_place(self.url, last.number))
            if since > last.lease:
                return
            if not told:
                left = max(last.lease - since, 1)
                self._note(
                    f"{self.what} is held by {last.who}: waiting for up to {left:.0f} s for a sign of life"
                )
                told = True
            time.sleep(min(_LOOK_S, last.lease / _BEATS_A_LEASE))
            highest = _highest(self.url)
            now = _read(self.url, highest)
            if highest == last.number and now.released:
                return
            if highest != last.number or now.beat != last.beat:
                raise self._locked(now)

    def _locked(self, holder: Holder) -> LockedError:
        return LockedError(
            f"{self.what} is in use by another process ({holder.who})",
            where=self.url,
            hint="Wait for it to end, or choose another name",
        )

    # --- holding ----------------------------------------------------------------------------------------------------

    def _content(self, *, released: bool = False) -> bytes:
        claim = {
            "number": self.number,
            "who": f"process {os.getpid()} on {socket.gethostname()}",
            "released": released,
            "lease": self._lease_s,
            "beat": self._beats,
            "key": self._key,
            "boot": _boot(),
            "folder": str(self._folder),
        }
        return json.dumps(claim, indent=1).encode()

    def _write(self, content: bytes) -> None:
        fs, path = filesystem(_place(self.url, self.number))
        with remote_errors(self.url):
            fs.pipe_file(path, content)

    def _beat_on(self) -> None:
        while not self._stop.wait(self._lease_s / _BEATS_A_LEASE):
            try:
                self._beat()
                self._look()
            except LockedError:
                return
            except StorageError:
                continue  # the store is away: the next beat, or the check before a write, finds how it stands

    def _beat(self) -> None:
        with self._turn:
            self._beats += 1
            began = time.monotonic()
            self._write(self._content())
            self._beaten = began

    def _look(self) -> None:
        highest = _highest(self.url)
        if highest != self.number:
            who = _read(self.url, highest).who if highest else "whoever removed it"
            self._lost = LockedError(
                f"{self.what} was taken over by {who}, since this process was not heard of for {self._lease_s:.0f} s",
                where=self.url,
                hint="Nothing that it has was changed. See how it goes on: sp-ray get runs --runs "
                + self.url.rpartition("/")[0],
            )
            raise self._lost

    def _clear_old(self) -> None:
        """Remove claims of long ago; a few stay to be looked at."""
        fs, _ = filesystem(self.url)
        with remote_errors(self.url, "remove"):
            for number, path in _claims(self.url):
                if number <= self.number - _KEPT:
                    fs.rm_file(path)


def _place(url: str, number: int) -> str:
    return join(url, LOCK, f"{number:08d}.json")


def _claims(url: str) -> list[tuple[int, str]]:
    fs, top = filesystem(url)
    with remote_errors(url, "read"):
        try:
            found = fs.ls(f"{top}/{LOCK}", detail=False)
        except FileNotFoundError:
            return []
    names = [(path.rpartition("/")[2].removesuffix(".json"), path) for path in found]
    return [(int(name), path) for name, path in names if name.isdigit()]


def _highest(url: str) -> int:
    return max((number for number, _ in _claims(url)), default=0)


def _read(url: str, number: int) -> Holder:
    place = _place(url, number)
    fs, path = filesystem(place)
    with remote_errors(place, "read"):
        text = fs.cat_file(path)
    try:
        known: dict[str, Any] = json.loads(text)
        return Holder(
            number,
            str(known["who"]),
            bool(known["released"]),
            float(known["lease"]),
            int(known["beat"]),
            str(known["key"]),
            str(known["boot"]),
            str(known["folder"]),
        )
    except (ValueError, KeyError, TypeError):
        raise StorageError(
            "damaged: not a claim that sp_ray_ml wrote",
            where=place,
            hint="Remove it when nobody works there",
        ) from None


def _boot() -> str:
    """What tells this machine, since it was started, from others; empty where that is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
