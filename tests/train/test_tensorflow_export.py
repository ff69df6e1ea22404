"""Predictors of `TensorFlowTrainer` as SavedModels that take raw columns and answer to the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sp_ray_ml.data import Standardize
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.train import Predictor, TablePredictor, TensorFlowTrainer, TorchTrainer
from sp_ray_ml.train._keras import keras, tf
from sp_ray_ml.train._keras_columns import Column
from sp_ray_ml.train._keras_features import _AROUND

ROWS = 1_300
FEATURES: list[dict[str, Any]] = [
    {
        "kind": "standardize",
        "columns": ["mean age", "seen", "day", "member", "zip", "price"],
        "missing": "mean",
    },
    {"kind": "standardize", "columns": ["whole"]},
    {"kind": "numeric", "columns": ["whole"]},
    {"kind": "min_max", "columns": ["a/b", "größe", "took"], "missing": "zero"},
    {"kind": "min_max", "columns": ["größe"], "missing": 3.7},
    {
        "kind": "categorical",
        "columns": ["zip", "big", "city", "member", "day", "code", "small"],
        "min_count": 2,
    },
    {"kind": "bucketize", "columns": ["mean age", "seen", "größe"], "missing": "bucket", "buckets": 7},
    {"kind": "bucketize", "columns": ["größe"], "missing": "bucket", "buckets": 80},
    {"kind": "bucketize", "columns": ["whole"], "method": "edges", "edges": [-2, 3]},
    {"kind": "multi_hot", "columns": ["tags", "list", "words"]},
    {"kind": "missing", "columns": ["mean age", "a/b"], "indicator": True},
    {"kind": "missing", "columns": ["größe"], "strategy": "median"},
    {"kind": "missing", "columns": ["zip", "member", "code"], "strategy": "most_frequent", "indicator": True},
    {"kind": "missing", "columns": ["small"], "strategy": "constant", "value": 3},
]


def table() -> pa.Table:
    """Columns of all types that come as tensors, with holes, and with names that TensorFlow would not take."""
    random = np.random.default_rng(0)

    def holes(values: Any, kind: pa.DataType | None = None) -> pa.Array:
        return pa.array(values, kind, mask=random.random(ROWS) < 0.1)

    def lists(values: list[Any]) -> list[Any]:
        return [
            None if random.random() < 0.1 else random.choice(values, random.integers(0, 4)).tolist()
            for _ in range(ROWS)
        ]

    def pick(*values: Any) -> Any:
        return random.choice(np.array(values), ROWS)

    whole = random.integers(-5, 5, ROWS)
    value = whole + random.normal(0, 1, ROWS)
    return pa.table(
        {
            "mean age": holes(random.normal(40, 12, ROWS)),
            "a/b": holes(random.normal(size=ROWS).astype(np.float32)),
            "größe": holes(random.lognormal(1, 1, ROWS)),
            "whole": whole,
            "price": holes(random.normal(size=ROWS)).cast(pa.decimal128(20, 9), safe=False),
            "seen": holes((random.random(ROWS) * 1e15).astype(np.int64), pa.timestamp("us", "UTC")),
            "took": holes(random.integers(0, 10**7, ROWS), pa.duration("ms")),
            "day": holes(random.integers(0, 200, ROWS).astype(np.int32), pa.date32()),
            "zip": holes(random.integers(0, 9, ROWS)),
            "big": holes(random.integers(2**62, 2**62 + 5, ROWS).astype(np.uint64) * 2),
            "small": holes(random.integers(0, 5, ROWS).astype(np.int16)),
            "city": holes(pick("Oslo", "Lund", "", "Grøt")),
            "member": holes(random.random(ROWS) < 0.5),
            "code": holes(pick(0.0, -0.0, 1.5, 2.5)),
            "tags": [None if tags is None else " ".join(tags) for tags in lists(["red", "blü", "dark ", "g"])],
            "list": pa.array(lists([1, 2, 3, 7]), pa.list_(pa.int64())),
            "words": pa.array(lists(["x", " y", "z"]), pa.list_(pa.string())),
            "value": value,
            "high": np.where(value > 0, "yes", "nö"),
            "third": np.digitize(value, [-2, 2]).astype(np.int32),
            "good": value > 1,
        }
    )  # fmt: skip


def unseen(rows: pa.Table) -> pa.Table:
    """With values in the first rows that training has not seen, and white space of all sorts."""
    new = {
        "city": ["Nowhere", "oslo", "Oslo ", "\0", "Grø"],
        "tags": ["\u00a0red\u2003", "  red\x0bblü", "red\x1c", "\x85g never", "\u3000"],
        "zip": [-7, 400, 0, -400, 99],
        "code": [0.5, -9.0, 9.0, -0.0, 3.0],
    }
    for name, values in new.items():
        kind = rows.schema.field(name).type
        changed = pa.array([*values, *rows[name].to_pylist()[5:]], kind)
        rows = rows.set_column(rows.schema.get_field_index(name), name, changed)
    return rows


def trained(folder: Path, label: str, rows: pa.Table, **settings: Any) -> TablePredictor:
    given = {"features": FEATURES, "epochs": 2, "model": {"hidden": [33, 16]}}
    chosen = TensorFlowTrainer(label=label, **{**given, **settings})
    predictor = chosen.fit(rows, folder=folder).predictor()
    assert isinstance(predictor, TablePredictor)
    return predictor


# What a program that knows nothing of this package does: it reads how each column comes, and asks.
FRESH = """
import json, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
import tensorflow as tf

