"""What preprocessors promise: features, refusals, and state that is readable JSON."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pydantic
import pytest

from sp_ray_ml.config import Settings
from sp_ray_ml.data._columns import Column
from sp_ray_ml.data._encoders import Encoder
from sp_ray_ml.data._preprocessing import Accumulator
from sp_ray_ml.data.preprocessors import (
    Bucketize,
    Categorical,
    Fitted,
    FittedFeatures,
    HashText,
    MinMax,
    Missing,
    MultiHot,
    Preprocessor,
    PreprocessorField,
    Standardize,
    fit_features,
)
from sp_ray_ml.errors import CheckpointError, ColumnNotFoundError, ConfigError, DataError

USERS = pa.table(
    {
        "user_id": [1, 2, 3, 4],
        "age": [20, 30, 40, 50],
        "gender": ["F", "M", "F", None],
        "genres": ["Drama Comedy", "Drama", "", None],
    }
)


def through_json(fitted: Fitted) -> Fitted:
    again = Fitted.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again.to_json() == fitted.to_json()
    return again


# --- settings ---------------------------------------------------------------------------------------------------


def test_importing_the_settings_imports_no_heavy_library() -> None:
    code = (
        "import sys, sp_ray_ml.data.preprocessors as p; p.Standardize(columns=['a'])\n"
        "print(sorted({'numpy', 'pyarrow', 'ray', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Standardize, {"columns": []}),
        (Standardize, {"columns": ["a", "a"]}),
        (Standardize, {"columns": ["a"], "missing": "median"}),
        (Standardize, {"columns": ["a"], "missing": True}),
        (Standardize, {"columns": ["a"], "missing": float("nan")}),
        (Bucketize, {"columns": ["a"], "method": "edges"}),
        (Bucketize, {"columns": ["a"], "edges": [1.0]}),
        (Bucketize, {"columns": ["a"], "method": "edges", "edges": [2.0, 1.0]}),
        (Bucketize, {"columns": ["a"], "method": "edges", "edges": []}),
        (Missing, {"columns": ["a"], "strategy": "constant"}),
        (Missing, {"columns": ["a"], "value": 3}),
        (MultiHot, {"columns": ["a"], "separator": ""}),
        (Categorical, {"columns": ["a"], "max_value": 3}),
    ],
)
def test_wrong_settings_are_refused(kind: type[Preprocessor], values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        kind(**values)


def test_every_kind_has_a_json_schema() -> None:
    class Features(Settings):
        features: list[PreprocessorField]

    schema = json.dumps(Features.model_json_schema())
    for kind in (
        "standardize",
        "min_max",
        "categorical",
        "bucketize",
        "multi_hot",
        "hash_text",
        "missing",
    ):
        assert f'"const": "{kind}"' in schema


# --- features ---------------------------------------------------------------------------------------------------


def test_standardize_gives_zero_mean_and_unit_deviation() -> None:
    fitted = Standardize(columns=["age"]).fit(USERS)
    expected = np.array([-15, -5, 5, 15]) / np.sqrt(125)
    np.testing.assert_allclose(fitted.encode(USERS)[:, 0], expected, rtol=1e-6)
    assert fitted.feature_names == ["age"]
    assert fitted.state["age"]["mean"] == 35.0


def test_constant_column_becomes_zero() -> None:
    table = pa.table({"a": [0.1] * 1000, "b": [7] * 1000})
    assert (Standardize(columns=["a", "b"]).fit(table).encode(table) == 0).all()
    assert (MinMax(columns=["a", "b"]).fit(table).encode(table) == 0).all()
    assert Standardize(columns=["a"]).fit(table).state["a"]["std"] == 0.0


@pytest.mark.parametrize(("missing", "filled"), [("mean", 2.0), ("zero", 0.0), (5.0, 5.0), (-1, -1.0)])
def test_missing_value_stands_for_what_the_settings_say(missing: str | float, filled: float) -> None:
    table = pa.table({"a": [1.0, 3.0, None, float("nan")]})
    fitted = Standardize(columns=["a"], missing=missing).fit(table)
    assert fitted.state["a"]["mean"] == 2.0
    np.testing.assert_array_equal(fitted.encode(table)[:, 0], np.float32([-1, 1, filled - 2, filled - 2]))
    scaled = MinMax(columns=["a"], missing=missing).fit(table).encode(table)[:, 0]
    np.testing.assert_array_equal(scaled, np.float32([0, 1, (filled - 1) / 2, (filled - 1) / 2]))


def test_column_without_values_is_refused_unless_a_number_stands_in() -> None:
    table = pa.table({"a": pa.nulls(3, pa.float64()), "n": pa.nulls(3)})
    for name in ("a", "n"):
        with pytest.raises(DataError, match="none of its 3 rows has a value"):
            Standardize(columns=[name], missing="mean").fit(table)
        assert (Standardize(columns=[name], missing=4).fit(table).encode(table) == 0).all()
    for feature in (Bucketize(columns=["a"], missing="bucket"), Missing(columns=["a"])):
        with pytest.raises(DataError, match="none of its 3 rows"):
            feature.fit(table)
    assert Categorical(columns=["a", "n"]).fit(table).feature_names == ["a=(other)", "n=(other)"]


def test_rare_unknown_and_missing_categories_share_code_0() -> None:
    table = pa.table({"c": ["b", "b", "a", "a", "a", "rare", None]})
    fitted = Categorical(columns=["c"], min_count=2).fit(table)
    assert fitted.feature_names == ["c=(other)", "c=a", "c=b"]
    later = pa.table({"c": ["a", "b", "rare", "never seen", None]})
    codes = fitted.transform(later)["c"]
    assert codes.type == pa.int32()
    assert codes.to_pylist() == [1, 2, 0, 0, 0]
    np.testing.assert_array_equal(fitted.encode(later), np.eye(3, dtype=np.float32)[[1, 2, 0, 0, 0]])


def test_max_values_keeps_the_most_frequent_and_of_equals_the_smaller() -> None:
    table = pa.table({"c": ["d", "c", "b", "a", "d"]})
    assert Categorical(columns=["c"], max_values=2).fit(table).state["c"]["values"] == ["a", "d"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["x", "ü", "(other)"], pa.string()),
        (["x", "y"], pa.large_string()),
        (["x", "y"], pa.dictionary(pa.int8(), pa.string())),
        ([1, -5, 2**62], pa.int64()),
        ([1, 200], pa.uint8()),
        ([1, 2**64 - 1], pa.uint64()),
        ([True, False], pa.bool_()),
        ([0.1, -0.0, 1e300], pa.float64()),
        ([dt.date(1965, 3, 1), dt.date(2024, 2, 29)], pa.date32()),
        ([dt.date(1965, 3, 1)], pa.date64()),
    ],
)
def test_categories_of_every_type_survive_json(values: list[object], kind: pa.DataType) -> None:
    table = pa.table({"c": pa.array([*values, None], kind)})
    fitted = Categorical(columns=["c"]).fit(table)
    again = through_json(fitted)
    codes = again.transform(table)["c"].to_pylist()
    assert codes[-1] == 0
    assert sorted(codes[:-1]) == list(range(1, len(values) + 1))
    np.testing.assert_array_equal(again.encode(table), fitted.encode(table))


def test_whole_numbers_match_when_pandas_made_them_floats() -> None:
    fitted = Categorical(columns=["c"]).fit(pa.table({"c": [3, 7]}))
    later = pa.table({"c": [7.0, float("nan"), 3.5]})
    assert fitted.transform(later)["c"].to_pylist() == [2, 0, 0]


def test_few_rows_and_many_rows_find_the_same_codes() -> None:
    values = [f"v{i}" for i in range(1000)]
    fitted = Categorical(columns=["c"]).fit(pa.table({"c": values}))
    few = pa.table({"c": ["v10", "nothing", None, "v999"]})
    many = pa.concat_tables([few] * 500)
    assert fitted.transform(few)["c"].to_pylist() == fitted.transform(many)["c"].to_pylist()[:4]


def test_bucket_has_its_lower_edge_and_not_its_upper() -> None:
    table = pa.table({"a": [-5.0, 0.0, 9.99, 10.0, 99.0]})
    fitted = Bucketize(columns=["a"], method="edges", edges=[0, 10]).fit(table)
    assert fitted.feature_names == ["a=..0", "a=0..10", "a=10.."]
    assert fitted.transform(table)["a"].to_pylist() == [0, 1, 1, 2, 2]


def test_many_buckets_agree_with_few_comparisons() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    table = pa.table({"a": values})
    for buckets in (5, 64, 65, 200):
        fitted = Bucketize(columns=["a"], buckets=buckets).fit(table)
        edges = fitted.state["a"]["edges"]
        assert len(edges) == buckets - 1
        expected = np.searchsorted(edges, values, side="right")
        np.testing.assert_array_equal(fitted.transform(table)["a"].to_numpy(), expected)
        counts = np.bincount(expected, minlength=buckets)
        assert counts.max() - counts.min() <= 2


def test_missing_values_can_have_a_bucket() -> None:
    table = pa.table({"a": [1, 2, 3, 4, None]})
    fitted = Bucketize(columns=["a"], buckets=2, missing="bucket").fit(table)
    assert fitted.feature_names == ["a=..2.5", "a=2.5..", "a=(missing)"]
    assert fitted.transform(table)["a"].to_pylist() == [0, 0, 1, 1, 2]


def test_coinciding_quantiles_make_fewer_buckets_and_none_is_empty() -> None:
    table = pa.table({"a": [0] * 90 + [1] * 10})
    fitted = Bucketize(columns=["a"], buckets=20).fit(table)
    codes = np.array(fitted.transform(table)["a"].to_pylist())
    assert set(codes) == set(range(fitted.width))


def test_multi_hot_of_text_and_of_lists() -> None:
    fitted = MultiHot(columns=["genres"]).fit(USERS)
    assert fitted.feature_names == ["genres=Comedy", "genres=Drama"]
    np.testing.assert_array_equal(fitted.encode(USERS), [[1, 1], [0, 1], [0, 0], [0, 0]])
    lists = pa.table({"genres": [["Drama", "Comedy", "Drama"], ["Drama"], [], None]})
    from_lists = MultiHot(columns=["genres"]).fit(lists)
    assert from_lists.state["genres"]["values"] == fitted.state["genres"]["values"]
    np.testing.assert_array_equal(from_lists.encode(lists), fitted.encode(USERS))


def test_multi_hot_counts_rows_and_leaves_unknown_values_out() -> None:
    table = pa.table({"g": ["a|a| b ", "b||", "c"]})
    fitted = through_json(MultiHot(columns=["g"], separator="|", min_count=2).fit(table))
    assert fitted.feature_names == ["g=b"]
    np.testing.assert_array_equal(
        fitted.encode(pa.table({"g": ["b|zzz", "a", None]})), np.float32([[1], [0], [0]])
    )
    vectors = fitted.transform(table)["g"]
    assert vectors.type == pa.list_(pa.float32(), 1)
    ids = pa.table({"g": [[3, 1], [1], None]})
    assert MultiHot(columns=["g"]).fit(ids).feature_names == ["g=1", "g=3"]


def test_hashed_text_is_the_same_on_every_machine() -> None:
    table = pa.table({"t": ["Toy Story (1995)", "toy  STORY 1995", None, "", "Été à Paris"]})
    fitted = HashText(columns=["t"], buckets=8).fit(table)
    found = fitted.encode(table)
    # Written down once: if this changes, predictors saved before no longer match.
    np.testing.assert_array_equal(found[0], np.float32([0, 0, 0, 0, 1, 2, 0, 0]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found.sum(1), [3, 3, 0, 0, 3])
    signed = HashText(columns=["t"], buckets=8, signed=True).fit(table).encode(table)
    assert (np.abs(signed) <= found).all()
    assert (signed < 0).any()
    grams = HashText(columns=["t"], buckets=8, ngrams=3).fit(table).encode(table)
    assert grams[0].sum() == sum(len(f"<{w}>") - 2 for w in ("toy", "story", "1995"))


@pytest.mark.parametrize(
    ("settings", "values", "filled"),
    [
        ({"strategy": "mean"}, [1, 2, None, 6], [1.0, 2.0, 3.0, 6.0]),
        ({"strategy": "median"}, [1, 2, None, 6, 100], [1.0, 2.0, 4.0, 6.0, 100.0]),
        ({"strategy": "most_frequent"}, ["b", "a", "b", "a", None], ["b", "a", "b", "a", "a"]),
        ({"strategy": "most_frequent"}, [3, 3, 1, None], [3, 3, 1, 3]),
        ({"strategy": "constant", "value": "?"}, ["x", None], ["x", "?"]),
        ({"strategy": "constant", "value": -1}, [5, None], [5, -1]),
        ({"strategy": "constant", "value": 0.5}, [5.0, float("nan")], [5.0, 0.5]),
        ({"strategy": "constant", "value": True}, [False, None], [False, True]),
        ({"strategy": "constant", "value": "2020-01-01"}, [None, dt.date(1999, 1, 1)], None),
    ],
)
def test_missing_values_are_filled_and_nothing_else_changes(
    settings: dict[str, object], values: list[object], filled: list[object] | None
) -> None:
    table = pa.table({"a": values})
    fitted = through_json(Missing(columns=["a"], indicator=True, **settings).fit(table))
    result = fitted.transform(table)
    expected = [dt.date(2020, 1, 1), dt.date(1999, 1, 1)] if filled is None else filled
    assert result["a"].to_pylist() == expected
    absent = [v is None or v != v for v in values]
    assert result["a_missing"].to_pylist() == absent
    if not isinstance(expected[0], str):
        assert fitted.feature_names == ["a", "a_missing"]
        np.testing.assert_array_equal(fitted.encode(table)[:, 1], np.float32(absent))


@pytest.mark.parametrize("value", ["x", 0.5, True])
def test_constant_that_does_not_fit_the_column_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"does not go into a column of int64"):
        Missing(columns=["a"], strategy="constant", value=value).fit(pa.table({"a": [1, None]}))


def test_dates_count_days_and_times_seconds_in_utc() -> None:
    day = 86_400
    zone = pa.timestamp("ms", tz="Europe/Berlin")
    table = pa.table(
        {
            "date": pa.array([0, 3], pa.date32()),
            "date64": pa.array([0, 3 * day * 1000], pa.date64()),
            "naive": pa.array([0, 3 * day * 10**9], pa.timestamp("ns")),
            "zoned": pa.array([0, 3 * day * 1000], zone),
            "bool": [False, True],
            "decimal": [decimal.Decimal("0.5"), decimal.Decimal("1.5")],
            "dictionary": pa.array([2, 4]).dictionary_encode(),
            "half": pa.array(np.array([1, 2], np.float16)),
        }
    )
    state = Standardize(columns=table.column_names).fit(table).state
    assert {name: s["max"] for name, s in state.items()} == {
        "date": 3,
        "date64": 3,
        "naive": 3 * day,
        "zoned": 3 * day,
        "bool": 1,
        "decimal": 1.5,
        "dictionary": 4,
        "half": 2,
    }
    assert state["zoned"]["unit"] == "seconds"


def test_transform_replaces_columns_in_their_places_and_passes_others_on() -> None:
    table = USERS.replace_schema_metadata({b"pandas": b"{}", b"mine": b"kept"})
    result = Standardize(columns=["age"]).fit(table).transform(table)
    assert result.column_names == table.column_names
    assert result["age"].type == pa.float32()
    assert result["user_id"].equals(table["user_id"])
    assert result.schema.metadata == {b"mine": b"kept"}
    assert table["age"].to_pylist() == [20, 30, 40, 50]


def test_features_stand_side_by_side_in_one_pass() -> None:
    features = [
        Standardize(columns=["age"]),
        Categorical(columns=["gender"]),
        MultiHot(columns=["genres"]),
        MinMax(columns=["age"]),
    ]
    fitted = fit_features(features, USERS)
    assert fitted.feature_names == [
        "age",
        "gender=(other)",
        "gender=F",
        "gender=M",
        "genres=Comedy",
        "genres=Drama",
        "age#2",
    ]
    assert fitted.columns == ["age", "gender", "genres"]
    found = fitted.encode(USERS)
    assert found.dtype == np.float32
    assert found.shape == (4, fitted.width)
    parts = [feature.fit(USERS).encode(USERS) for feature in features]
    np.testing.assert_array_equal(found, np.concatenate(parts, axis=1))
    again = FittedFeatures.from_json(json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_array_equal(again.encode(USERS), found)
    with pytest.raises(DataError, match="two preprocessors would write the column 'age'"):
        fitted.transform(USERS)
    assert fit_features([], USERS).encode(USERS).shape == (4, 0)


def test_table_without_rows_is_refused_in_the_fit_and_fine_afterwards() -> None:
    empty = USERS.slice(0, 0)
    features = [
        Standardize(columns=["age"]),
        Categorical(columns=["gender"]),
        MultiHot(columns=["genres"]),
        HashText(columns=["genres"], buckets=4),
        Bucketize(columns=["age"], buckets=2),
        Missing(columns=["age"]),
    ]
    with pytest.raises(DataError, match="no rows to fit"):
        fit_features(features, empty)
    fitted = fit_features(features, USERS)
    assert fitted.encode(empty).shape == (0, fitted.width)
    for feature in fitted.features:
        one, none = feature.transform(USERS), feature.transform(empty)
        assert none.schema == one.schema


# --- refusals ---------------------------------------------------------------------------------------------------


def test_missing_column_names_the_near_match() -> None:
    with pytest.raises(ColumnNotFoundError, match="did you mean gender"):
        Categorical(columns=["gendr"]).fit(USERS)
    fitted = Categorical(columns=["gender"]).fit(USERS)
    with pytest.raises(ColumnNotFoundError, match="did you mean gendr"):
        fitted.encode(USERS.rename_columns(["user_id", "age", "gendr", "genres"]))


def test_missing_values_are_refused_with_their_number_and_the_remedy() -> None:
    table = pa.table({"a": [1.0, None, float("nan")]})
    for feature in (Standardize(columns=["a"]), MinMax(columns=["a"]), Bucketize(columns=["a"])):
        with pytest.raises(DataError, match=r"data\.a: 2 of 3 rows have no value.*missing: mean"):
            feature.fit(table)


def test_missing_value_after_a_fit_without_any_is_refused() -> None:
    many = pa.table({"age": pa.array([1.0, *[2.0] * 70_000, None])})
    for feature in (Standardize(columns=["age"]), MinMax(columns=["age"]), Bucketize(columns=["age"])):
        fitted = feature.fit(USERS)
        with pytest.raises(DataError, match="column age: 1 of 70,002 rows have no value"):
            fitted.encode(many)
        with pytest.raises(DataError, match="column age: 1 of 70,002 rows have no value"):
            fitted.transform(many)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf")])
def test_infinite_values_are_refused(bad: float) -> None:
    table = pa.table({"a": [1.0, 2.0, bad, None]})
    good = pa.table({"a": [1.0, 2.0]})
    for feature in (
        Standardize(columns=["a"], missing="mean"),
        MinMax(columns=["a"], missing="zero"),
        Bucketize(columns=["a"], missing="bucket"),
        Bucketize(columns=["a"], method="uniform", missing="bucket"),
        Bucketize(columns=["a"], method="edges", edges=[1.0], missing="bucket"),
        Missing(columns=["a"]),
        Missing(columns=["a"], strategy="median"),
        Missing(columns=["a"], strategy="most_frequent"),
        Categorical(columns=["a"]),
    ):
        with pytest.raises(DataError, match="1 of 4 rows are infinite"):
            feature.fit(table)
        fitted = feature.fit(good)
        with pytest.raises(DataError, match="1 of 4 rows are infinite"):
            fitted.encode(table)
        with pytest.raises(DataError, match="1 of 4 rows are infinite"):
            fitted.transform(table)


def test_numbers_too_large_are_refused() -> None:
    with pytest.raises(DataError, match="too large"):
        Standardize(columns=["a"]).fit(pa.table({"a": [1e308, -1e308]}))
    with pytest.raises(DataError, match="too large"):
        MinMax(columns=["a"]).fit(pa.table({"a": [1e308, -1e308]}))
    for method in ("uniform", "quantile"):
        with pytest.raises(DataError, match="too large"):
            Bucketize(columns=["a"], method=method).fit(pa.table({"a": [1e308, -1e308]}))
    fitted = Standardize(columns=["a"]).fit(pa.table({"a": [1.0, 2.0]}))
    with pytest.raises(DataError, match="1e\\+300 gives no 32-bit number"):
        fitted.encode(pa.table({"a": [1e300]}))


@pytest.mark.parametrize(
    ("feature", "values", "remedy"),
    [
        (Standardize(columns=["a"]), ["x"], "categorical"),
        (MinMax(columns=["a"]), [["x"]], "multi_hot"),
        (Bucketize(columns=["a"]), ["x"], "categorical"),
        (Categorical(columns=["a"]), [["x"]], "multi_hot"),
        (Categorical(columns=["a"]), [{"x": 1}], "Cast it"),
        (Categorical(columns=["a"]), [dt.datetime(2020, 1, 1)], "bucketize"),
        (MultiHot(columns=["a"]), [3], "standardize"),
        (HashText(columns=["a"]), [3], "standardize"),
        (HashText(columns=["a"]), [["x"]], "multi_hot"),
        (Standardize(columns=["a"]), [b"x"], "Cast it"),
    ],
)
def test_column_of_a_wrong_type_is_refused_with_what_reads_it(
    feature: Preprocessor, values: list[object], remedy: str
) -> None:
    table = pa.table({"a": values})
    with pytest.raises(DataError, match=rf"data\.a: type .*expected.*{remedy}"):
        feature.fit(table)


def test_column_of_another_type_than_in_the_fit_is_refused() -> None:
    text = pa.table({"a": ["x", "y"]})
    number = pa.table({"a": [1, 2]})
    time = pa.table({"a": pa.array([1, 2], pa.timestamp("s"))})
    for fitted, table in (
        (Categorical(columns=["a"]).fit(text), number),
        (Categorical(columns=["a"]).fit(number), text),
        (Standardize(columns=["a"]).fit(number), time),
        (Standardize(columns=["a"]).fit(number), text),
        (Bucketize(columns=["a"]).fit(time), number),
        (MultiHot(columns=["a"]).fit(text), number),
        (Missing(columns=["a"]).fit(number), text),
        (HashText(columns=["a"]).fit(text), number),
        (Missing(columns=["a"], strategy="most_frequent").fit(number), pa.table({"a": [0.5]})),
    ):
        with pytest.raises(DataError, match="column a: "):
            fitted.transform(table)


def test_filled_text_gives_no_feature() -> None:
    feature = Missing(columns=["gender"], strategy="constant", value="?")
    with pytest.raises(DataError, match="categorical") as caught:
        fit_features([feature], USERS, where="nodes.user.features")
    assert "nodes.user.features.0" in str(caught.value)
    fitted = feature.fit(USERS)
    assert fitted.feature_names == []
    with pytest.raises(DataError, match="categorical"):
        fitted.encode(USERS)


def test_message_says_where_in_the_config() -> None:
    features = [Standardize(columns=["age"]), Standardize(columns=["gender"])]
    with pytest.raises(DataError, match=r"^nodes\.user\.features\.1 \(data\.gender\): type string"):
        fit_features(features, USERS, where="nodes.user.features")


def test_multi_hot_without_any_value_is_refused() -> None:
    with pytest.raises(DataError, match="frequent enough"):
        MultiHot(columns=["g"]).fit(pa.table({"g": ["", " ", None]}))


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"columns": {}},
        {"columns": {"age": {}}},
        {"columns": {"age": {"unit": "number", "mean": "x", "std": 1.0}}},
        {"settings": {"kind": "nothing", "columns": ["age"]}},
        {"settings": {"kind": "standardize", "column": ["age"]}},
    ],
)
def test_damaged_state_is_refused(damage: dict[str, object]) -> None:
    data = Standardize(columns=["age"]).fit(USERS).to_json()
    with pytest.raises(CheckpointError):
        Fitted.from_json({**data, **damage})
    with pytest.raises(CheckpointError):
        FittedFeatures.from_json({"features": [{**data, **damage}]})
    with pytest.raises(CheckpointError):
        FittedFeatures.from_json({})


class _Rows(Accumulator):
    def update(self, block: pa.Array) -> None:
        self.rows += len(block)

    def finish(self) -> dict[str, object]:
        return {"rows": self.rows}


class _Share(Encoder):
    def __init__(self, column: Column, rows: int) -> None:
        super().__init__(column, [f"{column.name}/rows"])
        self._rows = rows

    def check(self, kind: pa.DataType) -> None:
        if not pa.types.is_integer(kind):
            raise self.column.error("no whole numbers")

    def encode(self, values: pa.Array, out: np.ndarray) -> None:
        out[:, 0] = values.to_numpy() / self._rows

    def transform(self, values: pa.ChunkedArray) -> dict[str, object]:
        return {self.column.name: pa.array(values.to_numpy() / self._rows)}


class Share(Preprocessor):
    """A preprocessor of one's own."""

    def accumulator(self, column: Column) -> Accumulator:
        return _Rows(column)

    def encoder(self, column: Column, state: Mapping[str, object]) -> Encoder:
        return _Share(column, state["rows"])


def test_preprocessor_of_ones_own_fits_and_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    monkeypatch.setattr(Share, "__module__", "mine")
    own = pydantic.TypeAdapter(PreprocessorField).validate_python({"kind": "mine:Share", "columns": ["age"]})
    assert own == Share(columns=["age"])
    fitted = through_json(own.fit(USERS))
    assert fitted.to_json()["settings"]["kind"] == "mine:Share"
    np.testing.assert_array_equal(fitted.encode(USERS)[:, 0], np.float32([5, 7.5, 10, 12.5]))
    assert own.to_ray().fit(USERS).transform(USERS)["age"].to_pylist() == [5, 7.5, 10, 12.5]
    with pytest.raises(DataError, match="column gender: no whole numbers"):
        Share(columns=["gender"]).fit(USERS).encode(USERS)
