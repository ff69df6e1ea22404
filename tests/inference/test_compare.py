"""`compare_units`: paired differences with their intervals, what cannot be compared, and the report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sp_ray_ml.errors import ColumnNotFoundError, ConfigError, DataError, StorageError
from sp_ray_ml.inference import (
    Classification,
    Ranking,
    Regression,
    RowEvaluator,
    compare_units,
    evaluate_predictions,
)
from sp_ray_ml.inference._compare_parts import _same_values
from sp_ray_ml.inference._report import better, report
from sp_ray_ml.inference.compare import Difference

from .test_evaluation import ITEMS, binary, shuffled, world

RANKING = Ranking(k=[3, 8])


def kept(
    folder: Path, name: str, predictions: Any, evaluator: Any, **options: Any
) -> tuple[Path, dict[str, float]]:
    """Evaluate, and keep what is needed to compare."""
    file = folder / f"{name}.parquet"
    return file, evaluate_predictions(predictions, evaluator, units=file, **options).metrics


def noisy(table: pa.Table, sigma: float, column: str = "probability") -> pa.Table:
    values = table[column].to_numpy() + np.random.default_rng(9).normal(0, sigma, table.num_rows)
    values = np.clip(values, 0, 1) if column == "probability" else values
    return table.set_column(table.column_names.index(column), column, pa.array(values))


def test_lists_are_compared_user_by_user(tmp_path: Path) -> None:
    tables = world()
    options = {"truth": tables["truth"], "users": tables["users"], "by": ["country"]}
    a, of_a = kept(tmp_path, "a", tables["predictions"], RANKING, **options)
    # The second puts what is right first, for all.
    right = {(row["user_id"], row["item_id"]) for row in tables["truth"].to_pylist()}
    rows = sorted(
        tables["predictions"].to_pylist(),
        key=lambda row: (row["user_id"], (row["user_id"], row["item_id"]) not in right, row["rank"]),
    )
    better = pa.Table.from_pylist([{**row, "rank": i} for i, row in enumerate(rows)])
    b, of_b = kept(tmp_path, "b", shuffled(better), RANKING, **options)
    found = compare_units(a, b, by=["country"], bootstrap=200)
    by_name = {each.metric: each for each in found.differences}
    assert found.of == "users"
    assert found.units == of_a["users"] == of_b["users"]
    for name, each in by_name.items():
        assert each.a == pytest.approx(of_a[name], abs=1e-12), name
        assert each.b == pytest.approx(of_b[name], abs=1e-12), name
    assert by_name["ndcg@8"].significant
    assert by_name["ndcg@8"].low is not None
    assert by_name["ndcg@8"].low < by_name["ndcg@8"].difference < by_name["ndcg@8"].high
    # Nobody's hits within the whole list change: the difference is 0 and so is its interval.
    assert (by_name["recall@8"].low, by_name["recall@8"].high) == (0, 0)
    assert not by_name["recall@8"].significant
    # The same items in another order spread alike over all places, but not over the first three.
    assert (by_name["gini@8"].low, by_name["gini@8"].high) == (0, 0)
    gini = by_name["gini@3/country=FR"]
    assert gini.low is not None
    assert gini.high is not None
    assert gini.low < gini.difference < gini.high
    same = compare_units(a, a, bootstrap=20)
    assert all(each.difference == 0 and not each.significant for each in same.differences)


def test_pairing_makes_intervals_shorter_than_those_of_each(tmp_path: Path) -> None:
    table = binary()
    a, _ = kept(tmp_path, "a", table, Classification(), on="id")
    b, _ = kept(tmp_path, "b", shuffled(noisy(table, 0.02)), Classification(), on="id")
    found = {each.metric: each for each in compare_units(a, b, bootstrap=200).differences}
    alone = evaluate_predictions(table, Classification(), on="id", bootstrap=200).intervals
    for name in ("brier", "auc"):
        each = found[name]
        assert each.low is not None
        assert each.high is not None
        assert each.low <= each.difference <= each.high
        assert each.high - each.low < (alone[name][1] - alone[name][0]) / 3, name
    assert found["pr_auc"].low is not None


def test_many_classes_are_compared_by_their_areas(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    truth = random.integers(0, 3, 400)
    sharp, dull = (random.dirichlet(np.ones(3), 400) + weight * np.eye(3)[truth] for weight in (2, 0.3))
    settings = Classification(probabilities="p")
    files = []
    for name, scores in (("dull", dull), ("sharp", sharp)):
        rows = {"truth": truth, "p": list(scores / scores.sum(axis=1, keepdims=True))}
        files.append(kept(tmp_path, name, rows, settings))
    found = {each.metric: each for each in compare_units(files[0][0], files[1][0], bootstrap=60).differences}
    for name in ("auc", "pr_auc"):
        assert (found[name].a, found[name].b) == (files[0][1][name], files[1][1][name])
        assert found[name].low is not None
        assert 0 < found[name].low < found[name].difference < (found[name].high or 0)


def test_files_of_versions_that_kept_no_lists_are_still_compared(tmp_path: Path) -> None:
    tables = world()
    new, _ = kept(tmp_path, "new", tables["predictions"], RANKING, truth=tables["truth"])
    table = pq.read_table(new)
    metadata = dict(table.schema.metadata)
    [key] = metadata
    header = {
        name: value for name, value in json.loads(metadata[key]).items() if name not in {"k", "num_items"}
    }
    old = tmp_path / "old.parquet"
    pq.write_table(
        table.drop_columns(["recommended", "test_digest"]).replace_schema_metadata(
            {key: json.dumps(header).encode()}
        ),
        old,
    )
    both, mixed = (
        {each.metric for each in compare_units(a, new, bootstrap=5).differences} for a in (new, old)
    )
    assert {name.partition("@")[0] for name in both - mixed} == {"coverage", "gini", "entropy"}
    assert "ndcg@8" in mixed


def test_calibration_of_both_is_compared_over_the_bins_of_the_first(tmp_path: Path) -> None:
    table = binary()
    ten, _ = kept(tmp_path, "ten", table, Classification(), on="id")
    four, _ = kept(tmp_path, "four", table, Classification(bins=4), on="id")
    even, measured = kept(tmp_path, "even", table, Classification(strategy="quantile"), on="id")
    for a, b in ((ten, four), (four, even), (even, ten)):
        found = {each.metric: each for each in compare_units(a, b, bootstrap=5).differences}
        assert found["ece"].difference == 0
    assert found["ece"].a == measured["ece"]


def test_intervals_hold_the_true_difference_as_often_as_they_say(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    held = 0
    for trial in range(40):
        truth = random.normal(0, 1, 300)
        first, second = truth + random.normal(0, 1, 300), truth + random.normal(0, 1.2, 300)
        a, _ = kept(tmp_path, f"a{trial}", {"truth": truth, "prediction": first}, Regression())
        b, _ = kept(tmp_path, f"b{trial}", {"truth": truth, "prediction": second}, Regression())
        each = next(
            d for d in compare_units(a, b, bootstrap=200, seed=trial).differences if d.metric == "rmse"
        )
        assert each.low is not None
        assert each.high is not None
        held += each.low <= 0.2 <= each.high
    assert held >= 33  # 38 are expected; fewer than 33 are less likely than 1 in 200


def test_values_far_from_zero_are_compared_as_exactly(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = 1.7e9 + 10 * random.random(500)
    files, metrics = zip(
        *(
            kept(
                tmp_path,
                f"{noise}",
                {"truth": truth, "prediction": truth + random.normal(0, noise, 500)},
                Regression(),
            )
            for noise in (2, 1)
        ),
        strict=True,
    )
    found = {each.metric: each for each in compare_units(*files, bootstrap=100).differences}
    for name in ("rmse", "r2", "explained_variance"):
        each = found[name]
        assert (each.a, each.b) == (metrics[0][name], metrics[1][name])
        assert better(each)


def test_few_units_have_no_interval_and_are_never_significant(tmp_path: Path) -> None:
    table = binary(400).slice(0, 12)
    table = table.set_column(3, "shop", pa.array(["few"] * 3 + ["many"] * 9))
    options: dict[str, Any] = {"on": "id", "by": ["shop"], "bootstrap": 20}
    a, _ = kept(tmp_path, "a", table, Classification(), **options)
    b, _ = kept(tmp_path, "b", noisy(table, 0.2), Classification(), **options)
    found = {each.metric: each for each in compare_units(a, b, by=["shop"], bootstrap=20).differences}
    assert found["brier"].low is not None
    assert found["brier/shop=few"].low is None
    assert not found["brier/shop=few"].significant
    measured = evaluate_predictions(table, Classification(), **options)
    assert "brier" in measured.intervals
    assert "brier/shop=few" not in measured.intervals


def test_what_both_have_is_compared_and_the_rest_told(tmp_path: Path) -> None:
    table = binary()
    a, _ = kept(tmp_path, "a", table.slice(0, 1_500), Classification(), on="id")
    b, _ = kept(tmp_path, "b", table.slice(200), Classification(), on="id")
    found = compare_units(a, b, bootstrap=20)
    assert found.units == 1_300
    assert found.notes == ["700 rows that only one of the runs was measured on are left out"]


def test_what_cannot_be_compared_is_refused_with_the_reason(tmp_path: Path) -> None:
    table, tables = binary(), world()
    rows, _ = kept(tmp_path, "rows", table, Classification(), on="id")
    lists, _ = kept(tmp_path, "lists", tables["predictions"], RANKING, truth=tables["truth"])
    with pytest.raises(
        DataError, match="measured different things: classification, and ranked lists of users"
    ):
        compare_units(rows, lists)
    moved = table.set_column(0, "id", pa.array(np.arange(table.num_rows) + 10**6))
    elsewhere, _ = kept(tmp_path, "elsewhere", moved, Classification(), on="id")
    with pytest.raises(DataError, match="share none of their 2,000 and 2,000 rows"):
        compare_units(rows, elsewhere)
    turned = table.set_column(1, "truth", pa.compute.invert(table["truth"]))
    other, _ = kept(tmp_path, "other", turned, Classification(), on="id")
    with pytest.raises(DataError, match="different truths"):
        compare_units(rows, other)
    fewer, _ = kept(tmp_path, "fewer", tables["predictions"], RANKING, truth=tables["truth"].slice(1))
    with pytest.raises(DataError, match="different test items for the same users, 1 of 59"):
        compare_units(lists, fewer)
    # As many, but others: what leave-one-out makes of other events.
    moved_items = pa.array((tables["truth"]["item_id"].to_numpy() + 1) % ITEMS)
    moved_truth = tables["truth"].set_column(1, "item_id", moved_items)
    others, _ = kept(tmp_path, "others", tables["predictions"], RANKING, truth=moved_truth)
    with pytest.raises(DataError, match="different test items for the same users, 58 of 59"):
        compare_units(lists, others)
    with pytest.raises(ColumnNotFoundError, match=r"kept no column 'country'"):
        compare_units(lists, lists, by=["country"])
    deep, _ = kept(tmp_path, "deep", tables["predictions"], Ranking(k=[5]), truth=tables["truth"])
    with pytest.raises(DataError, match="no metric in common: k = 3, 8, and k = 5"):
        compare_units(lists, deep)
    both, _ = kept(tmp_path, "both", tables["predictions"], Ranking(k=[5, 8]), truth=tables["truth"])
    assert any(
        "only one of the runs has recall@3" in note for note in compare_units(lists, both, bootstrap=2).notes
    )
    words = table.set_column(1, "truth", pa.array(["yes", "no"] * 1_000))
    texts, _ = kept(tmp_path, "texts", words, Classification(classes=["no", "yes"]), on="id")
    numbers, _ = kept(
        tmp_path, "numbers", table.set_column(1, "truth", pa.array([0, 1] * 1_000)), Classification(), on="id"
    )
    with pytest.raises(DataError, match="different truths"):
        compare_units(numbers, texts)
    three = table.append_column("p", pa.array([[0.2, 0.3, 0.5]] * 2_000))
    more, _ = kept(tmp_path, "more", three, Classification(probabilities="p"), on="id")
    with pytest.raises(DataError, match="2 and 3 classes"):
        compare_units(rows, more)
    unnamed, _ = kept(tmp_path, "unnamed", table, Classification())
    with pytest.raises(DataError, match="tell rows apart by id, and by their place"):
        compare_units(rows, unnamed)
    (tmp_path / "foreign.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(StorageError):
        compare_units(rows, tmp_path / "foreign.parquet")


def test_categories_are_the_same_truth_in_whatever_order_they_are_encoded(tmp_path: Path) -> None:
    table = binary(400)
    words = pa.array(np.where(table["truth"].to_numpy(), "yes", "no"))
    settings = Classification(classes=["no", "yes"])
    files = []
    for name, values in (("a", ["no", "yes"]), ("b", ["yes", "no"]), ("plain", None)):
        codes = (
            words
            if values is None
            else pa.DictionaryArray.from_arrays(pc.index_in(words, pa.array(values)), values)
        )
        files.append(kept(tmp_path, name, table.set_column(1, "truth", codes), settings, on="id")[0])
    for other in files[1:]:
        assert compare_units(files[0], other, bootstrap=5).units == 400
    assert not _same_values(
        pa.array([0], pa.date32()), pa.array([True])
    )  # Arrow makes neither into the other


def test_ids_may_have_any_name_and_be_encoded_in_any_order(tmp_path: Path) -> None:
    table = binary(400)
    shop = table["shop"].combine_chunks()
    for name in ("a", "b", "id 0"):
        named = table.append_column(name, table["id"])
        kinds = [pa.DictionaryArray.from_arrays(pc.index_in(shop, values), values) for values in
                 (pc.unique(shop), pc.unique(shop)[::-1])]  # fmt: skip
        files = [
            kept(
                tmp_path, f"{name}{i}", named.set_column(3, "shop", kind), Classification(), on=[name, "shop"]
            )[0]
            for i, kind in enumerate(kinds)
        ]
        assert compare_units(*files, bootstrap=5).units == 400


def test_ids_that_are_not_unique_are_refused_and_one_is_named(tmp_path: Path) -> None:
    table = binary(40)
    once, _ = kept(tmp_path, "once", table, Classification(), on="id")
    ids = pa.array([*range(39), 17])
    twice, _ = kept(tmp_path, "twice", table.set_column(0, "id", ids), Classification(), on="id")
    for a, b in ((once, twice), (twice, once), (twice, twice)):
        with pytest.raises(DataError, match="the row id 17 is there 2 times in one of the runs"):
            compare_units(a, b)
    text, _ = kept(
        tmp_path, "text", table.set_column(0, "id", table["id"].cast("string")), Classification(), on="id"
    )
    with pytest.raises(DataError, match="the ids 'id' are int64 in one table and string in the other"):
        compare_units(once, text)
    with pytest.raises(ConfigError, match="seed -1"):
        compare_units(once, once, seed=-1)


class Cost(RowEvaluator):
    """Costs and gains of errors, one of which has no known direction."""

    def columns(self) -> list[str]:
        return ["truth", "prediction"]

    def values(self, rows: pa.RecordBatch) -> Mapping[str, np.ndarray]:
        error = np.abs(rows.column("truth").to_numpy() - rows.column("prediction").to_numpy())
        return {"wape": error, "hinge": error, "gained": -error, "mae": error}


class DeclaredCost(Cost):
    """The same, and which way is better."""

    def larger_is_better(self, metric: str) -> bool | None:
        return {"wape": False, "hinge": False, "gained": True}.get(metric)


def test_metrics_of_ones_own_have_the_verdict_that_their_evaluator_declares(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth, shop = random.normal(0, 1, 200), ["x", "y"] * 100
    verdicts = []
    for kind in (Cost, DeclaredCost):
        files = [
            kept(tmp_path, f"{kind.__name__}{noise}",
                 {"truth": truth, "prediction": truth + noise, "shop": shop}, kind(), by=["shop"])[0]
            for noise in (1.0, 0.5)
        ]  # fmt: skip
        found = compare_units(*files, by=["shop"], bootstrap=20).differences
        verdicts.append({each.metric: better(each) for each in found})
    names = [
        f"{name}{suffix}" for name in ("wape", "hinge", "gained") for suffix in ("", "/shop=x", "/shop=y")
    ]
    assert [verdicts[0][name] for name in names] == [None] * 9
    assert [verdicts[1][name] for name in names] == [True] * 9
    assert verdicts[0]["mae"] is verdicts[1]["mae"] is True


@pytest.mark.parametrize(
    ("metric", "a", "b", "verdict"),
    [("ndcg@10/country=DE", 0.2, 0.3, True), ("brier", 0.2, 0.3, False), ("ece/shop=a", 0.3, 0.2, True),
     ("gini@10", 0.2, 0.3, False), ("bias", -0.3, 0.2, True), ("bias", 0.1, 0.2, False),
     ("popularity@10", 5, 9, None), ("entropy@10", 0.02, 0.01, None), ("wape", 0.2, 0.3, None),
     ("error_rate", 0.2, 0.3, None)],
)  # fmt: skip
def test_the_verdict_knows_which_way_a_metric_is_better(
    metric: str, a: float, b: float, verdict: bool | None
) -> None:
    low, high = sorted(((b - a) * 0.5, (b - a) * 1.5))
    assert better(Difference(metric, a, b, low, high)) is verdict
    assert better(Difference(metric, a, b, -1, 1)) is None


def test_a_failed_evaluation_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        kept(tmp_path, "a", {"truth": [0.0, 1.0], "prediction": [None, 1.0]}, Regression())
    assert list(tmp_path.iterdir()) == []


class _References(HTMLParser):
    """Whatever a page asks a network for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "link", "iframe", "img", "object", "embed"}:
            self.found.append(tag)
        self.found += [
            value or ""
            for name, value in attrs
            if name in {"src", "href"} and not (value or "").startswith("#")
        ]


