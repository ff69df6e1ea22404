"""Settings and the files they come from: one declaration checks Python and YAML alike.

`Settings` is the base of every building block. A field annotated with a `Family` takes one of several classes,
chosen by `kind` in YAML and by the object's class in Python. `read_document` reads YAML with the line of every
key, `check` turns it into settings or raises one `ConfigError` with all mistakes.
"""

from __future__ import annotations

import ast
import contextvars
import datetime
import functools
import hashlib
import importlib.metadata
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic_core import PydanticCustomError, PydanticSerializationError, core_schema

from sp_ray_ml._document import Document, read_document, write_yaml
from sp_ray_ml._import_path import IMPORT_PATH, import_object, why_missing
from sp_ray_ml._names import KeyPath, dotted, near_match
from sp_ray_ml._secrets import is_secret, redact
from sp_ray_ml.errors import ConfigError, Problem

__all__ = [
    "Custom",
    "Document",
    "Duration",
    "Family",
    "Settings",
    "check",
    "document_of",
    "dump",
    "fingerprint",
    "json_schema",
    "near_match",
    "read_document",
    "redact",
    "to_yaml",
]

_check_only: contextvars.ContextVar[bool] = contextvars.ContextVar("check_only", default=False)
# Pydantic turns an error in a serializer into one of its own, without a cause.
_unnamed: contextvars.ContextVar[list[ConfigError] | None] = contextvars.ContextVar("unnamed", default=None)


