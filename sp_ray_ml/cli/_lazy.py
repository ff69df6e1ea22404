"""Commands that are built when they are called: `sp-ray --help` needs their names only."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["Later", "lazy_group"]


class Later(NamedTuple):
    """A command to come.

    Attributes:
        module: Module whose `build(name)` returns its Typer app.
        help: Its line in the help.
        panel: The part of the help that it stands in.
    """

    module: str
    help: str
    panel: str


def lazy_group(commands: Mapping[str, Later]) -> type[TyperGroup]:
    """A group's class that has these commands beside its own."""

    class LazyGroup(TyperGroup):
        later: ClassVar[Mapping[str, Later]] = commands

        def list_commands(self, ctx: Any) -> list[str]:
            return [*super().list_commands(ctx), *self.later]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            """For help and completion: a name and a line."""
            if cmd_name not in self.later or cmd_name in self.commands:
                return super().get_command(ctx, cmd_name)
            come = self.later[cmd_name]
            return TyperCommand(cmd_name, help=come.help, rich_help_panel=come.panel)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            """For a call: the command itself."""
            name = args[0] if args else ""
            if name in self.later and name not in self.commands:
                app: typer.Typer = importlib.import_module(self.later[name].module).build(name)
                self.commands[name] = typer.main.get_command(app)
            return super().resolve_command(ctx, args)

    return LazyGroup
