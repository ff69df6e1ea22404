"""The step `evaluate`: the model beside its baselines on the test items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sp_ray_ml._event_steps.catalog import USER, Catalog
from sp_ray_ml._event_steps.topology import Topology
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.inference._evaluation_job import UserUnits, segment_columns
from sp_ray_ml.inference.evaluate import evaluate_all
from sp_ray_ml.metrics.ranking import RankingMetrics
from sp_ray_ml.storage import write_json
from sp_ray_ml.train.recommender import Recommender

if TYPE_CHECKING:
    from sp_ray_ml._runs import StepContext
    from sp_ray_ml.inference.settings import Evaluate

__all__ = ["check_k", "measure"]


def check_k(settings: Mapping[str, int], num_items: int) -> None:
    """Refuse a k beyond the catalogue before any work is done for it.

    Raises:
        ConfigError: Naming the setting.
    """
    for where, k in settings.items():
        if k > num_items:
            raise ConfigError(f"k = {k} is larger than the catalogue of {num_items} items", where=where)


def measure(
    context: StepContext, recommender: Recommender, catalog: Catalog, topology: Topology, settings: Evaluate
) -> dict[str, Any]:
    """Rank the test items with the model and with each baseline; keep what each user's are, for `sp-ray compare`.

    Raises:
        DataError: No user has a test item.
        ConfigError: A k is larger than the catalogue.
    """
    scorers: dict[str, Any] = {"model": recommender}
    for baseline in settings.baselines:
        name = type(baseline).__name__.lower()
        same = sum(other == name or other.startswith(f"{name}-") for other in scorers)
        scorers[f"{name}-{same + 1}" if same else name] = baseline  # the same one with other settings
    users = int(((np.diff(topology.test.indptr) > 0) | (topology.unknown_items > 0)).sum())
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        context.progress(done, users * len(scorers), "users ranked")

    table_of_users = (
        catalog.nodes[USER].take(pa.array(topology.order[USER])) if USER in catalog.nodes else None
    )
    units = UserUnits(
        context.output,
        RankingMetrics(settings.k, recommender.num_items, average_precision=settings.map).names,
        recommender.user_column,
        recommender.user_ids,
        recommender.item_ids,
        settings.k,
        segment_columns(settings.by, table_of_users, "the table of users"),
    )
    table = evaluate_all(
        scorers,
        topology.test,
        topology.seen,
        settings.k,
        unknown=topology.unknown_items,
        strangers=topology.unknown_users,
        average_precision=settings.map,
        progress=progress,
        on_users=units.add,
    )
    found = units.finish(len(topology.unknown_users), settings.bootstrap)
    table["model"] |= found.metrics
    write_json(context.output / "metrics.json", table)
    write_json(context.output / "intervals.json", found.intervals)
    for name, row in table.items():
        if "skipped" in row:
            context.note(f"baseline {name} was left out: {row['skipped']}")
    return {name: value for name, value in table["model"].items() if "/" not in name}
