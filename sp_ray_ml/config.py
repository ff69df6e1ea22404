"""Settings and the files they come from: one declaration checks Python and YAML alike.

`Settings` is the base of every building block. A field annotated with a `Family` takes one of several classes,
chosen by `kind` in YAML and by the object's class in Python. `read_document` reads YAML with the line of every
key, `check` turns it into settings or raises one `ConfigError` with all mistakes.
"""

from __future__ import annotations

import ast
import contextvars
import datetime
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import yaml
from pydantic_core import PydanticCustomError, core_schema

from sp_ray_ml.errors import ConfigError, Problem

__all__ = [
    "Custom",
    "Document",
    "Duration",
    "Family",
    "Settings",
    "check",
    "dump",
    "fingerprint",
    "json_schema",
    "near_match",
    "read_document",
    "redact",
    "to_yaml",
]

_Path = tuple[str | int, ...]
_IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_check_only: contextvars.ContextVar[bool] = contextvars.ContextVar("check_only", default=False)


class Settings(pydantic.BaseModel):
    """Base of all settings: typed, frozen, unknown keys refused. Importing one imports no heavy library.

    Wrong values raise `ConfigError` (a `ValueError`) with every mistake in it, from Python as from YAML.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            problems = tuple(
                Problem(_dotted(loc) or type(self).__name__, message)
                for loc, message in _problems(type(self), error)
            )
            raise ConfigError(f"{type(self).__name__} cannot be made", problems=problems) from None

    # Nested models are then validated in place, and report their errors with their paths, not by calling __init__.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


SettingsT = TypeVar("SettingsT", bound=Settings)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _duration(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", value)):
        return datetime.timedelta(seconds=float(match.group(1)) * _UNITS[match.group(2)])
    if isinstance(value, datetime.timedelta):
        return value
    raise ValueError(f"expected a duration such as 90s, 15m, 2h, 30d or 1w, got {_show(value)}")


def _duration_text(value: datetime.timedelta) -> str:
    seconds = value.total_seconds()
    unit = next((u for u in ("w", "d", "h", "m") if seconds and seconds % _UNITS[u] == 0), "s")
    return f"{seconds / _UNITS[unit]:g}{unit}"


Duration = Annotated[
    datetime.timedelta,
    pydantic.BeforeValidator(_duration, json_schema_input_type=str),
    pydantic.PlainSerializer(_duration_text, return_type=str),
]
"""A duration, `90s`, `15m`, `2h`, `30d` or `1w` in YAML."""


class Custom(Settings):
    """A class or function of the user's own, by import path or as the Python object itself."""

    target: Any
    """Import path `package.module:Name`, or the callable."""
    arguments: dict[str, Any] = {}
    """Keyword arguments for it."""

    def load(self) -> Callable[..., Any]:
        """Return the callable, importing it if it was given by path.

        Raises:
            ConfigError: The path does not lead to a callable.
        """
        return _import(self.target) if isinstance(self.target, str) else self.target  # type: ignore[no-any-return]

    @property
    def path(self) -> str:
        """The import path.

        Raises:
            ConfigError: The callable has none (a lambda, a local function, a class of a notebook's cell).
        """
        if isinstance(self.target, str):
            return self.target
        module, name = getattr(self.target, "__module__", None), getattr(self.target, "__qualname__", "")
        if not module or module == "__main__" or "<" in name:
            raise ConfigError(
                f"{name or self.target!r} cannot be saved: it has no import path",
                hint="Move it to the top level of a module and name it 'package.module:Name'",
            )
        return f"{module}:{name}"


