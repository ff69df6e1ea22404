"""Arguments and options of the commands on clusters, and how these commands print."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sp_ray_ml._names import printable
from sp_ray_ml.cli._options import help_without_command
from sp_ray_ml.cli._output import print_data, print_json, say
from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    from sp_ray_ml.cluster import RayCluster

__all__ = [
    "Context",
    "Form",
    "Kubeconfig",
    "Name",
    "Namespace",
    "Timeout",
    "as_yaml",
    "find",
    "group",
    "pairs",
    "print_object",
    "printed",
    "seconds_of",
    "table",
    "tell_notes",
]

Name = Annotated[str, typer.Argument(metavar="NAME", help="The cluster's name.", show_default=False)]
Namespace = Annotated[
    str | None,
    typer.Option(
        "-n",
        "--namespace",
        metavar="NS",
        help="The cluster's namespace. [dim]default: the kubeconfig's[/]",
        show_default=False,
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Kubeconfig. [dim]default: KUBECONFIG, ~/.kube/config[/]", show_default=False
    ),
]
Context = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The kubeconfig's context.", show_default=False),
]
Timeout = Annotated[str, typer.Option(metavar="TIME", help="Give up waiting after this long: 90s, 15m, 2h.")]


class Form(StrEnum):
    """Forms of a listing."""

    text = "text"
    wide = "wide"
    json = "json"
    yaml = "yaml"
    name = "name"


def group(
    help: str,
    command: Callable[..., Any] | None = None,
    *,
    alone: Callable[..., Any] = help_without_command,
    of_job: Callable[..., Any] | None = None,
    **others: Callable[..., Any],
) -> typer.Typer:
    """A verb and its nouns.

    Args:
        help: Its help.
        command: What it does to a cluster; None for a verb of other nouns.
        alone: What it does where no noun follows; it is called in front of the command, too.
        of_job: What it does to a run's job, whose id stands where the noun would.
        **others: What it does to other things, by their nouns.
    """
    app = typer.Typer(help=help, add_completion=False, cls=_JobsById if of_job else None)
    if of_job:
        app.command("job", hidden=True)(of_job)
    app.callback(invoke_without_command=True)(alone)
    for noun, each in {"cluster": command, **others}.items():
        if each is not None:
            app.command(noun)(_naming_options(each))
    return app


class _JobsById(TyperGroup):
    """Takes what is none of its commands for the id of a job."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["job", *args]
        return super().resolve_command(ctx, args)


def _naming_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose mistakes bear the names that its options have on the command line: `--by` for `by`."""

    @functools.wraps(command)
    def run(*given: Any, **options: Any) -> Any:
        try:
            return command(*given, **options)
        except ConfigError as error:
            raise _in_options(error, _option_names(command)) from None

    return run


def _option_names(command: Callable[..., Any]) -> dict[str, str]:
    """The long name of each of a command's options, by that of its parameter."""
    found = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        for info in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(info, typer.models.OptionInfo):
                # In an annotation, Typer keeps the first of the given names as the default.
                given = [str(each) for each in (info.default, *(info.param_decls or ()))]
                long = (each.partition("/")[0] for each in given if each.startswith("--"))
                found[name] = next(long, f"--{name.replace('_', '-')}")
    return found


def _in_options(error: ConfigError, names: Mapping[str, str]) -> ConfigError:
    from dataclasses import replace

    def words(text: str) -> str:
        return re.sub(r"[a-z]+(?:_[a-z]+)+", lambda word: names.get(word[0], word[0]), text)

    problems = tuple(
        # What stands in a file has the names of the file.
        problem
        if problem.file
        else replace(problem, path=names.get(problem.path, problem.path), message=words(problem.message))
        for problem in error.problems
    )
    where = names.get(error.where or "", error.where or "") or None
    return ConfigError(words(error.message), where=where, hint=error.hint, problems=problems)


def find(name: str, namespace: str | None, kubeconfig: Path | None, context: str | None) -> RayCluster:
    """The cluster that a command line names."""
    from sp_ray_ml.cluster import RayCluster

    return RayCluster.get_cluster(name, namespace, kubeconfig=kubeconfig, context=context)


def seconds_of(text: str, option: str = "--timeout") -> float:
    """Seconds of a duration.

    Raises:
        ConfigError: It is none.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "": 1}
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip()):
        return float(match.group(1)) * units[match.group(2)]
    raise ConfigError(f"expected a duration such as 90s, 15m or 2h, got {text!r}", where=option)


def pairs(texts: Sequence[str], option: str) -> dict[str, str] | None:
    """`KEY=VALUE` each; None where there are none.

    Raises:
        ConfigError: One is not of this form.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            # What was given may be a secret: it is not said again.
            raise ConfigError("expected KEY=VALUE", where=option)
        found[key] = value
    return found or None


def print_object(value: Any, form: Form) -> None:
    """Data as JSON or YAML."""
    if form is Form.yaml:
        print_data(as_yaml([value]))
    else:
        print_json(value)


def printed(
    found: Sequence[Any], form: Form, data: Callable[[Any], Any], name: Callable[[Any], str], none: str
) -> bool:
    """Print a list as data or names, or that it is empty; False where it is a table that is to be printed.

    Args:
        found: What is listed.
        form: The form.
        data: What JSON and YAML have of each.
        name: Its name.
        none: What is said of an empty list.
    """
    if form in (Form.json, Form.yaml):
        print_object([data(each) for each in found], form)
    elif form is Form.name:
        for each in found:
            print_data(name(each))
    elif not found:
        say(none)
    else:
        return False
    return True


def as_yaml(values: Sequence[Any]) -> str:
    """YAML as people write it: no references, text of several lines as it is."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    written: str = yaml.dump_all(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
    return written.rstrip()


def table(rows: Sequence[Sequence[str]]) -> None:
    """Rows in columns, the heading first. Cells may be what others wrote: no terminal is told anything by them."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print_data("   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def tell_notes(notes: Sequence[str]) -> None:
    """What the user should know, not mixed with data."""
    for note in notes:
        say(f"note: {note}")
