"""The steps `predict` and `write`: lists for users, and what goes back into a warehouse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from sp_ray_ml._step_output import output_of
from sp_ray_ml.data.source import Source, as_source
from sp_ray_ml.data.warehouse import open_warehouse
from sp_ray_ml.graph._node_vectors import vectors_source
from sp_ray_ml.storage import write_json
from sp_ray_ml.train.recommender import Recommender

if TYPE_CHECKING:
    from sp_ray_ml._runs import StepContext
    from sp_ray_ml.data.warehouse import Warehouse
    from sp_ray_ml.inference.settings import Predict

__all__ = ["predict", "write"]


def predict(
    context: StepContext, recommender: Recommender, warehouse: Warehouse, settings: Predict
) -> dict[str, Any]:
    """Rank items for every user, or for those of a table, into a Parquet file; in bounded memory.

    Raises:
        DataError: The table names a user that the model does not know.
    """
    users = np.arange(recommender.num_users)
    if settings.users:
        table = warehouse.source(settings.users, columns=[recommender.user_column]).to_arrow()
        users = np.unique(recommender.user_index(table[recommender.user_column].combine_chunks()))
    done = rows = 0
    file = context.output / "recommendations.parquet"
    with pq.ParquetWriter(file, recommender.output_schema) as writer:
        for batch, ranked in recommender.recommend_batches(users, settings.k):
            writer.write_batch(ranked)
            done, rows = done + len(batch), rows + ranked.num_rows
            context.progress(done, len(users), "users")
    return {"users": len(users), "rows": rows}


def write(
    context: StepContext, folder: Path, recommender: Recommender, settings: Predict, commit: str
) -> dict[str, Any]:
    """Write the recommendations, and embeddings when asked for, into the output warehouse; each all or nothing.

    Args:
        context: The step's.
        folder: Where `predict` wrote.
        recommender: For the embeddings.
        settings: What and where.
        commit: Names this result: what was committed under it is not written again.
    """
    output = settings.output
    warehouse = open_warehouse(output.warehouse)
    with output_of(folder):
        tables: dict[str, Source] = {output.table: as_source(str(folder / "recommendations.parquet"))}
    for name, ids, column, vectors in (
        (output.embeddings.user, recommender.user_ids, recommender.user_column, recommender.user_vectors),
        (output.embeddings.item, recommender.item_ids, recommender.item_column, recommender.item_vectors),
    ):
        if name:
            tables[name] = vectors_source(ids, vectors[:, : recommender.embedding_dim], column)
    written = {}
    for table, source in tables.items():
        partition_by, mode = output.partition_by, output.mode
        if table != output.table:  # embeddings have no such column
            partition_by, mode = None, "replace" if mode == "partition" else mode
        written[table] = warehouse.write(
            table, source, mode=mode, partition_by=partition_by, commit=f"{commit}:{table}"
        )
    write_json(context.output / "written.json", written)
    return {"tables": list(tables), "rows": sum(written.values()), "already": not any(written.values())}