class Family:
    """A field that takes one of several `Settings` classes, named by `kind`.

    Args:
        name: What one of them is called, for messages, and the entry-point group `sp_ray_ml.<name>` in which
            third parties declare theirs.
        members: Built-in kinds and the import path of each class.
        callables: Whether any callable of the user's own will do, not only a `Settings` class.
        default: The kind of a mapping that names none.

    A plain string is short for a `kind` with its defaults: `loss: bpr`.
    """

    def __init__(
        self, name: str, members: Mapping[str, str], *, callables: bool = False, default: str | None = None
    ) -> None:
        self.name = name
        self.default = default
        self.members = dict(members)
        self.callables = callables

    def kinds(self) -> dict[str, str]:
        """Every kind and its import path: the built-in ones, then those of installed packages."""
        found = {
            point.name: point.value
            for point in importlib.metadata.entry_points(group=f"sp_ray_ml.{self.name}")
        }
        return {**found, **self.members}

    def kind_of(self, value: Settings) -> str:
        """What YAML calls this value's class."""
        if isinstance(value, Custom):
            return value.path
        path = f"{type(value).__module__}:{type(value).__qualname__}"
        return next((kind for kind, member in self.kinds().items() if member == path), path)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        # `Annotated[GNN | Custom, Family(…)]` says that a callable will do; what counts is the other one.
        base = next((option for option in typing.get_args(source) if option is not Custom), source)

        def validate(value: Any) -> Any:
            return self._validate(value, base)

        return core_schema.no_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(self._serialize)
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        options: list[dict[str, Any]] = []
        for kind, path in self.kinds().items():
            reference = handler(_import(path).__pydantic_core_schema__)
            definition = handler.resolve_ref_schema(reference)
            definition["properties"] = {"kind": {"const": kind}, **definition.get("properties", {})}
            definition["required"] = ["kind", *(k for k in definition.get("required", ()) if k != "kind")]
            options.append(reference)
        custom = {"type": "string", "pattern": _IMPORT_PATH.pattern}
        options += [
            {"enum": list(self.kinds())},
            {"type": "object", "properties": {"kind": custom}, "required": ["kind"]},
        ]
        return {"anyOf": options, "title": self.name}

    def _serialize(self, value: Settings) -> dict[str, Any]:
        body = value.arguments if isinstance(value, Custom) else value.model_dump(mode="json")
        return {"kind": self.kind_of(value), **body}

    def _validate(self, value: Any, base: Any) -> Any:
        if isinstance(value, str):
            value = {"kind": value}
        if isinstance(value, Mapping):
            return self._from_mapping(dict(value), base)
        if isinstance(value, Custom) or (isinstance(base, type) and isinstance(value, base)):
            return value
        if callable(value) and self.callables:
            return Custom(target=value)
        raise PydanticCustomError(
            "family",
            "expected {name} settings, such as {example}, got {got}",
            {
                "name": self.name,
                "example": f"{{kind: {next(iter(self.members), '…')}}}",
                "got": type(value).__name__,
            },
        )

    def _from_mapping(self, value: dict[str, Any], base: Any) -> Any:
        kind = value.pop("kind", self.default)
        kinds = self.kinds()
        if not isinstance(kind, str):
            raise _nested(
                [
                    (
                        ("kind",),
                        f"required, one of: {', '.join(kinds)}, or an import path 'package.module:Name'",
                    )
                ]
            )
        path = kinds.get(kind)
        if path is None:
            if not _IMPORT_PATH.match(kind):
                known = ", ".join(kinds)
                message = f"unknown kind {kind!r}{near_match(kind, kinds)} (known: {known}; or 'package.module:Name')"
                raise _nested([(("kind",), message)])
            if _check_only.get():
                if problem := _missing(kind):
                    raise _nested([(("kind",), problem)])
                return Custom(target=kind, arguments=value)
            path = kind
        try:
            cls = _import(path)
        except ConfigError as error:
            raise _nested([(("kind",), error.message)]) from None
        if isinstance(cls, type) and issubclass(cls, Settings):
            if isinstance(base, type) and not issubclass(cls, base):
                raise _nested([(("kind",), f"{kind} is not a {self.name} (a subclass of {base.__name__})")])
            return _build(cls, value)
        if not self.callables or not callable(cls):
            wanted = base.__name__ if isinstance(base, type) else "class"
            raise _nested([(("kind",), f"{kind} is not a {self.name} (a subclass of {wanted})")])
        return Custom(target=kind, arguments=value)


def _nested(problems: Sequence[tuple[_Path, str]]) -> PydanticCustomError:
    text = (
        "; ".join(f"{_dotted(loc)}: {message}" for loc, message in problems)
        .replace("{", "{{")
        .replace("}", "}}")
    )
    return PydanticCustomError("nested", text, {"problems": list(problems)})


def _build(cls: type[SettingsT], value: Mapping[str, Any]) -> SettingsT:
    try:
        return cls.model_validate(dict(value))
    except pydantic.ValidationError as error:
        raise _nested(_problems(cls, error)) from None
    except ConfigError as error:
        found = [(tuple(p.path.split(".")), p.message) for p in error.problems]
        raise _nested(found or [((), error.message)]) from None


# --- messages ---------------------------------------------------------------------------------------------------