def test_the_report_is_one_file_without_a_network_and_escapes_names(tmp_path: Path) -> None:
    tables = world()
    options = {"truth": tables["truth"], "users": tables["users"], "by": ["country"]}
    a, _ = kept(tmp_path, "a", tables["predictions"], RANKING, **options)
    b, _ = kept(tmp_path, "b", shuffled(tables["predictions"]), RANKING, **options)
    page = report(
        compare_units(a, b, by=["country"], bootstrap=20), "<first>", "second & last", {"second": "/runs"}
    )
    references = _References()
    references.feed(page)
    assert references.found == []
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    assert "&lt;first&gt;" in page
    assert "<first>" not in page
    assert page.count("<svg") == page.count("</svg>") == 3
    assert "ndcg@8" in page
    assert "recall@3/country=FR" in page


def test_the_report_takes_names_with_dollars_as_they_are(tmp_path: Path) -> None:
    table = binary(400)
    shops = np.where(np.arange(400) % 2 == 0, "$5_{ & $10^", "a$b")
    table = table.set_column(3, "shop", pa.array(shops))
    options: dict[str, Any] = {"on": "id", "by": ["shop"]}
    a, _ = kept(tmp_path, "a", table, Classification(), **options)
    b, _ = kept(tmp_path, "b", noisy(table, 0.2), Classification(), **options)
    page = report(compare_units(a, b, by=["shop"], bootstrap=20), "$first_{$", "second", {})
    assert "shop=a$b</text>" in page
    assert "shop=$5_{ &amp; $10^</text>" in page
