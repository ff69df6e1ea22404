"""Files that grow by lines, kept at a URL, where nothing can be appended: in parts, each written by one claim alone.

`URL/00000003-0001.jsonl` is the first part of claim 3. All parts in the order of their names are the file. The last one
is written again as it grows, up to a size; whoever comes later begins a part of his own, and shortens nobody's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sp_ray_ml._remote import filesystem, join, remote_errors
from sp_ray_ml.storage import storage_errors

__all__ = ["Appended", "read_appended"]

_PART = 1 << 20


class Appended:
    """A file of this machine that is appended to, and its parts at a URL.

    Args:
        file: The file; it need not be there yet.
        url: Of the parts.
        claim: Number of the claim under which parts are written.
        start: Bytes of the file that are parts of earlier claims.
    """

    def __init__(self, file: Path, url: str, claim: int, start: int) -> None:
        self._file, self._url, self._claim = file, url, claim
        self._part, self._begin, self._sent = 1, start, start

    def size(self) -> int:
        """How long the file is now."""
        return self._file.stat().st_size if self._file.exists() else 0

    def send(self, check: Callable[[], None], upto: int) -> None:
        """Send what there is, to the end of the last whole line before byte `upto`.

        Args:
            check: Called before anything is sent; raises to leave it.
            upto: A size that the file had.

        Raises:
            StorageError: It could not be sent; what is there is as it was.
        """
        while upto > self._sent:
            with storage_errors(self._file, "read"), self._file.open("rb") as opened:
                opened.seek(self._begin)
                content = opened.read(min(_PART, upto - self._begin))
            whole = content[: content.rfind(b"\n") + 1] or (content if len(content) == _PART else b"")
            if self._begin + len(whole) <= self._sent:
                return
            place = join(self._url, f"{self._claim:08d}-{self._part:04d}{self._file.suffix}")
            check()
            fs, path = filesystem(place)
            with remote_errors(place):
                fs.pipe_file(path, whole)
            self._sent = self._begin + len(whole)
            if len(content) == _PART:
                self._part, self._begin = self._part + 1, self._sent


def read_appended(url: str) -> bytes:
    """The whole file; empty where there is none.

    Raises:
        StorageError: It cannot be read.
    """
    fs, top = filesystem(url)
    with remote_errors(url, "read"):
        try:
            parts = sorted(fs.ls(top, detail=False))
        except FileNotFoundError:
            return b""
        return b"".join(fs.cat_file(part) for part in parts if not part.endswith("/"))
