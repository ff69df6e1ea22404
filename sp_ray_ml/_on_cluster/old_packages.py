"""What lies beside the runs of jobs that ended long ago goes when another one is written there.

Nothing goes that a job could still need: a run that waits in a queue has no end that is kept, one of a schedule names no
job, and a package goes only when no run that is left names it. Whoever uses a package anew writes it anew.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Collection, Iterator, Mapping

from sp_ray_ml._on_cluster.store import KEPT_S, PACKAGES
from sp_ray_ml._remote import age, filesystem, join, remote_errors
from sp_ray_ml.errors import StorageError

__all__ = ["remove_old"]

_ENDED = re.compile(r"ended-(.+)-(\d{14})\d*\.json")
_RUN = re.compile(r"run-\w+\.json")


def remove_old(runs: str) -> int:
    """Remove what is there of jobs that ended more than a month ago; how many objects that were.

    Args:
        runs: Where the runs are.

    Raises:
        StorageError: It cannot be read or removed.
    """
    place = join(runs, PACKAGES)
    fs, top = filesystem(place)
    with remote_errors(place, "read"):
        found = {path.rpartition("/")[2] for path in fs.ls(top, detail=False)}
        texts = fs.cat([f"{top}/{name}" for name in found if _RUN.fullmatch(name)], on_error="return")
        said = {}
        for path, text in texts.items():
            if isinstance(text, FileNotFoundError):  # one that is gone needs nothing
                continue
            if isinstance(text, Exception):  # nobody knows what it needs
                raise text
            said[path.rpartition("/")[2]] = _run_of(text, path)
    count = 0
    for name in _old(place, found, said):
        with remote_errors(place, "remove"):
            fs.rm_file(f"{top}/{name}")
        count += 1
    return count


def _old(place: str, found: Collection[str], said: Mapping[str, tuple[str, set[str]]]) -> Iterator[str]:
    """Names of what goes: of each job its end last, as the rest goes by it."""
    ended = {
        match[1]: name
        for name in found
        if (match := _ENDED.fullmatch(name)) and _ended_long_ago(match[2], join(place, name))
    }
    needed: set[str] = set()
    for name, (job, needs) in said.items():
        if job in ended:
            yield name
        else:
            needed |= needs
    yield from (f"begun-{id}" for id in ended if f"begun-{id}" in found)
    yield from ended.values()
    for name in found:
        if name.endswith(".zip") and name not in needed and age(join(place, name)) > KEPT_S:
            yield name


def _run_of(text: bytes, place: str) -> tuple[str, set[str]]:
    """Whose a run is, and what it needs."""
    try:
        run = json.loads(text)
        return str(run["job"]), {run["working_dir"], *run["modules"]}
    except (ValueError, KeyError, TypeError):
        raise StorageError("damaged: not a run that sp_ray_ml wrote", where=place) from None


def _ended_long_ago(began: str, place: str) -> bool:
    # Most need not be asked for: what began not long ago did not end so either.
    began_at = datetime.datetime.strptime(began, "%Y%m%d%H%M%S").replace(tzinfo=datetime.UTC)
    ran = datetime.datetime.now(datetime.UTC) - began_at
    return ran.total_seconds() > KEPT_S and age(place) > KEPT_S
