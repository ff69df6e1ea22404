"""`sp-ray`: the commands and what becomes of their errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sp_ray_ml import __version__
from sp_ray_ml.cli import compare, demo, get, init, predict, recommend, run, schema, sync, ui, validate
from sp_ray_ml.cli._lazy import Later, lazy_group
from sp_ray_ml.cli._options import help_without_command
from sp_ray_ml.cli._output import exit_code_of, print_data, print_error

__all__ = ["app", "main"]

_CLUSTERS = "Ray clusters on Kubernetes"
_MAKE, _LOOK, _USE = (f"sp_ray_ml.cli.cluster_{part}" for part in ("make", "look", "use"))
_JOBS = "sp_ray_ml.cli.jobs"
_TEAM, _USAGE = "sp_ray_ml.cli.team", "sp_ray_ml.cli.team_usage"
_SCHEDULE = "sp_ray_ml.cli.schedule"
_LATER = {
    "create": Later(_MAKE, "Create a Ray cluster and wait until it can be used.", _CLUSTERS),
    "describe": Later(_LOOK, "Say what a cluster or a team is, and how it is now.", _CLUSTERS),
    "explain": Later(_LOOK, "Say why a cluster is not usable, and what to do.", _CLUSTERS),
    "plan": Later(_MAKE, "Say whether a cluster would fit, or what a team file would change.", _CLUSTERS),
    "apply": Later(_TEAM, "Make a team what its file says.", _CLUSTERS),
    "top": Later(_USAGE, "Say what clusters hold and use at this moment.", _CLUSTERS),
    "report": Later(_USAGE, "Say what teams have used, and what it costs.", _CLUSTERS),
    "connect": Later(_USE, "Forward a cluster's ports to this machine.", _CLUSTERS),
    "ssh": Later(_USE, "Open a shell on a cluster's head.", _CLUSTERS),
    "submit": Later(_USE, "Run a command on a cluster as a job.", _CLUSTERS),
    "logs": Later(_LOOK, "Print what a run, pods or jobs have printed.", _CLUSTERS),
    "attach": Later(_JOBS, "Follow a run on a cluster, from any machine.", _CLUSTERS),
    "stop": Later(_JOBS, "Stop a run on a cluster.", _CLUSTERS),
    "schedule": Later(_SCHEDULE, "Have Kubernetes run a pipeline at certain times.", _CLUSTERS),
    "scale": Later(_MAKE, "Change how many workers a group has.", _CLUSTERS),
    "wait": Later(_MAKE, "Wait until a cluster is usable.", _CLUSTERS),
    "suspend": Later(_MAKE, "Delete a cluster's pods and keep the rest.", _CLUSTERS),
    "resume": Later(_MAKE, "Bring a suspended cluster back.", _CLUSTERS),
    "extend": Later(_MAKE, "Let a cluster live longer.", _CLUSTERS),
    "delete": Later(_MAKE, "Delete a cluster, after its logs are saved, a team or a schedule.", _CLUSTERS),
}

app = typer.Typer(
    name="sp-ray",
    cls=lazy_group(_LATER),
    help="Machine learning on Ray: from a warehouse of events to recommendations, from one file.",
    epilog="Begin with: sp-ray demo demo, then sp-ray init demo",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for module in (demo, init, schema, run, predict, validate, recommend, get, compare, ui, sync):
    module.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        print_data(f"sp-ray {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _sp_ray(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    help_without_command(context)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 (failed), 2 (the user's mistake) or 130 (Ctrl-C)."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a title that the terminal cannot show ends no command
    try:
        code = app(args=arguments, prog_name="sp-ray", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # Whoever read has had enough. Python flushes once more at its end: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as end:
        # Typer ends so where a pipe is closed.
        if isinstance(end.__context__, BrokenPipeError):
            return 0
        raise
    except Exception as error:  # noqa: BLE001 - the last place where an error can be told
        print_error(error)
        return exit_code_of(error)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
