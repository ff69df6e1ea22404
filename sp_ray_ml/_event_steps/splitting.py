"""The step `split`: the part of each event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml._event_steps.catalog import Catalog
from sp_ray_ml._step_output import keep_labels
from sp_ray_ml.data.splits import Split, TableSplit, check_no_leakage

if TYPE_CHECKING:
    from sp_ray_ml._runs import StepContext

__all__ = ["split"]


def split(context: StepContext, catalog: Catalog, settings: Split, seed: int) -> dict[str, Any]:
    """Put every event into training, validation or test, and make sure that nothing leaks.

    Raises:
        DataError: Times are needed and missing, or a part would be empty.
        LeakageError: A held-out event is older than what it is held out from.
    """
    user, item = catalog.pairs()
    time = catalog.column("time")
    if isinstance(settings, TableSplit):
        assignment = settings.assign(user, item, time, seed=seed, given=catalog.column("given"))
    else:
        assignment = settings.assign(user, item, time, seed=seed)
    check_no_leakage(assignment, user, item, time)
    return keep_labels(
        context, assignment, "no event is held out for validation: training runs for all its epochs"
    )