class Settings(pydantic.BaseModel):
    """Base of all settings: typed, frozen, unknown keys refused. Importing one imports no heavy library.

    Wrong values raise `ConfigError` (a `ValueError`) with every mistake in it, from Python as from YAML.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            problems = tuple(
                Problem(dotted(loc) or type(self).__name__, message)
                for loc, message in _problems(type(self), error)
            )
            raise ConfigError(f"{type(self).__name__} cannot be made", problems=problems) from None

    # Nested models are then validated in place, and report their errors with their paths, not by calling __init__.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


SettingsT = TypeVar("SettingsT", bound=Settings)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_S = 10_000 * 366 * 86_400


def _duration(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", value)):
        seconds = float(match.group(1)) * _UNITS[match.group(2)]
        if seconds > _LONGEST_S:
            raise ValueError(f"{_show(value)} is longer than 10,000 years")
        return datetime.timedelta(seconds=seconds)
    if isinstance(value, datetime.timedelta):
        return value
    raise ValueError(f"expected a duration such as 90s, 15m, 2h, 30d or 1w, got {_show(value)}")


def _duration_text(value: datetime.timedelta) -> str:
    seconds = value.total_seconds()
    unit = next((u for u in ("w", "d", "h", "m") if seconds and seconds % _UNITS[u] == 0), "s")
    number = f"{seconds / _UNITS[unit]:.6f}".rstrip("0").rstrip(".")
    return f"{number}{unit}"


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
        return import_object(self.target) if isinstance(self.target, str) else self.target  # type: ignore[no-any-return]

    @property
    def path(self) -> str:
        """The import path.

        Raises:
            ConfigError: The callable has none (a lambda, a local function, a class of a notebook's cell).
        """
        return self.target if isinstance(self.target, str) else _import_path(self.target)


def _import_path(target: Any) -> str:
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
    if not module or not name or module == "__main__" or "<" in name:
        raise ConfigError(
            f"{name or repr(target)} cannot be saved: it has no import path",
            hint="Move it to the top level of a module, and import it from there",
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
        return {**self.members, **{k: v for k, v in _installed(self.name).items() if k not in self.members}}

    def _path_of(self, kind: str) -> str | None:
        # To look through all installed packages takes as long as to check a config.
        return self.members.get(kind) or _installed(self.name).get(kind)

    def kind_of(self, value: Settings) -> str:
        """What YAML calls this value's class."""
        if isinstance(value, Custom):
            return value.path
        path = f"{type(value).__module__}:{type(value).__qualname__}"
        for kinds in (self.members, self.kinds()) if path not in self.members.values() else (self.members,):
            for kind, member in kinds.items():
                if member == path:
                    return kind
        return _import_path(type(value))

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
            reference = handler(import_object(path).__pydantic_core_schema__)
            definition = handler.resolve_ref_schema(reference)
            definition["properties"] = {"kind": {"const": kind}, **definition.get("properties", {})}
            needed = [k for k in definition.get("required", ()) if k != "kind"]
            definition["required"] = needed if kind == self.default else ["kind", *needed]
            options.append(reference)
        custom = {"type": "string", "pattern": IMPORT_PATH.pattern}
        options += [
            {"enum": list(self.kinds())},
            custom,
            {"type": "object", "properties": {"kind": custom}, "required": ["kind"]},
        ]
        return {"anyOf": options, "title": self.name}

    def _serialize(self, value: Settings) -> dict[str, Any]:
        body = value.arguments if isinstance(value, Custom) else value.model_dump(mode="json")
        try:
            return {"kind": self.kind_of(value), **body}
        except ConfigError as error:
            if (unnamed := _unnamed.get()) is not None:
                unnamed.append(error)
            raise

    def _validate(self, value: Any, base: Any) -> Any:
        if isinstance(value, str):
            value = {"kind": value}
        if isinstance(value, Mapping):
            return self._from_mapping(dict(value), base)
        if isinstance(base, type) and isinstance(value, base):
            return value
        if isinstance(value, Custom) and self.callables:
            return value
        if callable(value) and self.callables:
            return Custom(target=value)
        raise PydanticCustomError(
            "family",
            "expected {name} settings, such as {example}, got {got}",
            {
                "name": self.name,
                "example": f"{{kind: {next(iter(self.members), '…')}}}",
                "got": _show(value),
            },
        )

    def _from_mapping(self, value: dict[str, Any], base: Any) -> Any:
        kind = value.pop("kind", self.default)
        if not isinstance(kind, str):
            known = ", ".join(self.kinds())
            message = f"required, one of: {known}, or an import path 'package.module:Name'"
            raise located([(("kind",), message)])
        path = self._path_of(kind)
        if path is None:
            if not IMPORT_PATH.match(kind):
                kinds = self.kinds()
                known = ", ".join(kinds)
                message = f"unknown kind {kind!r}{near_match(kind, kinds)} (known: {known}; or 'package.module:Name')"
                raise located([(("kind",), message)])
            if _check_only.get():
                if problem := why_missing(kind):
                    raise located([(("kind",), problem)])
                return Custom(target=kind, arguments=value)
            path = kind
        try:
            cls = import_object(path)
        except ConfigError as error:
            raise located([(("kind",), error.message)]) from None
        if isinstance(cls, type) and issubclass(cls, Settings):
            if isinstance(base, type) and not issubclass(cls, base):
                raise located([(("kind",), f"{kind} is not a {self.name} (a subclass of {base.__name__})")])
            return _build(cls, value)
        if not self.callables or not callable(cls):
            wanted = base.__name__ if isinstance(base, type) else "class"
            raise located([(("kind",), f"{kind} is not a {self.name} (a subclass of {wanted})")])
        return Custom(target=kind, arguments=value)


@functools.cache
def _installed(family: str) -> dict[str, str]:
    """Kinds that installed packages declare, and the import path of each."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=f"sp_ray_ml.{family}")}


def located(problems: Sequence[tuple[KeyPath, str]]) -> PydanticCustomError:
    """What a validator raises for mistakes inside the value that it was given, each with its path from there."""
    text = (
        "; ".join(f"{dotted(loc)}: {message}" for loc, message in problems)
        .replace("{", "{{")
        .replace("}", "}}")
    )
    return PydanticCustomError("nested", text, {"problems": list(problems)})


def _build(cls: type[SettingsT], value: Mapping[str, Any]) -> SettingsT:
    try:
        return cls.model_validate(dict(value))
    except pydantic.ValidationError as error:
        raise located(_problems(cls, error)) from None
    except ConfigError as error:
        raise located(_flat(error)) from None


def _flat(error: ConfigError) -> list[tuple[KeyPath, str]]:
    """The problems of an error that a validator raised by making settings of its own."""
    return [(tuple(p.path.split(".")) if p.path else (), p.message) for p in error.problems] or [
        ((), error.message)
    ]


# --- messages ---------------------------------------------------------------------------------------------------


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


def _problems(cls: Any, error: pydantic.ValidationError) -> list[tuple[KeyPath, str]]:
    found: list[tuple[KeyPath, str]] = []
    for item in error.errors(include_url=False):
        loc, kind, context = item["loc"], item["type"], item.get("ctx", {})
        if kind == "nested":
            found += [((*loc, *inner), message) for inner, message in context["problems"]]
        else:
            loc = tuple(part for part in loc if not (isinstance(part, str) and "[" in part))
            found.append((loc, _message(cls, loc, kind, context, item)))
    return list(dict.fromkeys(found))


def _message(cls: Any, loc: KeyPath, kind: str, context: Mapping[str, Any], item: Any) -> str:
    if kind == "extra_forbidden":
        return f"unknown{near_match(str(loc[-1]), _fields(cls, loc[:-1]))}"
    if kind == "missing":
        return "required"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"expected one of {', '.join(known)}, got {_show(item['input'])}{near_match(str(item['input']), known)}"
    if is_secret(str(loc[-1]) if loc else ""):
        return "is not what is expected (its value is not shown)"
    if kind == "string_type" and isinstance(item["input"], int | float):
        return f"expected text, got {_show(item['input'])}: put it in quotes"
    for name, expected in _EXPECTED.items():
        if kind in {f"{name}_type", f"{name}_parsing", f"{name}_attributes_type", f"{name}_from_float"}:
            return f"expected {expected}, got {_show(item['input'])}"
    if kind == "too_short":
        return f"expected {context['min_length']} or more, got {_show(item['input'])}"
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


def _fields(annotation: Any, loc: KeyPath) -> list[str]:
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
    found: list[tuple[KeyPath, str]] = []
    with _checking(check_only):
        try:
            settings = cls.model_validate(document.data)
        except pydantic.ValidationError as error:
            found = _problems(cls, error)
        except ConfigError as error:
            found = _flat(error)
    # What could not be read is named once, not also for the hole that it leaves.
    read = document.problems + document.unset
    holes = {path for path, _ in read if path}
    problems = [problem for _, problem in read]
    problems += [
        document.problem(loc, message)
        for loc, message in found
        if not any(loc[:end] in holes for end in range(1, len(loc) + 1))
    ]
    if not problems:
        return settings
    problems.sort(key=lambda problem: problem.line or 0)
    count = f"{len(problems)} mistakes" if len(problems) > 1 else "1 mistake"
    raise ConfigError(f"{document.file or 'the config'} has {count}", problems=tuple(problems))


def document_of(settings: Settings) -> Document:
    """The settings as a document to be changed and checked again; secrets stay in.

    Raises:
        ConfigError: A callable in it has no import path.
    """
    return Document(data=_plain(settings))


def _plain(settings: Settings) -> dict[str, Any]:
    unnamed: list[ConfigError] = []
    token = _unnamed.set(unnamed)
    try:
        return settings.model_dump(mode="json")
    except PydanticSerializationError:
        if unnamed:
            raise unnamed[0] from None
        raise
    finally:
        _unnamed.reset(token)


def dump(settings: Settings) -> dict[str, Any]:
    """The settings as plain data, every default written out and secrets redacted.

    Raises:
        ConfigError: A callable in it has no import path.
    """
    result: dict[str, Any] = redact(_plain(settings))
    return result


def to_yaml(settings: Settings) -> str:
    """The settings as YAML that gives the same settings again (secrets left out)."""
    return write_yaml(dump(settings))


def fingerprint(*values: Any) -> str:
    """Hex digest of settings and plain data; for a callable of the user's own, of its source too."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(_canonical(value), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _canonical(value: Any) -> Any:
    if isinstance(value, Custom):
        target = value.load()
        name = getattr(target, "__qualname__", "")
        return {"source": _source(target), "name": name, "arguments": _canonical(value.arguments)}
    if isinstance(value, Settings):
        cls = type(value)
        own = f"{cls.__module__}:{cls.__qualname__}"
        # This package's code is the business of whoever runs it: see `code_fingerprint`.
        source = {} if cls.__module__.startswith("sp_ray_ml.") else {"source": _source(cls)}
        return {
            "class": own,
            **source,
            **{name: _canonical(getattr(value, name)) for name in cls.model_fields},
        }
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def _source(target: Any) -> str:
    """Source of the module that defines a class or function; where there is none, what tells it from others."""
    try:
        return inspect.getsource(inspect.getmodule(target) or target)
    except (OSError, TypeError):
        code = getattr(target, "__code__", None)
        return repr(target) if code is None else f"{code.co_code!r} {code.co_consts!r} {code.co_names!r}"


def json_schema(cls: type[Settings]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a config, usable by editors; docstrings of fields are its descriptions."""
    schema = cls.model_json_schema()
    known = sorted(_subclasses(Settings), key=lambda found: found.__module__.startswith("sp_ray_ml."))
    settings = {found.__name__: found for found in known}
    for name, definition in {**schema.get("$defs", {}), cls.__name__: schema}.items():
        for field, text in _field_docstrings(settings[name]).items() if name in settings else ():
            if field in definition.get("properties", {}):
                definition["properties"][field].setdefault("description", text)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _subclasses(cls: type[Settings]) -> list[type[Settings]]:
    return [found for child in cls.__subclasses__() for found in (child, *_subclasses(child))]


def _field_docstrings(cls: type) -> dict[str, str]:
    """Text under each field of a class and its bases. Pydantic would read them whenever a class is made, at twice
    the cost of making it."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Settings) or base is Settings:
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, SyntaxError):  # a class that was typed into a prompt
            continue
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = inspect.cleandoc(text.value.value)
    return found
