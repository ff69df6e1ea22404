"""Config files: YAML with the line of every key, variables of the environment, and `--set`.

Scalars have the types of YAML 1.2. Those of PyYAML are of 1.1, where `1e-3` is text, `12:30` is 750 and `on` is true.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sp_ray_ml._names import KeyPath, dotted, near_match
from sp_ray_ml._secrets import mask
from sp_ray_ml.errors import ConfigError, Problem

__all__ = ["Document", "read_document", "typed_scalar", "write_yaml"]

_NULL = re.compile(r"^(~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_SPECIAL = re.compile(r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")
_DOLLAR = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}|\$\{[^}]*\}?")
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
_MOST_NODES = 100_000  # aliases of aliases of aliases grow without end
_MOST_DIGITS = 4_000  # Python refuses to turn more into a number
_INIT = "Draft one from your tables: sp-ray init WAREHOUSE"


@dataclass
class Document:
    """A config as it was read: plain data, and where each value came from.

    Attributes:
        data: The values.
        file: The file, where it came from one.
        lines: The line of each key.
        variables: By setting: what was written (`${NAME}`), and what the variables held.
        origins: Which settings came from `--set`.
        problems: What was found while it was read; `check` raises it with what it finds itself.
        unset: Likewise, of variables that are not set.
    """

    data: dict[str, Any]
    file: str | None = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    variables: dict[KeyPath, tuple[str, list[str]]] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[tuple[KeyPath, Problem]] = field(default_factory=list)
    unset: list[tuple[KeyPath, Problem]] = field(default_factory=list)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A `Problem` at `path`, with the line of the nearest key that the file has, and no variable's value."""
        for at, (written, values) in self.variables.items():
            if at[: len(path)] == path[: len(at)]:
                message = mask(message, written, values)
        for end in range(len(path), 0, -1):
            if origin := self.origins.get(path[:end]):
                return Problem(dotted(path), f"{message} (from {origin})")
        below = [origin for at, origin in self.origins.items() if at[: len(path)] == path]
        if path and path not in self.lines and below:
            return Problem(dotted(path), f"{message} (from {below[0]})")
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        return Problem(dotted(path), message, self.file, self.lines.get(known))

    def replace(self, path: KeyPath) -> None:
        """Forget what is known of the values at and below `path`: they are about to be replaced."""
        for known in (self.lines, self.variables, self.origins):
            for key in [key for key in known if key[: len(path)] == path]:
                del known[key]
        self.unset = [(key, problem) for key, problem in self.unset if key[: len(path)] != path]


def read_document(
    source: str | os.PathLike[str] | Mapping[str, Any] | Document,
    overrides: Sequence[str] = (),
    *,
    variables: bool = True,
) -> Document:
    """Read a config from a YAML file or a mapping.

    `${NAME}` and `${NAME:-default}` are replaced by variables of the environment, `$$` is a dollar sign. An unquoted
    one in YAML has the type of what it is replaced by, a quoted one is text.

    Args:
        source: Path of the file, a mapping that stands for one, or a document, which then is changed.
        overrides: `dotted.path=value` each, the value in YAML: they replace or add a key.
        variables: Whether a file's are replaced; not where `$` is another's, a shell's in a Kubernetes manifest say.

    Raises:
        ConfigError: No such file, not YAML, not a mapping. Doubled keys and variables that are not set are noted in
            the document, so that `check` can name them together with all else.
    """
    if isinstance(source, Mapping):
        data = json.loads(json.dumps(source)) if _is_plain(source) else source
        document = Document(data={})
        document.data = _Reader(document).plain(data, ())
    elif isinstance(source, str | os.PathLike):
        document = _read_file(Path(source), variables)
    elif isinstance(source, Document):
        document = source
    else:
        raise ConfigError(f"expected a file or a mapping, got {type(source).__name__}")
    for override in overrides:
        _apply(document, override)
    return document


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


# --- YAML -------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Composes nodes and notes which of them have a tag that somebody wrote."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        if node is not None and not isinstance(event, yaml.AliasEvent):
            node.written_tag = getattr(event, "tag", None)  # type: ignore[attr-defined]
        return node


def _compose(text: str) -> list[yaml.Node | None]:
    loader = _Loader(text)
    try:
        nodes = []
        while loader.check_node():
            nodes.append(loader.get_node())
        return nodes
    finally:
        loader.dispose()