def near_match(word: str, known: Any) -> str:
    """`"; did you mean X?"` where one of `known` resembles `word`, else nothing."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _dotted(loc: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in loc)


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping (key: value)",
    "model": "a mapping (key: value)",
    "datetime": "a date or time",
    "time_delta": "a duration",
}


def _problems(cls: Any, error: pydantic.ValidationError) -> list[tuple[_Path, str]]:
    found: list[tuple[_Path, str]] = []
    for item in error.errors(include_url=False):
        loc, kind, context = item["loc"], item["type"], item.get("ctx", {})
        if kind == "nested":
            found += [((*loc, *inner), message) for inner, message in context["problems"]]
        else:
            loc = tuple(part for part in loc if not (isinstance(part, str) and "[" in part))
            found.append((loc, _message(cls, loc, kind, context, item)))
    return list(dict.fromkeys(found))


def _message(cls: Any, loc: _Path, kind: str, context: Mapping[str, Any], item: Any) -> str:
    if kind == "extra_forbidden":
        return f"unknown{near_match(str(loc[-1]), _fields(cls, loc[:-1]))}"
    if kind == "missing":
        return "required"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"expected one of {', '.join(known)}, got {_show(item['input'])}{near_match(str(item['input']), known)}"
    for name, expected in _EXPECTED.items():
        if kind in {f"{name}_type", f"{name}_parsing", f"{name}_attributes_type", f"{name}_from_float"}:
            return f"expected {expected}, got {_show(item['input'])}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if message.startswith("Input should be"):
        return f"must be{message.removeprefix('Input should be')}, got {_show(item['input'])}"
    if message.startswith("String should"):
        return f"must {message.removeprefix('String should ')}, got {_show(item['input'])}"
    return message


def _show(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if value is None:
        return "nothing"
    text = str(redact(value)) if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 60 else text[:57] + "…") if isinstance(value, str) else text[:60]


def _fields(annotation: Any, loc: _Path) -> list[str]:
    """Field names at `loc` below an annotation, for near matches."""
    options = [annotation]
    while options and typing.get_origin(options[0]) in {typing.Union, types.UnionType, typing.Annotated}:
        options = [a for o in options for a in typing.get_args(o) if a is not type(None)] or options
    for option in options:
        if isinstance(option, type) and issubclass(option, Settings):
            if not loc:
                return list(option.model_fields)
            if loc[0] in option.model_fields:
                return _fields(option.model_fields[str(loc[0])].annotation, loc[1:])
        elif typing.get_origin(option) in {dict, list, tuple} and loc:
            return _fields(typing.get_args(option)[-1 if typing.get_origin(option) is dict else 0], loc[1:])
    return []


# --- import paths -----------------------------------------------------------------------------------------------


def _import(path: str) -> Any:
    module_name, _, name = path.partition(":")
    _add_working_directory()
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"no module {error.name!r} (looked in the working directory and installed packages)"
            ) from None
        raise ConfigError(f"{module_name} cannot be imported: it needs {error.name}") from error
    except Exception as error:
        raise ConfigError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(value, part):
            raise ConfigError(f"module {module_name} has no {name}{near_match(part, dir(value))}")
        value = getattr(value, part)
    return value


def _add_working_directory() -> None:
    # A console script's sys.path has no working directory, where a project's own modules lie.
    if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _missing(path: str) -> str | None:
    """Why an import path would fail, found without importing anything; None if it should not."""
    module_name, _, name = path.partition(":")
    _add_working_directory()
    search: Any = None
    parts = module_name.split(".")
    spec = None
    for i, _part in enumerate(parts):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: i + 1]), search)
        if spec is None:
            return f"no module {'.'.join(parts[: i + 1])!r} (looked in the working directory and installed packages)"
        search = spec.submodule_search_locations
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        names = _top_level_names(ast.parse(Path(spec.origin).read_bytes()))
    except SyntaxError as error:
        return f"{module_name} cannot be imported: SyntaxError in line {error.lineno}"
    first = name.split(".", maxsplit=1)[0]
    if first in names or "*" in names or "__getattr__" in names:
        return None
    return f"module {module_name} has no {first}{near_match(first, names)}"


def _top_level_names(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


# --- YAML -------------------------------------------------------------------------------------------------------

# YAML 1.2's core types. PyYAML's own are those of 1.1, where `1e-3` is text, `12:30` is 750 and `on` is true.
_NULL = re.compile(r"^(~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_SPECIAL = re.compile(r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}")


@dataclass
class Document:
    """A config as it was read: plain data, the line of each key, and which values came from the environment."""

    data: dict[str, Any]
    file: str | None = None
    lines: dict[_Path, int] = field(default_factory=dict)
    variables: dict[_Path, str] = field(default_factory=dict)
    origins: dict[_Path, str] = field(default_factory=dict)

    def problem(self, path: _Path, message: str) -> Problem:
        """A `Problem` at `path`, with the line of the nearest key that the file has."""
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        for start in range(len(path), 0, -1):
            if origin := self.origins.get(path[:start]):
                return Problem(_dotted(path), f"{message} (from {origin})")
        return Problem(_dotted(path), message, self.file, self.lines.get(known))


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.open: set[int] = set()

    def value(self, node: yaml.Node, path: _Path) -> Any:
        if id(node) in self.open:
            self._problem(path, node, "an alias that contains itself")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                for i, item in enumerate(node.value):
                    self.document.lines[(*path, i)] = item.start_mark.line + 1
                return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self.open.discard(id(node))

    def _problem(self, path: _Path, node: yaml.Node, message: str) -> None:
        self.problems.append(Problem(_dotted(path), message, self.document.file, node.start_mark.line + 1))

    def _mapping(self, node: yaml.MappingNode, path: _Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(path, key_node, "a key must be a plain word")
                continue
            key = str(key_node.value)
            if key == "<<" and key_node.style is None:
                parents = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for parent in reversed(parents):
                    inherited = self.value(parent, path)
                    merged.update(inherited if isinstance(inherited, dict) else {})
                continue
            line = key_node.start_mark.line + 1
            if key in result:
                first = self.document.lines[(*path, key)]
                self._problem((*path, key), key_node, f"written twice (first in line {first}): keep one")
                continue
            self.document.lines[(*path, key)] = line
            result[key] = self.value(value_node, (*path, key))
        return {**merged, **result}

    def _scalar(self, node: yaml.Node, path: _Path) -> Any:
        plain = getattr(node, "style", None) is None
        text = str(node.value)
        if "${" in text or "$$" in text:
            text = self._substitute(text, path, node)
        if node.tag not in {"tag:yaml.org,2002:str", "?", "!"} and node.tag.startswith("!"):
            self._problem(path, node, f"the tag {node.tag} is not allowed")
        return _typed(text) if plain else text

    def _substitute(self, text: str, path: _Path, node: yaml.Node) -> str:
        def replace(match: re.Match[str]) -> str:
            name, default = match.group(1), match.group(3)
            value = os.environ.get(name) or default
            if value is None:
                self._problem(
                    path,
                    node,
                    f"the environment variable {name} is not set: export {name}=…, or write ${{{name}:-default}}",
                )
                return match.group(0)
            self.document.variables[path] = text
            return value

        return _VARIABLE.sub(replace, text).replace("$$", "$")


def _typed(text: str) -> Any:
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        return float(text.replace("_", ""))
    if _SPECIAL.match(text):
        return float(text.replace(".", "", 1))
    return text


def read_document(
    source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()
) -> Document:
    """Read a config from a YAML file or a mapping.

    Args:
        source: Path of the file, or a mapping that stands for one.
        overrides: `dotted.path=value` each, the value in YAML: they replace or add a key.

    Raises:
        ConfigError: No such file, not YAML, not a mapping, a doubled key, a variable that is not set.
    """
    if isinstance(source, Mapping):
        document = Document(data=json.loads(json.dumps(source)) if _plain(source) else _copy(source))
    else:
        document = _read_file(Path(source))
    for override in overrides:
        _apply(document, override)
    return document


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _read_file(path: Path) -> Document:
    file = str(path)
    document = Document(data={}, file=file)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = near_match(
            path.name, [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        )
        raise ConfigError(
            f"no such file{near}", where=file, hint="Draft one from your tables: sp-ray init WAREHOUSE"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=file) from None
    reader = _Reader(document)
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        note = " (a tab: YAML wants spaces)" if "\\t" in str(error.problem) else ""
        raise ConfigError(
            "not YAML", problems=(Problem("", f"not YAML: {error.problem}{note}", file, line),)
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError("not YAML", problems=(Problem("", f"not YAML: {error}", file),)) from None
    if not nodes or nodes[0] is None:
        raise ConfigError(
            "the file is empty", where=file, hint="Draft one from your tables: sp-ray init WAREHOUSE"
        )
    if len(nodes) > 1:
        line = nodes[1].start_mark.line + 1
        raise ConfigError(
            "two documents",
            problems=(Problem("", "a second document begins here: a config is one", file, line),),
        )
    if not isinstance(nodes[0], yaml.MappingNode):
        what = "a list" if isinstance(nodes[0], yaml.SequenceNode) else "plain text"
        raise ConfigError(f"the file is {what}: a config is a mapping (key: value)", where=file)
    document.data = reader.value(nodes[0], ())
    if reader.problems:
        raise ConfigError("the file has mistakes", problems=tuple(reader.problems))
    return document


def _apply(document: Document, override: str) -> None:
    dotted, equals, text = override.partition("=")
    origin = f"--set {dotted}"
    if not equals or not dotted:
        raise ConfigError(
            f"--set {override}: expected dotted.path=value", hint="For example: --set train.epochs=5"
        )
    reader = _Reader(Document(data={}))
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        raise ConfigError(
            f"{origin}: the value is not YAML; quote it", hint=f"For example: --set '{dotted}=\"…\"'"
        ) from None
    path = tuple(int(part) if part.isdigit() else part for part in dotted.split("."))
    value = reader.value(node, path) if node is not None else None
    if reader.problems:
        raise ConfigError(f"{origin}: {reader.problems[0].message}")
    document.variables.update(reader.document.variables)
    here: Any = document.data
    for i, part in enumerate(path[:-1]):
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                raise ConfigError(
                    f"{origin}: the list {_dotted(path[:i])} has {len(here)} entries, numbered from 0"
                )
            here = here[part]
            continue
        following = here.get(str(part))
        if isinstance(following, str):
            following = {"kind": following}
        here[str(part)] = following if following is not None else {}
        here = here[str(part)]
        if not isinstance(here, dict | list):
            raise ConfigError(f"{origin}: {_dotted(path[: i + 1])} is no mapping")
    last = path[-1]
    if isinstance(here, list):
        if not isinstance(last, int) or last >= len(here):
            raise ConfigError(
                f"{origin}: the list {_dotted(path[:-1])} has {len(here)} entries, numbered from 0"
            )
        here[last] = value
    else:
        here[str(last)] = value
    document.origins[path] = origin


# --- from a document to settings and back -----------------------------------------------------------------------


@contextmanager
def _checking(only: bool) -> Iterator[None]:
    token = _check_only.set(only)
    try:
        yield
    finally:
        _check_only.reset(token)


def check(cls: type[SettingsT], document: Document, *, check_only: bool = False) -> SettingsT:
    """Turn a document into settings.

    Args:
        cls: What the document declares.
        document: From `read_document`.
        check_only: Look import paths up without importing them; the result is not fit to run.

    Raises:
        ConfigError: With every mistake, in the order of the file.
    """
    with _checking(check_only):
        try:
            return cls.model_validate(document.data)
        except pydantic.ValidationError as error:
            found = _problems(cls, error)
        except ConfigError as error:
            found = [(tuple(p.path.split(".")), p.message) for p in error.problems] or [((), error.message)]
    problems = []
    for loc, message in found:
        variable = document.variables.get(loc)
        text = re.sub(r", got .*$", f", got the value of {variable}", message) if variable else message
        problems.append(document.problem(loc, text))
    problems.sort(key=lambda problem: problem.line or 0)
    count = f"{len(problems)} mistakes" if len(problems) > 1 else "1 mistake"
    raise ConfigError(f"{document.file or 'the config'} has {count}", problems=tuple(problems))


_SECRET = re.compile(r"(?i)(password|passwd|secret|token|api_?key|credential)")
_USERINFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^/\s:@]*):[^/\s@]+@")


def redact(value: Any, key: str = "") -> Any:
    """`value` without secrets: passwords in URLs, and whatever stands under a key that names a secret."""
    if isinstance(value, Mapping):
        return {k: redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key) for item in value]
    if isinstance(value, str):
        return "***" if _SECRET.search(key) and value else _USERINFO.sub(r"\1:***@", value)
    return value


def dump(settings: Settings) -> dict[str, Any]:
    """The settings as plain data, every default written out and secrets redacted.

    Raises:
        ConfigError: A callable in it has no import path.
    """
    result: dict[str, Any] = redact(settings.model_dump(mode="json"))
    return result


def to_yaml(settings: Settings) -> str:
    """The settings as YAML that gives the same settings again (secrets left out)."""
    return yaml.safe_dump(dump(settings), sort_keys=False, allow_unicode=True, width=110)


def fingerprint(*values: Any) -> str:
    """Hex digest of settings and plain data; for a callable of the user's own, of its source too."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(_canonical(value), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _canonical(value: Any) -> Any:
    if isinstance(value, Custom):
        target = value.load()
        try:
            source = inspect.getsource(inspect.getmodule(target) or target)
        except (OSError, TypeError):
            source = repr(target)
        return {
            "source": source,
            "name": getattr(target, "__qualname__", ""),
            "arguments": _canonical(value.arguments),
        }
    if isinstance(value, Settings):
        own = f"{type(value).__module__}:{type(value).__qualname__}"
        return {"class": own, **{name: _canonical(getattr(value, name)) for name in type(value).model_fields}}
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def json_schema(cls: type[Settings]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a config, usable by editors."""
    schema = cls.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
