"""Import paths `package.module:Name`: followed, or looked up without importing anything."""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import re
import sys
from pathlib import Path
from typing import Any

from sp_ray_ml._names import near_match
from sp_ray_ml.errors import ConfigError

__all__ = ["IMPORT_PATH", "import_object", "why_missing", "why_not_imported"]

IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_MOST_REEXPORTS = 8
_LOOKED = "looked in the working directory and installed packages"


def import_object(path: str) -> Any:
    """What an import path leads to.

    Raises:
        ConfigError: The module is missing or cannot be imported, or has no such name.
    """
    module_name, _, name = path.partition(":")
    _add_working_directory()
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"no module {error.name!r} ({_LOOKED})") from None
        raise ConfigError(f"{module_name} cannot be imported: it needs {error.name}") from error
    except Exception as error:
        raise ConfigError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(value, part):
            raise ConfigError(f"module {module_name} has no {name}{near_match(part, dir(value))}")
        value = getattr(value, part)
    return value


def why_missing(path: str) -> str | None:
    """Why an import path would fail, found without importing anything; None if it should not."""
    module_name, _, name = path.partition(":")
    _add_working_directory()
    parts = module_name.split(".")
    search: Any = None
    spec: importlib.machinery.ModuleSpec | None = None
    for i in range(len(parts)):
        spec = _find_spec(".".join(parts[: i + 1]), search)
        if spec is None:
            return f"no module {'.'.join(parts[: i + 1])!r} ({_LOOKED})"
        search = spec.submodule_search_locations
        if search is None and i + 1 < len(parts):
            return f"no module {'.'.join(parts[: i + 2])!r}: {'.'.join(parts[: i + 1])} is no package"
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        names = _top_level_names(ast.parse(Path(spec.origin).read_bytes()).body)
    except SyntaxError as error:
        return f"{module_name} cannot be imported: SyntaxError in line {error.lineno}"
    except (OSError, ValueError) as error:
        return f"{module_name} cannot be imported: {error}"
    first = name.split(".", maxsplit=1)[0]
    if first in names or "*" in names or "__getattr__" in names:
        return None
    return f"module {module_name} has no {first}{near_match(first, names)}"


def why_not_imported(path: str, *, functions: bool = False) -> str | None:
    """Why a module may not be imported for a class that a file from elsewhere names; None if it may.

    Found without importing anything: the module's source must define a class of that name with a base class, or have
    it from a module that does. What is imported already may be looked into, since nothing runs then.

    Args:
        path: The import path.
        functions: Whether a function that says what it returns will do, too.
    """
    if not IMPORT_PATH.match(path):
        return "is no import path"
    module, _, name = path.partition(":")
    if module in sys.modules:
        return None
    if (reason := why_missing(path)) is not None:
        return reason
    wanted = "class that is a subclass of anything" + (
        ", and no function that says what it returns" if functions else ""
    )
    for _ in range(_MOST_REEXPORTS):
        found = _definition(module, name.split(".", maxsplit=1)[0])
        if isinstance(found, str):
            return found
        if isinstance(found, ast.ClassDef) and found.bases:
            return None
        if functions and isinstance(found, ast.FunctionDef) and found.returns is not None:
            return None
        if not isinstance(found, tuple):
            break
        module, name = found
    return f"{path.partition(':')[0]} defines {path.partition(':')[2]!r} as no {wanted}"


def _definition(module: str, name: str) -> ast.stmt | tuple[str, str] | str | None:
    """What a module's source defines under a name, or where it has it from; a text says why it cannot be read."""
    spec = _spec_of(module)
    try:
        body = ast.parse(Path((spec and spec.origin) or "").read_bytes()).body
    except (OSError, ValueError, SyntaxError) as error:
        return f"the source of {module} cannot be read ({error})"
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _imported_from(node, module, spec), alias.name
    return None


def _imported_from(node: ast.ImportFrom, module: str, spec: importlib.machinery.ModuleSpec | None) -> str:
    """The full name of the module that a `from … import` names."""
    if not node.level:
        return node.module or ""
    is_package = spec is not None and spec.submodule_search_locations is not None
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _spec_of(module: str) -> importlib.machinery.ModuleSpec | None:
    spec: importlib.machinery.ModuleSpec | None = None
    search: Any = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        spec = _find_spec(".".join(parts[:end]), search)
        search = None if spec is None else spec.submodule_search_locations
    return spec


def _add_working_directory() -> None:
    # A console script's sys.path has no working directory, where a project's own modules lie.
    if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _find_spec(name: str, search: Any) -> importlib.machinery.ModuleSpec | None:
    # As importlib.util.find_spec, which would import the parent package.
    for finder in sys.meta_path:
        if (spec := finder.find_spec(name, search)) is not None:
            return spec
    return None


def _top_level_names(body: list[ast.stmt]) -> set[str]:
    names: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(statement.name)
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in statement.names)
            continue
        names.update(
            node.id
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        )
        blocks = [getattr(statement, field, []) for field in ("body", "orelse", "finalbody")]
        blocks += [handler.body for handler in getattr(statement, "handlers", [])]
        for block in blocks:
            names |= _top_level_names(block)
    return names