class _Reader:
    """Turns YAML nodes into plain data and notes in the document what is wrong with them."""

    def __init__(self, document: Document, variables: bool = True) -> None:
        self.document = document
        self.variables = variables
        self._open: set[int] = set()
        self._count = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count += 1
        if self._count > _MOST_NODES:
            if self._count == _MOST_NODES + 1:
                self._problem(path, node, f"more than {_MOST_NODES:,} values, aliases counted each time")
            return None
        if id(node) in self._open:
            self._problem(path, node, "an alias that contains itself")
            return None
        tag = getattr(node, "written_tag", None)
        if tag is not None and tag not in _TAGS and tag != "!":
            self._problem(path, node, f"the tag {tag.replace('tag:yaml.org,2002:', '!!')} is not allowed")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                for i, item in enumerate(node.value):
                    self.document.lines[(*path, i)] = item.start_mark.line + 1
                return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
            text = self._substitute(str(node.value), path, node)
            is_text = getattr(node, "style", None) is not None or tag in {"tag:yaml.org,2002:str", "!"}
            return text if is_text else typed_scalar(text)
        finally:
            self._open.discard(id(node))

    def plain(self, value: Any, path: KeyPath) -> Any:
        """Data that came from Python: keys become text, variables are replaced."""
        if isinstance(value, Mapping):
            return {str(key): self.plain(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list):
            return [self.plain(item, (*path, i)) for i, item in enumerate(value)]
        return self._substitute(value, path, None) if isinstance(value, str) else value

    def _problem(self, path: KeyPath, node: yaml.Node | None, message: str) -> None:
        self.document.problems.append((path, self._at(path, node, message)))

    def _at(self, path: KeyPath, node: yaml.Node | None, message: str) -> Problem:
        return Problem(dotted(path), message, self.document.file, node.start_mark.line + 1 if node else None)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value == "<<" and key_node.style is None:
                merged.update(self._merged(value_node, path))
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(path, key_node, "a key must be a plain word")
                continue
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key == "<<" and key_node.style is None:
                continue
            if key in result:
                self._problem((*path, key), key_node, f"written twice (first in line {first[key]}): keep one")
                continue
            first[key] = line
            if key in merged:
                self.document.replace((*path, key))
            self.document.lines[(*path, key)] = line
            result[key] = self.value(value_node, (*path, key))
        return {**merged, **result}

    def _merged(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for parent in reversed(node.value if isinstance(node, yaml.SequenceNode) else [node]):
            inherited = self.value(parent, path)
            if isinstance(inherited, dict):
                found.update(inherited)
            elif id(parent) not in self._open:
                self._problem(path, parent, "<< takes a mapping, or a list of them")
        return found

    def _substitute(self, text: str, path: KeyPath, node: yaml.Node | None) -> str:
        if not self.variables:
            return text
        values: list[str] = []

        def replace(match: re.Match[str]) -> str:
            name, default = match.group(1), match.group(3)
            if match.group(0) == "$$":
                return "$"
            if name is None:
                self._problem(
                    path, node, f"{match.group(0)} is no variable: write ${{NAME}} or ${{NAME:-default}}"
                )
                return match.group(0)
            value = os.environ.get(name) or default
            if value is None:
                state = "empty" if name in os.environ else "not set"
                message = f"the environment variable {name} is {state}: export {name}=…, or write ${{{name}:-default}}"
                self.document.unset.append((path, self._at(path, node, message)))
                return match.group(0)
            values.append(value)
            return value

        replaced = _DOLLAR.sub(replace, text)
        if values:
            self.document.variables[path] = (text, values)
        return replaced


def typed_scalar(text: str) -> Any:
    """The value of an unquoted scalar under YAML 1.2's core schema (and `1_000`)."""
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if len(text) > _MOST_DIGITS:
        return text
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        return float(text.replace("_", ""))
    if _SPECIAL.match(text):
        return float(text.replace(".", "", 1))
    return text


def _read_file(path: Path, variables: bool) -> Document:
    file = str(path)
    document = Document(data={}, file=file)
    text = _read_text(path)
    try:
        nodes = _compose(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        note = " (a tab: YAML wants spaces)" if "\\t" in str(error.problem) else ""
        # What ends too early is marked behind the last line.
        if line and "${" in "".join(text.splitlines()[line - 1 : line]):
            note = ' (inside { } and [ ] a variable is to be quoted: "${NAME}")'
        message = f"not YAML: {error.problem or error.context}{note}"
        raise ConfigError("not YAML", problems=(Problem("", message, file, line),)) from None
    except yaml.YAMLError:
        raise ConfigError("has control characters: not a text file", where=file) from None
    except RecursionError:
        raise ConfigError("is nested too deeply", where=file) from None
    if not nodes or nodes[0] is None or (isinstance(nodes[0], yaml.ScalarNode) and not nodes[0].value):
        raise ConfigError("the file is empty", where=file, hint=_INIT)
    if len(nodes) > 1:
        line = nodes[1].start_mark.line + 1 if nodes[1] else None
        second = Problem("", "a second document begins here: a config is one", file, line)
        raise ConfigError("two documents", problems=(second,))
    if not isinstance(nodes[0], yaml.MappingNode):
        what = "a list" if isinstance(nodes[0], yaml.SequenceNode) else "plain text"
        raise ConfigError(f"the file is {what}: a config is a mapping (key: value)", where=file)
    document.data = _Reader(document, variables).value(nodes[0], ()) or {}
    return document


def _read_text(path: Path) -> str:
    file = str(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"no such file{near_match(path.name, siblings)}", where=file, hint=_INIT) from None
    except UnicodeDecodeError:
        raise ConfigError("not a text file in UTF-8", where=file) from None
    except IsADirectoryError:
        hint = f"Draft a config from its tables: sp-ray init {file}"
        raise ConfigError("is a folder, a config is a file", where=file, hint=hint) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", where=file) from None


# --- --set ------------------------------------------------------------------------------------------------------


def _apply(document: Document, override: str) -> None:
    name, equals, text = override.partition("=")
    origin = f"--set {name}"
    if not equals or not name or not all(name.split(".")):
        raise ConfigError(
            f"--set {override}: expected dotted.path=value", hint="For example: --set train.epochs=5"
        )
    path: KeyPath = tuple(int(part) if part.isdigit() else part for part in name.split("."))
    try:
        nodes = _compose(text)
    except (yaml.YAMLError, RecursionError):
        hint = f"For example: --set '{name}=\"…\"'"
        raise ConfigError(f"{origin}: the value is not YAML; quote it", hint=hint) from None
    if len(nodes) > 1:
        raise ConfigError(f"{origin}: the value is two documents; quote it")
    holder, last = _holder(document.data, path, origin)
    document.replace(path)
    scratch = Document(data={})
    holder[last] = _Reader(scratch).value(nodes[0], path) if nodes and nodes[0] is not None else None
    document.origins[path] = origin
    document.variables.update(scratch.variables)
    for found, known in ((scratch.problems, document.problems), (scratch.unset, document.unset)):
        known += [(at, document.problem(at, problem.message)) for at, problem in found]


def _holder(data: dict[str, Any], path: KeyPath, origin: str) -> tuple[Any, str | int]:
    """The mapping or list that holds the value at `path`, and the key in it; missing mappings are made."""
    here: Any = data
    for i, part in enumerate(path):
        key: str | int = str(part)
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                count = f"{len(here)} entries, numbered from 0" if here else "no entries"
                raise ConfigError(f"{origin}: the list {dotted(path[:i])} has {count}", hint=_whole(path[:i]))
            key = part
        if i + 1 == len(path):
            return here, key
        following = here.get(key) if isinstance(here, dict) else here[key]
        if following is None:
            following = {}
        elif isinstance(following, str):  # `loss: bpr` is short for `loss: {kind: bpr}`
            following = {"kind": following}
        if not isinstance(following, dict | list):
            raise ConfigError(f"{origin}: {dotted(path[: i + 1])} is {following!r}, which has no parts")
        here[key] = following
        here = following
    raise AssertionError(path)


def _whole(path: KeyPath) -> str:
    return f"Replace the whole list: --set '{dotted(path)}=[…]'"


# --- writing ----------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Quotes what PyYAML takes for text and `typed_scalar` does not."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    quoted = '"' if typed_scalar(text) != text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=quoted)


_Dumper.add_representer(str, _represent_text)


def write_yaml(data: Any) -> str:
    """Plain data as YAML that `read_document` reads as the same data."""
    text: str = yaml.dump(_escaped(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    if isinstance(value, str) and ("${" in value or "$$" in value):
        return value.replace("$", "$$")
    return value
