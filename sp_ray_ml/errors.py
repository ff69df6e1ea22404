"""The errors of sp_ray_ml: one root, and a built-in beside it that a caller would catch.

    SpRayError
    ├── ConfigError (ValueError)            a config or setting is wrong; holds every problem found
    ├── DataError (ValueError)              data is not what was declared
    │   ├── TableNotFoundError (LookupError)    no such table
    │   ├── ColumnNotFoundError (LookupError)   no such column
    │   └── LeakageError                        held-out events would reach training
    ├── StorageError (OSError)              a file or folder cannot be read or written
    │   ├── LockedError                         another process holds it
    │   └── WarehouseError                      a warehouse refused
    ├── CheckpointError (ValueError)        a checkpoint is damaged, foreign or of another version
    ├── ResourceError (RuntimeError)        the machine or cluster cannot give what was asked for
    ├── TrainingError (RuntimeError)        training cannot go on (a loss that is not finite, say)
    ├── TrackingError (RuntimeError)        a tracking server or store refused
    ├── ClusterError (RuntimeError)         a Ray cluster cannot be made, found, reached or used
    │   ├── ClusterNotFoundError (LookupError)  no such cluster, worker group or namespace
    │   ├── ClusterExistsError                  the name is taken by a cluster of another spec
    │   ├── ClusterUnhealthyError               it cannot become usable, and why
    │   ├── ClusterTimeoutError (TimeoutError)  it did not become so in time, and why
    │   ├── VersionMismatchError                client, image and cluster do not fit
    │   └── KubernetesError                     the API server cannot be reached, or refused
    │       └── KubernetesAccessError (PermissionError)  credentials or permissions are missing
    └── MissingDependencyError (ImportError)    an optional library is not installed

Each says what, where, why, and ends with the next command to try. Every error pickles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = [
    "CheckpointError",
    "ClusterError",
    "ClusterExistsError",
    "ClusterNotFoundError",
    "ClusterTimeoutError",
    "ClusterUnhealthyError",
    "ColumnNotFoundError",
    "ConfigError",
    "DataError",
    "KubernetesAccessError",
    "KubernetesError",
    "LeakageError",
    "LockedError",
    "MissingDependencyError",
    "Problem",
    "ResourceError",
    "SpRayError",
    "StorageError",
    "TableNotFoundError",
    "TrackingError",
    "TrainingError",
    "VersionMismatchError",
    "WarehouseError",
]


class SpRayError(Exception):
    """Root of all errors that sp_ray_ml raises on purpose.

    Args:
        message: What happened and why, in one sentence.
        where: The place: a dotted path, a file and line, a table and column.
        hint: What to do next, preferably a command.
    """

    exit_code: ClassVar[int] = 1
    """What `sp-ray` exits with: 2 for the user's mistake, 1 for a failed operation."""

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.advice}" if self.where else self.advice

    @property
    def advice(self) -> str:
        """What happened and what to do next, without the place."""
        end = "" if self.message.endswith(("?", "!", ".")) else "."
        return f"{self.message}{end} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), dict(self.__dict__), self.args)


def _rebuild(kind: type[SpRayError], state: dict[str, Any], args: tuple[Any, ...]) -> SpRayError:
    # Beside another built-in `OSError` is not first, but only it can make one of its kind.
    error = (OSError.__new__ if issubclass(kind, OSError) else kind.__new__)(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a config.

    Attributes:
        path: Dotted path of the setting, `train.model.dim`; empty for the whole file.
        message: What is wrong, with a near match where there is one.
        file: The file, where the config came from one.
        line: Line in that file, from 1.
    """

    path: str
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = (
            f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        )
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


class ConfigError(SpRayError, ValueError):
    """A config or a setting is wrong. `problems` has every mistake found, in the order of the file."""

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        problems: tuple[Problem, ...] = (),
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.problems = problems

    def __str__(self) -> str:
        if not self.problems:
            return super().__str__()
        lines = "\n".join(str(problem) for problem in self.problems)
        return f"{lines}\n{self.hint}" if self.hint else lines


class DataError(SpRayError, ValueError):
    """Data is not what was declared: a type, a null, a duplicate id, an empty result."""

    exit_code = 2


class TableNotFoundError(DataError, LookupError):
    """The warehouse has no such table."""


class ColumnNotFoundError(DataError, LookupError):
    """The table has no such column."""


class LeakageError(DataError):
    """Held-out events would reach the graph, the features or a preprocessor's fit."""

    exit_code = 1


class StorageError(SpRayError, OSError):
    """A file or folder cannot be read or written."""


class LockedError(StorageError):
    """Another process holds the run's folder or the database."""


class WarehouseError(StorageError):
    """A warehouse cannot be opened, or refused a query or a write."""


class CheckpointError(SpRayError, ValueError):
    """A checkpoint is missing, damaged, of another kind or of a newer version."""


class ResourceError(SpRayError, RuntimeError):
    """The machine or cluster cannot give the CPUs, GPUs or memory that were asked for."""

    exit_code = 2


class TrainingError(SpRayError, RuntimeError):
    """Training cannot go on."""


class TrackingError(SpRayError, RuntimeError):
    """The tracking server or store refused."""


class ClusterError(SpRayError, RuntimeError):
    """A Ray cluster cannot be made, found, reached or used."""


class ClusterNotFoundError(ClusterError, LookupError):
    """There is no such cluster, worker group or namespace."""

    exit_code = 2


class ClusterExistsError(ClusterError):
    """The name is taken by a cluster of another spec; the message has the differences."""

    exit_code = 2


class ClusterUnhealthyError(ClusterError):
    """The cluster cannot become usable; the message is the cause and the hint its remedy."""


class ClusterTimeoutError(ClusterError, TimeoutError):
    """The cluster did not get where it was awaited in time."""


class VersionMismatchError(ClusterError):
    """The versions of client, image and cluster do not fit; the hint names the pin."""

    exit_code = 2


class KubernetesError(ClusterError):
    """The API server cannot be reached, or refused a request.

    Args:
        message: As for every error.
        where: As for every error.
        hint: As for every error.
        status: HTTP status; 0 where there was no answer.
        reason: Kubernetes' reason, `AlreadyExists` or `Invalid`, say.
        details: The details of Kubernetes' `Status` object.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        status: int = 0,
        reason: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.status = status
        self.reason = reason
        self.details = details or {}


class KubernetesAccessError(KubernetesError, PermissionError):
    """Credentials are missing, expired or not allowed to do this."""

    exit_code = 2


class MissingDependencyError(SpRayError, ImportError):
    """An optional library is not installed; the hint names the extra that brings it."""

    exit_code = 2
