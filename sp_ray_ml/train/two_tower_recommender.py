"""`TwoTowerRecommender`: the sealed predictor of `TwoTowerTrainer`, which also knows users and items that come later.

What `Recommender` has, and:

model.safetensors        the towers' weights
towers.safetensors       the GNN's vectors of the items, and how many users each item had
preprocessors.json       how columns of users and items become numbers
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from sp_ray_ml.data.preprocessors import FittedFeatures
from sp_ray_ml.data.source import as_source, require_columns
from sp_ray_ml.errors import ColumnNotFoundError, DataError
from sp_ray_ml.storage import read_json
from sp_ray_ml.train._recommender_files import write_tensors
from sp_ray_ml.train._towers import Towers, item_vectors, last_items
from sp_ray_ml.train.recommender import Recommender

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train.pyg import RecommenderTraining

__all__ = ["TwoTowerRecommender", "recommender_of"]


class TwoTowerRecommender(Recommender):
    """Recommends to known users as `Recommender` does, to new ones by their features and what they lately had.

    Attributes:
        towers: What makes vectors.
        features: Fitted preprocessors by `user` and `item`, of those that have features.
        item_graph: float32 [items, base dim], the GNN's vectors; zero for items that it did not know.
        item_events: int64 [items], how many users each item had in the training history.
        new_shift: What the bias of a new item is shifted by.
    """

    kind = "two_tower"
    _files = (*Recommender._files, "model.safetensors", "towers.safetensors")

    def __init__(
        self,
        *,
        towers: Towers,
        features: Mapping[str, FittedFeatures],
        item_graph: NDArray[np.float32],
        item_events: NDArray[np.int64],
        new_shift: float,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.towers, self.features = towers, dict(features)
        self.item_graph, self.item_events, self.new_shift = item_graph, item_events, new_shift

    def __repr__(self) -> str:
        return f"TwoTower{super().__repr__()}"

    def user_index(self, users: Sequence[Any] | pa.Array) -> NDArray[np.int64]:
        """Positions of known users given by their ids.

        Raises:
            DataError: A user is not known.
        """
        try:
            return super().user_index(users)
        except DataError as error:
            columns = self.features["user"].columns if "user" in self.features else []
            hint = f"New users come as a table: predict(table with {', '.join([self.user_column, *columns])})"
            raise DataError(error.message, where=error.where, hint=hint) from None

    def predict(self, table: Any, k: int = 20, *, history: Any = None) -> pa.Table:
        """Recommendations for the users of a table, known ones and new ones.

        A user whom `history` names, and one who is not known, is scored by the user tower: by the features in the
        table's columns, as far as it has them, and the history. With neither, items come by their popularity.

        Args:
            table: One row a user: the id and, for new users, the columns of the users' features.
            k: How many items each.
            history: What users lately had, one row an event in order of time: user and item under their names. It
                takes the place of the training history of users that have one.

        Returns:
            As `recommend`, in the order of the table. What a user has had is left out.

        Raises:
            ColumnNotFoundError: A column is not there: the user's, or some of the features' but not all.
            DataError: A value that a preprocessor refuses, an item of `history` that is not known, a user twice.
        """
        rows = as_source(table, "table").to_arrow()
        require_columns(rows.schema, [self.user_column], "predict")
        ids = self._cast(rows[self.user_column], self.user_ids.type, "predict", self.user_column)
        if len(pc.unique(ids)) < len(ids):
            raise DataError("a user is there more than once", where=f"predict.{self.user_column}")
        user, item = self._history(history, ids)
        place = pc.index_in(ids, self.user_ids)
        new = place.is_null().to_numpy(zero_copy_only=False)
        new[user] = True
        if not new.any():
            return super().predict(rows, k)
        mask = pa.array(new)
        stranger = self._strangers(rows.filter(mask), ids.filter(mask), np.cumsum(new)[user] - 1, item)
        parts = [stranger.recommend(None, k)]
        if not new.all():
            parts.append(self.recommend(ids.filter(pc.invert(mask)), k))
        found = pa.concat_tables(parts)
        order = pc.index_in(found[self.user_column].combine_chunks(), ids).to_numpy()
        return found.take(pa.array(np.lexsort((found["rank"].to_numpy(), order))))

    def add_items(self, table: Any, *, title: str | None = None) -> TwoTowerRecommender:
        """The same recommender with more items, without training: their vectors come of their features alone.

        An item that is added gets the vector that it would have had as one without events in training.

        Args:
            table: One row an item: the id and the columns of the items' features, under their names.
            title: Column with the names to show.

        Returns:
            A new recommender; `save` seals it.

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: Items had no features in training, an id is known or twice, a value that a preprocessor refuses.
        """
        if "item" not in self.features:
            raise DataError(
                "items had no features in training: nothing says what a new one is",
                where="add_items",
                hint="Name columns under nodes.item.features (in Python: items=…), and train again",
            )
        rows = as_source(table, "items").to_arrow()
        wanted = [self.item_column, *self.features["item"].columns, *([title] if title else [])]
        require_columns(rows.schema, wanted, "add_items")
        ids = self._cast(rows[self.item_column], self.item_ids.type, "add_items", self.item_column)
        where = f"add_items.{self.item_column}"
        if len(pc.unique(ids)) < len(ids):
            raise DataError("an item is there more than once", where=where)
        known = ids.filter(pc.is_valid(pc.index_in(ids, self.item_ids)))
        if len(known):
            shown = ", ".join(str(value) for value in known[:3].to_pylist())
            raise DataError(f"{len(known)} items are known already, such as {shown}", where=where)
        count, vectors, said = len(ids), *self._of_features(rows)
        nothing = np.zeros(count, np.int64)
        more = item_vectors(vectors, said + np.float32(self.new_shift), nothing)
        shape = (self.num_users, self.num_items + count)
        titles = self.titles
        if titles is not None:
            names = rows[title].combine_chunks().cast(pa.string()) if title else pa.nulls(count, pa.string())
            titles = pa.concat_arrays([titles.cast(pa.string()), names])
        return TwoTowerRecommender(
            towers=self.towers,
            features=self.features,
            item_graph=np.concatenate(
                [self.item_graph, np.zeros((count, self.item_graph.shape[1]), np.float32)]
            ),
            item_events=np.concatenate([self.item_events, nothing]),
            new_shift=self.new_shift,
            users=self.user_ids,
            items=pa.concat_arrays([self.item_ids, ids]),
            titles=titles,
            user_vectors=self.user_vectors,
            item_vectors=np.concatenate([self.item_vectors, more]),
            item_bias=np.concatenate([self.item_bias, np.zeros(count, np.float32)]),
            seen=scipy.sparse.csr_array((self.seen.data, self.seen.indices, self.seen.indptr), shape=shape),
            columns=(self.user_column, self.item_column),
            embedding_dim=self.embedding_dim,
            manifest=self.manifest,
        )

    def _of_features(self, rows: pa.Table) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        nothing = np.zeros((len(rows), self.item_graph.shape[1]), np.float32)
        return self.towers.items(self.features["item"].encode(rows), nothing, np.zeros(len(rows), dtype=bool))

    def _history(self, history: Any, ids: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each event of the table's users, the row of the user and the item."""
        if history is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        events = as_source(history, "history").to_arrow()
        require_columns(events.schema, [self.user_column, self.item_column], "history")
        who = self._cast(events[self.user_column], self.user_ids.type, "history", self.user_column)
        row = pc.index_in(who, ids)
        theirs = pc.is_valid(row)
        what = events[self.item_column].combine_chunks().filter(theirs)
        item = self._index(what, self.item_ids, self.item_column)
        return row.drop_null().to_numpy().astype(np.int64), item

    def _strangers(
        self, rows: pa.Table, ids: pa.Array, user: NDArray[np.int64], item: NDArray[np.int64]
    ) -> Recommender:
        """A recommender of the same items for users who have no vector yet."""
        order = np.argsort(user, kind="stable")
        counts = np.bincount(user, minlength=len(ids))
        indptr = np.concatenate([[0], np.cumsum(counts)])
        history = last_items(indptr, item[order], self.num_items, self.towers.history, self.towers.half_life)
        seen = scipy.sparse.csr_array(
            (np.ones(len(item), np.int8), item[order], indptr), shape=(len(ids), self.num_items)
        )
        seen.sum_duplicates()
        vectors = self.towers.user_vectors(self._user_features(rows), history, counts, self.item_graph)
        return Recommender(
            users=ids,
            items=self.item_ids,
            titles=self.titles,
            user_vectors=vectors,
            item_vectors=self.item_vectors,
            item_bias=self.item_bias,
            seen=seen,
            columns=(self.user_column, self.item_column),
            embedding_dim=self.embedding_dim,
        )

    def _user_features(self, rows: pa.Table) -> NDArray[np.float32] | None:
        """The users' features, or None where the table has none of their columns."""
        if "user" not in self.features:
            return None
        wanted = self.features["user"].columns
        missing = [name for name in wanted if name not in rows.column_names]
        if len(missing) == len(wanted):
            return None
        if missing:
            raise ColumnNotFoundError(
                f"the table has no column {', '.join(map(repr, missing))}, which new users' features need",
                where="predict",
                hint=f"Add it, or leave all of {', '.join(wanted)} out to go by history or popularity alone",
            )
        return self.features["user"].encode(rows)

    def _cast(self, column: pa.ChunkedArray, kind: pa.DataType, where: str, name: str) -> pa.Array:
        ids = column.combine_chunks()
        try:
            ids = ids.cast(kind)
        except pa.ArrowException as error:
            raise DataError(f"the ids are no {kind}: {error}", where=f"{where}.{name}") from None
        if ids.null_count:
            raise DataError(f"{ids.null_count} of {len(ids)} rows have no {name}", where=where)
        return ids

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        preprocessors: Mapping[str, Any] | None = None,
        weights: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Seal into a folder that appears whole: see `Recommender.save`. Preprocessors and weights are its own."""
        super().save(
            path,
            preprocessors=preprocessors or {name: each.to_json() for name, each in self.features.items()},
            weights=weights or self.towers.weights,
            about=about,
        )

    def _save_more(self, folder: Path) -> dict[str, Any]:
        arrays = {"item_graph": self.item_graph, "item_events": self.item_events.astype(np.int64)}
        write_tensors(
            folder / "towers.safetensors", {name: np.ascontiguousarray(each) for name, each in arrays.items()}
        )
        return {"towers": {**self.towers.about(), "new_shift": self.new_shift}}

    @classmethod
    def _parts(cls, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
        from safetensors.numpy import load_file

        about = dict(manifest["towers"])
        shift, arrays = about.pop("new_shift"), load_file(folder / "towers.safetensors")
        fitted = read_json(folder / "preprocessors.json")
        return {
            **super()._parts(folder, manifest),
            "towers": Towers(load_file(folder / "model.safetensors"), **about),
            "features": {name: FittedFeatures.from_json(state) for name, state in fitted.items()},
            "item_graph": arrays["item_graph"],
            "item_events": arrays["item_events"],
            "new_shift": float(shift),
        }


def recommender_of(
    result: RecommenderTraining, preprocessors: Mapping[str, Any], **common: Any
) -> Recommender:
    """The predictor of a training.

    Args:
        result: Of a GNN, or of two towers.
        preprocessors: Fitted state by node type, as JSON.
        common: Ids, titles, `seen`, columns and what it can be renewed with: see `Recommender`.
    """
    from sp_ray_ml.train.two_tower import TwoTowerTraining

    common |= {
        "user_vectors": result.user_vectors,
        "item_vectors": result.item_vectors,
        "item_bias": result.item_bias,
        "embedding_dim": result.embedding_dim,
    }
    if not isinstance(result, TwoTowerTraining):
        return Recommender(**common)
    return TwoTowerRecommender(
        towers=result.towers,
        features={name: FittedFeatures.from_json(state) for name, state in preprocessors.items()},
        item_graph=result.item_graph,
        item_events=result.item_events,
        new_shift=result.new_shift,
        **common,
    )
