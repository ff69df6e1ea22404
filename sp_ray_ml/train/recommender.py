"""`Recommender`: the sealed predictor of a trainer that ranks items for users."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sp_ray_ml.config import near_match
from sp_ray_ml.errors import CheckpointError, ColumnNotFoundError, ConfigError, DataError
from sp_ray_ml.storage import new_folder
from sp_ray_ml.train import _recommender_files as files
from sp_ray_ml.train.predictor import Predictor, seal_folder

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import scipy.sparse
    from numpy.typing import NDArray

    from sp_ray_ml.train._renewal import Renewal
    from sp_ray_ml.train.pyg import PyGTrainer

__all__ = ["Recommender"]

_OF_TRAINING = ("config", "environment", "metrics", "run", "validation")


class Recommender(Predictor):
    """Recommends items to users by the product of their vectors, plus the item's bias.

    The score of item `i` for user `u` is `user_vectors[u] @ item_vectors[i] + item_bias[i]`.

    Attributes:
        user_ids: Original ids, in the order of the vectors.
        item_ids: Likewise.
        titles: Names of the items to show, or None.
        user_vectors: float32 [users, dim].
        item_vectors: float32 [items, dim].
        item_bias: float32 [items].
        embedding_dim: How many of the first entries of the vectors are the node's embedding, which `similar_items`
            compares; what follows belongs to the score only.
        seen: What each user has had, [users, items]; never recommended unless asked for.
    """

    kind = "recommender"
    _files: ClassVar[Sequence[str]] = files.NEEDED

    def __init__(
        self,
        *,
        users: pa.Array,
        items: pa.Array,
        user_vectors: NDArray[np.float32],
        item_vectors: NDArray[np.float32],
        item_bias: NDArray[np.float32],
        seen: scipy.sparse.csr_array,
        titles: pa.Array | None = None,
        columns: tuple[str, str] = ("user", "item"),
        embedding_dim: int | None = None,
        manifest: Mapping[str, Any] | None = None,
        renewal: Renewal | Path | None = None,
    ) -> None:
        super().__init__(manifest or {})
        self._renewal = renewal
        if (len(users), len(items)) != (len(user_vectors), len(item_vectors)):
            raise CheckpointError(
                f"{len(users)} users and {len(items)} items have {len(user_vectors)} and {len(item_vectors)} vectors"
            )
        self.user_ids, self.item_ids, self.titles = users, items, titles
        self.user_vectors, self.item_vectors, self.item_bias = user_vectors, item_vectors, item_bias
        self.seen = seen
        self.embedding_dim = item_vectors.shape[1] if embedding_dim is None else embedding_dim
        self.user_column, self.item_column = columns

    @property
    def num_users(self) -> int:
        """How many users have a vector."""
        return len(self.user_vectors)

    @property
    def num_items(self) -> int:
        """How many items can be recommended."""
        return len(self.item_vectors)

    @property
    def _show_titles(self) -> bool:
        return self.titles is not None and "title" not in {self.user_column, self.item_column}

    def __repr__(self) -> str:
        return f"Recommender({self.num_users:,} users, {self.num_items:,} items, {self.embedding_dim} dimensions)"

    @property
    def renewal(self) -> Renewal:
        """What was sealed to renew it with; read when it is first wanted.

        Raises:
            CheckpointError: Nothing was.
        """
        from sp_ray_ml.train._renewal import Renewal

        if self._renewal is None:
            raise CheckpointError(
                "nothing was sealed of its training to renew it with: it was sealed by an earlier version, or items "
                "were added to it",
                where="renewed",
                hint="Train again: sp-ray run CONFIG",
            )
        if isinstance(self._renewal, Path):
            self._renewal = Renewal.load(self._renewal, self.manifest["renewal"])
        return self._renewal

    def renewed(
        self,
        events: Any = None,
        *,
        users: Any = None,
        items: Any = None,
        time: str | None = None,
        title: str | None = None,
        trainer: PyGTrainer | None = None,
    ) -> Recommender:
        """The same model with the events since its training, without training: its weights over the graph of now.

        Users and items that are new have the vectors that their features and events give. With nothing new all
        vectors are those of the training, to the last bit. How often new items come is learned of the events since,
        unless the trainer's `new_items` says it. `sp-ray predict` does this with a pipeline's warehouse.

        Args:
            events: Those since the training, whatever `as_source` takes, with the same columns for user and item.
            users: One row a user, where users had features at the training: all of them, under the same columns.
            items: Likewise.
            time: The events' column with their time; needed if the training had one.
            title: Column of `items` with the names to show.
            trainer: The trainer, where its network is of your own and has no import path.

        Returns:
            A new recommender; `save` seals it, and it can be renewed again.

        Raises:
            CheckpointError: Nothing was sealed to renew it with.
            ColumnNotFoundError: A column is not there.
            DataError: A table is missing, an id of another type, a known user or item without a row, a value that a
                preprocessor refuses.
        """
        from sp_ray_ml.train._renew import renew
        from sp_ray_ml.train._renew_tables import arrived

        came = arrived(self, events, {"user": users, "item": items}, time, title)
        return renew(self, came, trainer=trainer)[0]

    def score(self, users: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """The scores of all items for users given by their index, float32 [users, items]."""
        scores: NDArray[np.float32] = self.user_vectors[users] @ self.item_vectors.T
        scores += self.item_bias
        return scores

    def recommend(
        self, users: Sequence[Any] | pa.Array | None = None, k: int = 20, *, exclude_seen: bool = True
    ) -> pa.Table:
        """The best items for some users.

        Args:
            users: Their ids; all users without.
            k: How many items each.
            exclude_seen: Leave out what the user had in the training history.

        Returns:
            Columns user, rank (int32, from 1), item, title where there are titles, score (float32), the ids under
            their original names; fewer than `k` rows for a user who has seen nearly all.

        Raises:
            DataError: A user is not known.
            ConfigError: `k` is larger than the catalogue.
        """
        import numpy as np
        import pyarrow as pa

        index = np.arange(self.num_users) if users is None else self.user_index(users)
        batches = [ranked for _, ranked in self.recommend_batches(index, k, exclude_seen=exclude_seen)]
        table = pa.Table.from_batches(batches, schema=self.output_schema)
        if self._show_titles:
            assert self.titles is not None
            codes = pa.compute.index_in(table[self.item_column], self.item_ids)
            table = table.add_column(3, "title", self.titles.take(codes.combine_chunks()))
        return table

    def recommend_batches(
        self, users: NDArray[np.integer[Any]], k: int, *, exclude_seen: bool = True
    ) -> Iterator[tuple[NDArray[np.integer[Any]], pa.RecordBatch]]:
        """As `recommend`, for users given by their index, in bounded memory.

        Yields:
            Some of the users, and their recommendations as a record batch of `output_schema`.
        """
        import numpy as np
        import pyarrow as pa

        from sp_ray_ml.metrics.rank import rank

        if k > self.num_items:
            raise ConfigError(
                f"k = {k} is larger than the catalogue of {self.num_items} items", where="predict.k"
            )
        for batch, items, scores in rank(self, users, k, self.seen if exclude_seen else None):
            found = items >= 0
            rows = np.nonzero(found)
            columns = [
                self.user_ids.take(pa.array(batch[rows[0]])),
                pa.array((rows[1] + 1).astype(np.int32)),
                self.item_ids.take(pa.array(items[found])),
                pa.array(scores[found]),
            ]
            yield batch, pa.record_batch(columns, schema=self.output_schema)

    @property
    def output_schema(self) -> pa.Schema:
        """Columns of the recommendations: user, rank, item, score."""
        import pyarrow as pa

        return pa.schema(
            [
                (self.user_column, self.user_ids.type),
                ("rank", pa.int32()),
                (self.item_column, self.item_ids.type),
                ("score", pa.float32()),
            ]
        )

    def mlflow_signature(self) -> dict[str, list[dict[str, str]]]:
        """Input and output columns in MLflow's own form, for `mlflow models serve`."""
        import pyarrow as pa

        def kind(of: pa.DataType) -> str:
            return "string" if pa.types.is_string(of) or pa.types.is_large_string(of) else "long"

        user = {"name": self.user_column, "type": kind(self.user_ids.type)}
        item = {"name": self.item_column, "type": kind(self.item_ids.type)}
        title = [{"name": "title", "type": "string"}] if self._show_titles else []
        outputs = [
            user,
            {"name": "rank", "type": "integer"},
            item,
            *title,
            {"name": "score", "type": "float"},
        ]
        return {"inputs": [user], "outputs": outputs}

    def similar_items(self, items: Sequence[Any] | pa.Array, k: int = 10) -> pa.Table:
        """The items nearest to some items, by the cosine of their vectors.

        Returns:
            Columns item, rank (int32, from 1), similar (the other item's id), title where there are titles, and
            cosine (float32).

        Raises:
            DataError: An item is not known.
        """
        import numpy as np
        import pyarrow as pa

        from sp_ray_ml.graph._nearest import nearest

        index = self._index(items, self.item_ids, self.item_column)
        embeddings = self.item_vectors[:, : self.embedding_dim]
        k = min(k, self.num_items - 1)
        if k == 0:  # there is no other item
            found, cosine = np.empty((len(index), 0), np.int32), np.empty((len(index), 0), np.float32)
        else:
            found, cosine = nearest(embeddings[index], embeddings, k, exclude=index)
        flat = pa.array(found.ravel())
        columns = {
            self.item_column: self.item_ids.take(pa.array(np.repeat(index, found.shape[1]))),
            "rank": pa.array(np.tile(np.arange(1, found.shape[1] + 1, dtype=np.int32), len(index))),
            "similar": self.item_ids.take(flat),
        }
        if self._show_titles:
            assert self.titles is not None
            columns["title"] = self.titles.take(flat)
        return pa.table({**columns, "cosine": pa.array(cosine.ravel())})

    def predict(self, table: pa.Table, k: int = 20) -> pa.Table:
        """Recommendations for the users in the table's user column.

        Raises:
            ColumnNotFoundError: The table has no such column.
            DataError: A user is not known.
        """
        if self.user_column not in table.column_names:
            near = near_match(self.user_column, table.column_names)
            raise ColumnNotFoundError(f"the table has no column {self.user_column!r}{near}", where="predict")
        return self.recommend(table[self.user_column].combine_chunks(), k)

    def user_index(self, users: Sequence[Any] | pa.Array) -> NDArray[np.int64]:
        """Positions of users given by their ids.

        Raises:
            DataError: A user is not known.
        """
        return self._index(users, self.user_ids, self.user_column)

    def _index(self, wanted: Sequence[Any] | pa.Array, known: pa.Array, column: str) -> NDArray[np.int64]:
        import pyarrow as pa
        import pyarrow.compute as pc

        if isinstance(wanted, str | bytes | numbers.Number):
            wanted = [wanted]
        try:
            ids = wanted if isinstance(wanted, pa.Array | pa.ChunkedArray) else pa.array(wanted)
            ids = ids.cast(known.type)
        except (pa.ArrowException, TypeError) as error:
            raise DataError(f"the ids are no {known.type}: {error}", where=column) from None
        index = pc.index_in(ids, known)
        if index.null_count:
            unknown = ids.filter(pc.is_null(index))
            shown = ", ".join(str(value) for value in unknown[:3].to_pylist())
            raise DataError(
                f"{len(unknown)} of {len(ids)} ids are not in the model, such as {shown}",
                where=column,
                hint=f"Known ones, for example: {', '.join(str(v) for v in known[:3].to_pylist())}",
            )
        return index.to_numpy(zero_copy_only=False).astype("int64")  # type: ignore[no-any-return]

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        preprocessors: Mapping[str, Any] | None = None,
        weights: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Seal into a folder that appears whole.

        Args:
            path: The folder.
            preprocessors: Fitted state by node type, as JSON; without, that of the training.
            weights: The model's weights, NumPy arrays by name; without, those of the training.
            about: More for the manifest: metrics, config, versions; what its own manifest says of these is kept.

        Raises:
            StorageError: It could not be written; what was there is untouched.
        """
        if self._renewal is not None:
            weights = weights or self.renewal.weights
            preprocessors = preprocessors or self.renewal.preprocessors
        kept = {name: self.manifest[name] for name in _OF_TRAINING if name in self.manifest}
        with new_folder(path) as folder:
            files.write(self, folder, weights or {}, preprocessors or {})
            more = self._save_more(folder)
            if self._renewal is not None:
                more["renewal"] = files.write_renewal(self.renewal, folder)
            manifest = {
                "kind": self.kind,
                "user_column": self.user_column,
                "item_column": self.item_column,
                "embedding_dim": self.embedding_dim,
                "input_schema": {self.user_column: str(self.user_ids.type)},
                "output_schema": {field.name: str(field.type) for field in self.output_schema},
                **more,
                **kept,
                **(about or {}),
            }
            seal_folder(folder, manifest)

    def _save_more(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002  for recommenders that have more
        """Write what a subclass has besides; more for the manifest."""
        return {}

    @classmethod
    def _open(cls, folder: Path, manifest: dict[str, Any]) -> Recommender:
        return cls(**cls._parts(folder, manifest))

    @classmethod
    def _parts(cls, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
        """The arguments that make what `save` wrote."""
        return files.read(folder, manifest)