def tensor(about, column):
    column = column.combine_chunks()
    missing = float("nan") if about["missing"] == "NaN" else about["missing"]
    if len(about["shape"]) == 2:
        rows = [row or [] for row in column.to_pylist()]
        longest = max(map(len, rows))
        return tf.constant([row + [missing] * (longest - len(row)) for row in rows], about["dtype"])
    if pa.types.is_date32(column.type):
        column = column.view(pa.int32())
    elif pa.types.is_temporal(column.type):
        column = column.view(pa.int64())
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    elif pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    return tf.constant([missing if v is None else v for v in column.to_pylist()], about["dtype"])

def same(found, wanted):
    found = np.array([v.decode() for v in found]) if found.dtype == object else found
    wanted = np.array(wanted.to_pylist(), found.dtype)
    return np.array_equal(found, wanted)

for folder in sys.argv[1:]:
    with open(f"{folder}/assets.extra/columns.json") as file:
        about = json.load(file)
    rows = pq.read_table(f"{folder}.parquet")
    columns = {name: tensor(how, rows[name]) for name, how in about["inputs"].items()}
    model = tf.saved_model.load(folder)
    served = model.signatures["serving_default"](**columns)
    for size in (1, 7, 1_024, len(rows)):
        found = model.predict({name: values[:size] for name, values in columns.items()})
        assert sorted(found) == sorted(served) == sorted(about["outputs"])
        for name in about["outputs"]:
            assert same(found[name].numpy(), rows[name][:size]), (folder, name, size)
            assert same(served[name].numpy(), rows[name]), (folder, name)
assert not any(name.startswith("sp_ray_ml") for name in sys.modules)
print("same")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_process_without_the_package_is_answered_with_the_same_bits(tmp_path: Path) -> None:
    rows = table()
    folders = []
    for label, settings in (
        ("value", {}),
        ("high", {"categories": "one_hot"}),
        ("third", {"precision": "bf16"}),
        ("good", {"precision": "fp16", "categories": "one_hot"}),
    ):
        predictor = trained(tmp_path / label, label, rows, **settings)
        folder = tmp_path / f"{label}_served"
        predictor.export_saved_model(folder)
        pq.write_table(predictor.predict(unseen(rows)), f"{folder}.parquet")
        folders.append(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *folders], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout == "same\n", done.stderr


