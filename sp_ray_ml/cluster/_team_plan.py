"""What applying a team file would change, field by field, and what speaks against it. Pure: from a state to a plan."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sp_ray_ml._names import printable
from sp_ray_ml.cluster._team_defaults import DEFAULTS_KEY
from sp_ray_ml.cluster._team_manifest import TEAM_FILE
from sp_ray_ml.cluster._team_state import Key, TeamState, is_adopted, without_servers_own
from sp_ray_ml.errors import KubernetesError

__all__ = ["Change", "FieldChange", "TeamPlan", "TeamProblem", "changes_of"]

Body = dict[str, Any]
Action = Literal["create", "change", "remove", "release"]
Allowance = Literal["adopt", "below_use", "with_clusters", "force"]

_SIGNS = {"create": "+", "change": "~", "remove": "-", "release": "-"}
_SHOWN = 60
_BEFORE = 20


def _shown(old: str | None, new: str | None) -> tuple[str, str]:
    """Both values of a field; of long ones the part in which they differ."""
    pairs = zip(old or "", new or "", strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    first, second = (_part(value, max(0, same - _BEFORE)) for value in (old, new))
    return first, second


def _part(value: str | None, start: int) -> str:
    if value is None:
        return "nothing"
    if len(value) <= _SHOWN:
        return value
    part = value[start : start + _SHOWN]
    return f"{'…' if start else ''}{part}{'…' if start + _SHOWN < len(value) else ''}"


@dataclass(frozen=True)
class FieldChange:
    """A field that changes.

    Attributes:
        path: Its path, `spec.hard.requests.cpu`; empty for a part of a list.
        old: What is there, as text and whole; None where there is nothing.
        new: What is to be there, likewise.
    """

    path: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        if not self.path:  # never cut: two members or rules may differ in their last letter
            return f"- {self.old}" if self.new is None else f"+ {self.new}"
        old, new = _shown(self.old, self.new)
        return f"{self.path}: {old} → {new}"

    def as_new(self) -> str:
        """As it is shown of an object that is new."""
        return f"{self.path}: {_shown(None, self.new)[1]}" if self.path else str(self)


@dataclass(frozen=True)
class Change:
    """What becomes of one object.

    Attributes:
        action: `create`, `change`, `remove`, or `release` for one that was there before its team, and stays.
        kind: The object's kind.
        namespace: Its namespace; None for one that is in none.
        name: Its name.
        fields: What changes in it.
    """

    action: Action
    kind: str
    namespace: str | None
    name: str
    fields: tuple[FieldChange, ...] = ()

    def lines(self) -> Iterator[str]:
        """The object, then its fields."""
        place = f"{self.namespace}/{self.name}" if self.namespace else self.name
        more = " (stays, without the team)" if self.action == "release" else ""
        yield f"{_SIGNS[self.action]} {self.kind} {place}{more}"
        new = self.action == "create"
        yield from (f"    {each.as_new() if new else each}" for each in self.fields)


@dataclass(frozen=True)
class TeamProblem:
    """What speaks against it.

    Attributes:
        sentence: What is wrong, without a full stop.
        remedy: What to do about it.
        allowance: What lets it pass all the same; None for what is never let pass.
    """

    sentence: str
    remedy: str
    allowance: Allowance | None = None


@dataclass(frozen=True)
class TeamPlan:
    """What applying a team, or deleting it, would do.

    Attributes:
        team: The team's name.
        changes: What changes, in the order in which it is done.
        problems: What speaks against it.
        notes: What one should know of it.
        unchanged: How many objects are as they are to be.
    """

    team: str
    changes: tuple[Change, ...]
    problems: tuple[TeamProblem, ...] = ()
    notes: tuple[str, ...] = ()
    unchanged: int = 0

    def lines(self) -> list[str]:
        """The plan for people: what changes, then what speaks against it. Notes are told apart."""
        found = [f"team {self.team}: {self._summary()}"]
        found += [f"  {line}" for change in self.changes for line in change.lines()]
        for problem in self.problems:
            found += [f"refused: {problem.sentence}", f"  {problem.remedy}"]
        # Names of members are what an owner wrote: none moves the cursor over what is shown.
        return [printable(line) for line in found]

    def _summary(self) -> str:
        if self.problems and not self.changes:
            return "refused"
        if not self.changes:
            return f"nothing to change, {self.unchanged} objects are as they are to be"
        counts = [
            (sum(change.action in actions for change in self.changes), word)
            for actions, word in ((("create",), "create"), (("change",), "change"), (("remove", "release"), "remove"))
        ]  # fmt: skip
        return ", ".join(f"{count} to {word}" for count, word in counts if count) + (
            f", {self.unchanged} as they are" if self.unchanged else ""
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def changes_of(state: TeamState) -> tuple[list[Change], int]:
    """What changes from a state to what is wanted, and how many objects do not."""
    found, same = [], 0
    for key, body in state.wanted.items():
        live, merged = state.live.get(key), state.merged.get(key)
        if live is None:
            found.append(_change("create", key, tuple(_created(body))))
        elif isinstance(merged, dict):
            fields = tuple(_differences(live, merged))
            if fields:
                found.append(_change("change", key, fields))
            else:
                same += 1
        elif isinstance(merged, KubernetesError):
            found.append(_change("change", key, ()))  # what is refused is told among the problems
    for key in state.dropped():
        if not state.goes_with_namespace(key):
            found.append(_change("release" if is_adopted(state.live[key]) else "remove", key, ()))
    return found, same


def _change(action: Action, key: Key, fields: tuple[FieldChange, ...]) -> Change:
    kind, namespace, name = key
    return Change(action, kind.name, namespace, name, fields)


def _created(body: Body) -> Iterator[FieldChange]:
    """What is worth seeing of a new object: members, amounts, the identity, what its queue takes from others."""
    seen = ("subjects", "spec.hard", "metadata.annotations", "spec.clusterQueue", "spec.preemption")
    for path, value in _flat(without_servers_own(body)):
        if path.startswith(seen):
            yield FieldChange("" if path.startswith("subjects") else path, None, _text(value))


def _differences(live: Body, merged: Body) -> Iterator[FieldChange]:
    before, after = dict(_flat(without_servers_own(live))), dict(_flat(without_servers_own(merged)))
    for path in dict.fromkeys([*before, *after]):
        if before.get(path) == after.get(path):
            continue
        old, new = (_text(values[path]) if path in values else None for values in (before, after))
        if path.startswith(("subjects", "rules")):
            yield FieldChange("", old, new)
        else:
            yield FieldChange(path, old, new)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of an object by their paths; members and rules are leaves themselves, and JSON in a ConfigMap is looked into."""
    if path in ("subjects", "rules"):
        for each in value or ():
            words = _member(each) if path == "subjects" else _rule(each)
            yield f"{path} {words}", words
    elif path == f"data.{DEFAULTS_KEY}":
        yield from _flat(_parsed(value), "defaults")
    elif path == f"data.{TEAM_FILE}":
        yield "the file itself", _checksum(value)
    elif isinstance(value, Mapping) and value:
        for key in value:
            yield from _flat(value[key], f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        for index, each in enumerate(value):
            yield from _flat(each, f"{path}.{each.get('name', index)}")
    else:
        yield path, value


def _checksum(text: str) -> str:
    """What stands for a text that is seen elsewhere, field by field."""
    return f"checksum {zlib.crc32(text.encode()):08x}"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _member(subject: Body) -> str:
    if subject["kind"] == "ServiceAccount":
        return f"ServiceAccount {subject.get('namespace')}/{subject['name']}"
    return f"{subject['kind']} {subject['name']}"


def _rule(rule: Body) -> str:
    """All that a rule says: what is left out here would be no change."""
    groups, names = rule.get("apiGroups") or ("",), rule.get("resources") or ("nothing",)
    what = ", ".join(f"{name}.{group}" if group else name for group in groups for name in names)
    called = f" called {', '.join(rule['resourceNames'])}" if rule.get("resourceNames") else ""
    urls = f", {', '.join(rule['nonResourceURLs'])}" if rule.get("nonResourceURLs") else ""
    return f"{', '.join(rule.get('verbs') or ())}: {what}{called}{urls}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
