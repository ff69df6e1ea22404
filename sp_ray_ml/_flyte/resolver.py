"""How a pod finds a pipeline's task: by the module that made the environment, and the task's name in it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    import flyte

__all__ = ["PipelineTaskResolver"]


class PipelineTaskResolver:
    """Flyte's own resolver looks for a function of the task's name in a module: ours are made for a config."""

    @property
    def import_path(self) -> str:
        """How a pod finds this class."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def loader_args(self, task: Any, root_dir: Path | None) -> list[str]:
        """What a pod needs to find the task.

        Args:
            task: The task.
            root_dir: The project's folder, from which modules are named.

        Raises:
            ConfigError: The environment is no variable of a module.
        """
        environment = task.parent_env() if task.parent_env else None
        module, variable = _variable_of(environment, Path(root_dir or Path.cwd()).resolve())
        return ["module", module, "environment", variable, "task", task.name]

    def load_task(self, loader_args: Sequence[str]) -> Any:
        """The task, from what `loader_args` gave: the module is imported, and with it the config read again."""
        _, module, _, variable, _, name = loader_args
        environment = getattr(importlib.import_module(module), variable)
        return environment.tasks[name]


def _variable_of(environment: flyte.TaskEnvironment | None, root: Path) -> tuple[str, str]:
    """The module and the variable that hold an environment."""
    for name, module in list(sys.modules.items()):
        if environment is None or not isinstance(module, ModuleType) or name.partition(".")[0] == "flyte":
            continue
        for variable, value in list(vars(module).items()):
            if value is environment and (named := _name_of(module, root)):
                return named, variable
    raise ConfigError(
        "a pod finds the tasks by the variable of a module, and none holds this environment",
        where=environment.name if environment is not None else None,
        hint="Write in a module: environment = pipeline_environment(…)",
    )


def _name_of(module: ModuleType, root: Path) -> str | None:
    """The name by which a pod imports a module: from its place in the project, or that of an installed package."""
    if not module.__file__:
        return None
    file = Path(module.__file__).resolve()
    if "site-packages" not in file.parts and file.is_relative_to(root):
        return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    return None if module.__name__ == "__main__" else module.__name__
