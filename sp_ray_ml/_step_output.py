"""What steps left in their folders, opened by those after them; what is damaged there is one clear error."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.errors import StorageError

if TYPE_CHECKING:
    from sp_ray_ml._runs import StepContext
    from sp_ray_ml.data.splits import SplitAssignment

__all__ = ["keep_labels", "load_labels", "load_metrics", "output_of"]


@contextmanager
def output_of(folder: Path) -> Iterator[None]:
    """Around what reads an earlier step's output: a file of it that is gone or damaged is one clear error."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise StorageError(
            f"the output of the step {folder.name} is damaged: {error}",
            where=str(folder),
            hint="Remove this folder and run again, or start over with --fresh",
        ) from error


def keep_labels(context: StepContext, assignment: SplitAssignment, unvalidated: str) -> dict[str, Any]:
    """Write the part of each row, for `load_labels`; the step's summary.

    Args:
        context: The step `split`.
        assignment: The parts.
        unvalidated: The note for a split that leaves no row for validation.
    """
    np.save(context.output / "label.npy", assignment.label)
    counts = assignment.counts()
    if not counts["validation"]:
        context.note(unvalidated)
    return {**counts, "cut": assignment.cut}


def load_labels(folder: Path) -> NDArray[np.int8]:
    """The part of each event: TRAIN, VALIDATION or TEST."""
    with output_of(folder):
        return np.load(folder / "label.npy", allow_pickle=False)  # type: ignore[no-any-return]


def load_metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """What `measure` wrote: metrics by model, the trained one first."""
    with output_of(folder):
        return json.loads((folder / "metrics.json").read_bytes())  # type: ignore[no-any-return]
