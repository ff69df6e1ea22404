"""What the sender has done so far: `mlflow.json` in the run's folder, replaced whole each time."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from sp_ray_ml.storage import write_json

__all__ = ["JOURNAL", "LOCK", "LOG", "STATE", "SendState"]

JOURNAL = "journal.jsonl"
STATE = "mlflow.json"
LOG = "tracking.log"
LOCK = ".tracking.lock"


@dataclass
class SendState:
    """How far the journal has been sent, and how the sending goes.

    Attributes:
        session: Of the opening of the run that the sender works for.
        tracking_uri: Without passwords.
        offset: Bytes of the journal that MLflow has.
        deferred: Records before that, by their first byte, that could not be sent while others could: files, where
            the artifact store is away.
        state: `starting` (MLflow is being imported and reached), `connected`, `waiting` (for a server that does
            not answer or refuses), `closed` (all is sent).
        error: Why it waits.
        failed_at: When an attempt failed last, in seconds since 1970; None while all is well.
        notes: What a user should know: records that MLflow refused, a run that was deleted there.
        children: Ids in MLflow of the nested runs, by key; empty for one that was deleted there.
        open_children: Keys of those that have not ended.
    """

    session: str = ""
    tracking_uri: str = ""
    experiment: str = ""
    experiment_id: str | None = None
    run_id: str | None = None
    offset: int = 0
    deferred: list[int] = field(default_factory=list)
    state: str = "starting"
    error: str | None = None
    failed_at: float | None = None
    notes: list[str] = field(default_factory=list)
    children: dict[str, str] = field(default_factory=dict)
    open_children: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, session: str | None = None) -> SendState:
        """The folder's state; a fresh one if there is none or it is damaged, then all is sent again.

        With `session`, what an earlier sender met no longer counts: this one is `starting`.
        """
        try:
            state = cls.of((folder / STATE).read_bytes())
        except OSError:
            return cls()
        if session is not None and state.session != session:
            state.state, state.error, state.failed_at = "starting", None, None
        return state

    @classmethod
    def of(cls, content: bytes | None) -> SendState:
        """The state that a file says; a fresh one if there is none or it is damaged."""
        try:
            values = json.loads(content or b"{}")
            known = {item.name for item in fields(cls)}
            return cls(**{key: value for key, value in values.items() if key in known})
        except (ValueError, AttributeError):
            return cls()

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Save it.

        Raises:
            StorageError: It could not be written; the old one stays.
        """
        write_json(Path(folder) / STATE, asdict(self))
