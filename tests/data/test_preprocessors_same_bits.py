"""The fit is the same to the last bit however the rows come; a row's features never depend on other rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_ray_ml.data import preprocessors
from sp_ray_ml.data._columns import Column
from sp_ray_ml.data.preprocessors import (
    Bucketize,
    Categorical,
    FittedFeatures,
    HashText,
    MinMax,
    Missing,
    MultiHot,
    Preprocessor,
    Standardize,
    fit_features,
)
from sp_ray_ml.data.source import Source

FEATURES: list[Preprocessor] = [
    Standardize(columns=["x", "i"], missing="zero"),
    MinMax(columns=["x"], missing=1.5),
    Bucketize(columns=["x"], buckets=4, missing="bucket"),
    Bucketize(columns=["i"], method="uniform", buckets=3, missing="bucket"),
    Categorical(columns=["c", "i", "d"], min_count=2, max_values=5),
    MultiHot(columns=["g"]),
    HashText(columns=["g"], buckets=5, ngrams=3, signed=True),
    Missing(columns=["x"], strategy="median", indicator=True),
    Missing(columns=["i"], strategy="most_frequent"),
]


def table_of(rows: Sequence[tuple[object, ...]]) -> pa.Table:
    kinds = {"x": pa.float64(), "i": pa.int32(), "c": pa.string(), "d": pa.date32(), "g": pa.string()}
    columns = zip(*rows, strict=True)
    return pa.table({name: pa.array(v, k) for (name, k), v in zip(kinds.items(), columns, strict=True)})


ROW = st.tuples(
    st.none() | st.floats(-1e6, 1e6) | st.just(float("nan")),
    st.none() | st.integers(-5, 5),
    st.none() | st.sampled_from(["a", "b", "ü", ""]),
    st.none() | st.dates(),
    st.none() | st.text("ab é", max_size=8),
)
TABLES = st.lists(ROW, max_size=30).map(lambda rows: table_of([(1.0, 2, "a", None, "x"), *rows]))


def chopped(table: pa.Table, cuts: Sequence[int]) -> Source:
    ends = [0, *sorted(cut for cut in cuts if cut < len(table)), len(table)]
    batches = [
        batch
        for start, end in pairwise(ends)
        for batch in table.slice(start, end - start).combine_chunks().to_batches()
    ]
    return Source("data", table.schema, lambda: iter(batches))


def as_text(fitted: FittedFeatures) -> str:
    return json.dumps(fitted.to_json())


@settings(max_examples=60, deadline=None)
@given(table=TABLES, cuts=st.lists(st.integers(0, 30), max_size=6))
def test_any_chopping_gives_the_same_state(table: pa.Table, cuts: list[int]) -> None:
    states = [
        json.dumps([fitted.state for fitted in fit_features(FEATURES, data).features])
        for data in (table, chopped(table, cuts))
    ]
    assert states[0] == states[1]


@settings(max_examples=10, deadline=None)
@given(table=TABLES)
def test_state_survives_json_to_the_bit(table: pa.Table) -> None:
    fitted = fit_features(FEATURES, table)
    again = FittedFeatures.from_json(json.loads(as_text(fitted)))
    assert as_text(again) == as_text(fitted)
    assert again.feature_names == fitted.feature_names
    np.testing.assert_array_equal(again.encode(table), fitted.encode(table))


@settings(max_examples=25, deadline=None)
@given(table=TABLES)
def test_row_by_row_equals_the_whole(table: pa.Table) -> None:
    fitted = fit_features(FEATURES, table)
    whole = fitted.encode(table)
    assert np.isfinite(whole).all()
    rows = [fitted.encode(table.slice(i, 1)) for i in range(len(table))]
    np.testing.assert_array_equal(np.concatenate(rows), whole)


def big_table(rows: int) -> pa.Table:
    rng = np.random.default_rng(5)
    x = rng.lognormal(3, 2, rows)
    return pa.table(
        {
            "x": pa.array(x, mask=rng.random(rows) < 0.01),
            "i": rng.integers(-50, 50, rows).astype(np.int32),
            "c": pa.array([f"c{v}" for v in rng.zipf(1.3, rows) % 3000]),
            "d": pa.array(rng.integers(0, 400, rows).astype(np.int32)).cast(pa.date32()),
            "g": pa.array([f"g{a} g{b}" for a, b in rng.integers(0, 30, (rows, 2))]),
        }
    )


def test_many_blocks_give_the_same_state_however_they_are_cut() -> None:
    table = big_table(200_000)
    expected = as_text(fit_features(FEATURES, table))
    cuts = np.random.default_rng(6).integers(0, len(table), 40).tolist()
    assert as_text(fit_features(FEATURES, chopped(table, cuts))) == expected
    assert as_text(fit_features(FEATURES, chopped(table, [1]))) == expected


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f"{type(f).__name__}-{f.columns[0]}")
def test_accumulators_merge_in_any_grouping(feature: Preprocessor) -> None:
    table = big_table(5_000)
    blocks = Source("data", table.schema, lambda: iter(table.to_batches()))
    for name in feature.columns:
        column = Column(name, table.schema.field(name).type)
        parts = [block.column(name) for block in blocks.blocks(700)]

        def taken(some: Sequence[pa.Array], column: Column = column) -> preprocessors.Any:
            accumulator = feature.accumulator(column)
            for part in some:
                accumulator.update(part)
            return accumulator

        expected = json.dumps(taken(parts).finish())
        left, right = taken(parts[:3]), taken(parts[3:])
        left.merge(right)
        assert json.dumps(left.finish()) == expected
        singles = [taken([part]) for part in parts]
        for following in singles[2:]:
            singles[1].merge(following)
        singles[0].merge(singles[1])
        assert json.dumps(singles[0].finish()) == expected


def test_encoding_of_the_table_and_its_strings_types_agree() -> None:
    table = big_table(3_000)
    fitted = fit_features(FEATURES, table)
    expected = fitted.encode(table)
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        place = table.schema.get_field_index("c")
        other = table.set_column(place, "c", table["c"].cast(kind))
        assert as_text(fit_features(FEATURES, other)) == as_text(fitted)
        np.testing.assert_array_equal(fitted.encode(other), expected)


def test_dictionaries_that_differ_between_batches_are_one_column() -> None:
    first = pa.table({"c": pa.array(["a", "b"]).dictionary_encode()})
    second = pa.table({"c": pa.array(["c", "a"]).dictionary_encode()})
    fitted = Categorical(columns=["c"]).fit(pa.concat_tables([first, second]))
    assert fitted.state["c"]["values"] == ["a", "b", "c"]
