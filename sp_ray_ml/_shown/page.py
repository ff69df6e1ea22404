"""What is printed in one go: a Rich console, and the tables without lines that all of it is made of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from sp_ray_ml._console import in_notebook

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table

__all__ = ["escape", "page", "plain_table", "titled"]


@contextmanager
def page(file: TextIO | None) -> Iterator[RichConsole]:
    """A Rich console whose output is printed in one go; without trailing spaces where it is not for a terminal."""
    from rich.console import Console as RichConsole

    stream = file or sys.stdout
    # A notebook shows text in colours as a terminal does, without Rich's own HTML.
    force = True if file is None and in_notebook() else None
    console = RichConsole(
        file=stream, highlight=False, emoji=False, force_jupyter=False, force_terminal=force
    )
    with console.capture() as captured:
        yield console
    text = captured.get()
    if not console.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    stream.write(text)


def plain_table(**options: Any) -> Table:
    """A table of columns without lines."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", **options)


def titled(title: str, **options: Any) -> Table:
    """A `plain_table` under a title."""
    return plain_table(title=title, title_justify="left", title_style="bold", **options)


def escape(text: str) -> str:
    """Text in which nothing is taken for Rich's marks."""
    from rich.markup import escape as escaped

    return escaped(text)
