"""The note that each table written here carries at the end of its description: set by the statement that writes it.

It says which write made the table (so that a repeated one is known) and what its columns were before BigQuery's
fewer types. Tables without a note are read as they are; a user's own description stays in front of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import uuid
from dataclasses import dataclass, field

import pyarrow as pa

__all__ = ["Note", "commit_mark", "read_note"]

_BEGIN = "[sp_ray_ml {"
_LONGEST = 12_000
"""Characters of a note; a description has at most 16,384."""


def commit_mark(commit: str) -> str:
    """A commit's id as it is kept: of one length, and nothing of it told."""
    return hashlib.sha256(commit.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Note:
    """One table's note.

    Attributes:
        write: Of the write that made the table; another one each time.
        commit: `commit_mark` of that write's commit, empty for none.
        types: Columns that were of another type than they are stored as.
        own: The description in front of the note.
    """

    commit: str = ""
    types: pa.Schema = field(default_factory=lambda: pa.schema([]))
    own: str = ""
    write: str = field(default_factory=lambda: uuid.uuid4().hex)

    def text(self) -> str:
        """The description that carries it."""
        content = {"write": self.write, "commit": self.commit}
        if len(self.types):
            kept = {**content, "types": base64.b64encode(self.types.serialize().to_pybytes()).decode()}
            if (
                len(json.dumps(kept)) <= _LONGEST
            ):  # hundreds of such columns come back in BigQuery's own types
                content = kept
        own = self.own[: 16_000 - _LONGEST].rstrip()
        note = _BEGIN + json.dumps(content)[1:] + "]"
        return f"{own}\n\n{note}" if own else note


def read_note(description: str | None) -> Note | None:
    """The note in a description, None if there is none that can be read."""
    own, begin, rest = (description or "").rpartition(_BEGIN)
    if not begin or not rest.rstrip().endswith("}]"):
        return None
    try:
        content = json.loads("{" + rest.rstrip()[:-1])
        packed = base64.b64decode(content.get("types", ""))
        types = pa.ipc.read_schema(pa.py_buffer(packed)) if packed else pa.schema([])
        return Note(str(content["commit"]), types, own.rstrip(), str(content["write"]))
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error, pa.ArrowException, OSError):
        return None  # somebody's own text