class Gate(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.gate = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x: Any) -> Any:
        return x * keras.ops.sigmoid(self.gate)


def with_own_layer(inputs: Any) -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((inputs.width,)), Gate(), layers.BatchNormalization(), layers.Dense(inputs.outputs)]
    )


def test_a_model_of_ones_own_is_exported_and_values_that_training_refused_are_refused(tmp_path: Path) -> None:
    rows = table().select(["whole", "city", "value"])
    features = [Standardize(columns=["whole"]), {"kind": "categorical", "columns": ["city"]}]
    predictor = trained(tmp_path / "run", "value", rows, model=with_own_layer, features=features)
    predictor.export_saved_model(tmp_path / "served")
    model = tf.saved_model.load(str(tmp_path / "served"))
    # The empty text is a category: that there is none has a text of its own.
    cities = tf.constant(["(missing)" if city is None else city for city in rows["city"].to_pylist()])
    found = model.predict({"whole": tf.constant(rows["whole"].to_numpy()), "city": cities})
    assert np.array_equal(found["prediction"].numpy(), predictor.predict(rows)["prediction"].to_numpy())
    missing = tf.constant([-(2**63)], tf.int64)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"the column .*whole.* has missing values, which training refused",
    ):
        model.predict({"whole": missing, "city": tf.constant(["Oslo"])})
    assert model.predict({"whole": missing[:0], "city": tf.constant([], tf.string)})["prediction"].shape == 0
    about = json.loads((tmp_path / "served/assets.extra/columns.json").read_bytes())
    assert about["inputs"]["whole"] == {"dtype": "int64", "shape": ["rows"], "missing": -(2**63)}
    assert about["inputs"]["city"] == {"dtype": "string", "shape": ["rows"], "missing": "(missing)"}


def test_white_space_around_a_value_is_what_arrow_takes_away() -> None:
    signs = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    texts = [f"{sign}x{sign}" for sign in signs]
    found = tf.strings.regex_replace(tf.constant(texts), _AROUND, "").numpy()
    expected = pc.utf8_trim_whitespace(pa.array(texts)).to_pylist()
    assert [text.encode() for text in expected] == found.tolist()


@pytest.mark.parametrize(
    ("kind", "dtype", "many"),
    [
        (pa.large_string(), tf.string, False), (pa.uint32(), tf.int64, False), (pa.float16(), tf.float32, False),
        (pa.date64(), tf.int64, False), (pa.timestamp("ns", "Europe/Oslo"), tf.int64, False),
        (pa.list_(pa.string()), tf.string, True), (pa.large_list(pa.int8()), tf.int64, True),
        (pa.list_(pa.field("item", pa.float32(), nullable=False), 3), tf.float32, True),
    ],
)  # fmt: skip
def test_every_type_that_a_preprocessor_reads_comes_as_a_tensor(kind: Any, dtype: Any, many: bool) -> None:
    column = Column.of("x", str(kind))
    assert (column.dtype, column.many) == (dtype, many)


def test_what_has_no_graph_of_tensorflow_says_so(tmp_path: Path) -> None:
    rows = pa.table({"text": ["red sky", "blue", "red"] * 20, "x": np.arange(60.0), "y": np.arange(60.0)})
    other = TorchTrainer(label="y", epochs=1).fit(rows, folder=tmp_path / "torch").predictor()
    with pytest.raises(ConfigError, match=r"a torch predictor has no graph of TensorFlow\. Train with kind"):
        other.export_saved_model(tmp_path / "served")
    hashed = {"kind": "hash_text", "columns": ["text"], "buckets": 8}
    predictor = trained(tmp_path / "keras", "y", rows, features=[hashed], epochs=1)
    with pytest.raises(ConfigError, match=r"column text: hash_text cannot be written in TensorFlow's graph"):
        Predictor.load(tmp_path / "keras").export_saved_model(tmp_path / "served")
    assert predictor.predict(rows).num_rows == 60
    assert not (tmp_path / "served").exists()
