"""The files of a sealed recommender.

preprocessors.json       fitted state, by node type
model.safetensors        the weights, to train on from
vectors.safetensors      float32 [users, dim], [items, dim], the items' bias [items]
seen.safetensors         what each user has had, as CSR
history.safetensors      the events of the training, to be renewed with those since
users.arrow, items.arrow columns `id`, in the order of the vectors, and `title` of the items
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.data.arrow_files import read_arrow, write_arrow
from sp_ray_ml.storage import write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train._renewal import Renewal
    from sp_ray_ml.train.recommender import Recommender

__all__ = ["NEEDED", "read", "write", "write_renewal", "write_tensors"]

NEEDED = ("vectors.safetensors", "seen.safetensors", "users.arrow", "items.arrow", "preprocessors.json")
"""Those that one cannot be opened without."""


def write(
    recommender: Recommender, folder: Path, weights: Mapping[str, Any], preprocessors: Mapping[str, Any]
) -> None:
    """Write what every recommender has.

    Args:
        recommender: The recommender.
        folder: Where to; it is there.
        weights: NumPy arrays by name; without any there is no file of them.
        preprocessors: Fitted state by node type, as JSON.
    """
    import numpy as np
    import pyarrow as pa

    vectors = {
        "user": recommender.user_vectors,
        "item": recommender.item_vectors,
        "item_bias": recommender.item_bias,
    }
    write_tensors(
        folder / "vectors.safetensors",
        {name: np.ascontiguousarray(each, np.float32) for name, each in vectors.items()},
    )
    seen: dict[str, NDArray[Any]] = {
        "indptr": recommender.seen.indptr.astype(np.int64),
        "indices": recommender.seen.indices.astype(np.int32),
    }
    write_tensors(folder / "seen.safetensors", seen)
    if weights:
        write_tensors(
            folder / "model.safetensors", {name: np.ascontiguousarray(each) for name, each in weights.items()}
        )
    write_json(folder / "preprocessors.json", dict(preprocessors))
    write_arrow(folder / "users.arrow", pa.table({"id": recommender.user_ids}))
    items = {"id": recommender.item_ids}
    if recommender.titles is not None:
        items["title"] = recommender.titles
    write_arrow(folder / "items.arrow", pa.table(items))


def write_renewal(renewal: Renewal, folder: Path) -> dict[str, Any]:
    """Write what a recommender is renewed with; what the manifest says of it."""
    from sp_ray_ml.train._renewal import HISTORY

    write_tensors(folder / HISTORY, renewal.arrays())
    return renewal.about()


def read(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that make what was written."""
    import numpy as np
    import scipy.sparse
    from safetensors.numpy import load_file

    vectors, seen = load_file(folder / "vectors.safetensors"), load_file(folder / "seen.safetensors")
    shape = (len(vectors["user"]), len(vectors["item"]))
    ones = np.ones(len(seen["indices"]), np.int8)
    users, items = read_arrow(folder / "users.arrow"), read_arrow(folder / "items.arrow")
    return {
        "users": users["id"].combine_chunks(),
        "items": items["id"].combine_chunks(),
        "titles": items["title"].combine_chunks() if "title" in items.column_names else None,
        "user_vectors": vectors["user"],
        "item_vectors": vectors["item"],
        "item_bias": vectors["item_bias"],
        "seen": scipy.sparse.csr_array((ones, seen["indices"], seen["indptr"]), shape=shape),
        "columns": (manifest["user_column"], manifest["item_column"]),
        "embedding_dim": manifest["embedding_dim"],
        "manifest": manifest,
        "renewal": folder if "renewal" in manifest else None,
    }


def write_tensors(file: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """Write arrays by name as safetensors.

    Raises:
        OSError: With the system's own number: a full disk is told apart.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(tensors, file)
    except SafetensorError as error:  # says no more than the text of a full disk's error
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number)) from error
