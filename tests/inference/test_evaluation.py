"""`evaluate_predictions`: RecBole's and scikit-learn's numbers, the same bits however tables come, and clear refusals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.calibration
import sklearn.metrics

from sp_ray_ml.errors import ColumnNotFoundError, ConfigError, DataError
from sp_ray_ml.inference import Classification, Ranking, Regression, RowEvaluator, evaluate_predictions
from sp_ray_ml.inference import _evaluation_exposure as exposure_module
from sp_ray_ml.inference import _evaluation_lists as lists_module
from sp_ray_ml.inference import _evaluation_ray_lists as ray_lists_module
from sp_ray_ml.metrics._weights_kernel import poisson_weights

USERS, ITEMS, K = 60, 40, 8
KS = [3, 8]


def world(seed: int = 0) -> dict[str, pa.Table]:
    """Lists of 60 users (one of them too short, one missing), test items, and a catalogue with what nobody saw."""
    random = np.random.default_rng(seed)
    lists = {user: random.permutation(ITEMS)[: 5 if user == 7 else K] for user in range(USERS) if user != 9}
    truth = {
        user: random.choice(ITEMS, random.integers(1, 12), replace=False)
        for user in range(USERS)
        if user != 4
    }
    truth[11] = np.arange(ITEMS)  # more than are looked through one by one
    return {
        "predictions": pa.table(
            {
                "user_id": np.repeat(list(lists), [len(each) for each in lists.values()]),
                "rank": np.concatenate([np.arange(1, len(each) + 1) for each in lists.values()]),
                "item_id": np.concatenate(list(lists.values())),
            }
        ),
        "truth": pa.table(
            {
                "user_id": np.repeat(list(truth), [len(each) for each in truth.values()]),
                "item_id": np.concatenate(list(truth.values())),
            }
        ),
        "items": pa.table(
            {
                "item_id": np.arange(ITEMS),
                "events": random.integers(0, 30, ITEMS),
                "genres": [[f"g{i % 3}", f"g{i % 5}"] for i in range(ITEMS)],
            }
        ),
        "users": pa.table(
            {"user_id": np.arange(USERS), "country": [["DE", "FR", None][i % 3] for i in range(USERS)]}
        ),
    }


def shuffled(table: pa.Table, seed: int = 1) -> pa.Table:
    return table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows)))


def reference(tables: Mapping[str, pa.Table], k: int, tail: float = 0.1) -> dict[str, float]:
    """RecBole's definitions, written out: over the users who have a list of full length and a test item."""
    ranked: dict[int, list[int]] = {}
    for row in sorted(tables["predictions"].to_pylist(), key=lambda row: row["rank"]):
        ranked.setdefault(row["user_id"], []).append(row["item_id"])
    truth: dict[int, set[int]] = {}
    for row in tables["truth"].to_pylist():
        truth.setdefault(row["user_id"], set()).add(row["item_id"])
    counts = {row["item_id"]: row["events"] for row in tables["items"].to_pylist() if row["events"]}
    by_count = sorted(counts.items(), key=lambda kv: (kv[1], kv[0]))
    rare = (
        {item for item, _ in by_count[: max(int(len(counts) * tail), 1)]}
        if tail <= 1
        else {i for i, c in counts.items() if c <= tail}
    )
    genres = {row["item_id"]: set(row["genres"]) for row in tables["items"].to_pylist()}
    sums: Counter[str] = Counter()
    shown: Counter[int] = Counter()
    for user, items in truth.items():
        top = ranked.get(user, [])[:k]
        shown.update(top)
        hits = [item in items for item in top]
        places = [i + 1 for i, hit in enumerate(hits) if hit]
        sums["recall"] += sum(hits) / len(items)
        sums["precision"] += sum(hits) / k
        sums["hit_rate"] += any(hits)
        sums["mrr"] += 1 / places[0] if places else 0
        sums["map"] += sum(sum(hits[:i]) / i for i in places) / min(len(items), k)
        ideal = sum(1 / math.log2(i + 2) for i in range(min(len(items), k)))
        sums["ndcg"] += sum(1 / math.log2(i + 1) for i in places) / ideal
        n = max(len(top), 1)
        sums["popularity"] += sum(counts.get(item, 0) for item in top) / n
        sums["tail"] += sum(item in rare for item in top) / n
        total = sum(counts.values())
        sums["novelty"] += sum(-math.log2(max(counts.get(item, 0), 1) / total) for item in top) / n
        pairs = [(a, b) for i, a in enumerate(top) for b in top[:i]]
        alike = [len(genres[a] & genres[b]) / math.sqrt(len(genres[a]) * len(genres[b])) for a, b in pairs]
        sums["diversity"] += sum(1 - each for each in alike) / max(len(pairs), 1)
    found = {name: value / len(truth) for name, value in sums.items()}
    ordered = sorted([0] * (ITEMS - len(shown)) + list(shown.values()))
    total = sum(ordered)
    found["coverage"] = len(shown) / ITEMS
    found["gini"] = sum((2 * i - ITEMS - 1) * count for i, count in enumerate(ordered, 1)) / total / ITEMS
    found["entropy"] = sum(-c / total * math.log(c / total) for c in shown.values()) / len(shown)
    return found


RANKING = Ranking(k=KS, popularity="events", features="genres")


def evaluated(tables: Mapping[str, Any], settings: Ranking = RANKING, **options: Any) -> Any:
    return evaluate_predictions(
        tables["predictions"], settings, truth=tables["truth"], items=tables["items"], **options
    )


@pytest.mark.parametrize("tail", [0.1, 0.35, 5])
def test_lists_are_measured_by_recboles_definitions(tail: float) -> None:
    tables = world()
    found = evaluated(tables, Ranking(k=KS, popularity="events", features="genres", tail=tail)).metrics
    expected = {f"{name}@{k}": value for k in KS for name, value in reference(tables, k, tail).items()}
    assert found.pop("users") == USERS - 1
    assert found == pytest.approx(expected, rel=1e-12)


def test_lists_are_measured_as_the_main_job_does() -> None:
    from scipy.sparse import csr_array

    from sp_ray_ml.metrics import RankingMetrics

    tables = world()
    metrics = RankingMetrics(KS, ITEMS, average_precision=True)
    lists, truth = np.full((USERS, K), -1, np.int32), np.zeros((USERS, ITEMS), bool)
    for row in tables["predictions"].to_pylist():
        lists[row["user_id"], row["rank"] - 1] = row["item_id"]
    truth[tables["truth"]["user_id"].to_numpy(), tables["truth"]["item_id"].to_numpy()] = True
    metrics.update(lists, csr_array(truth))
    found = evaluated(tables).metrics
    assert {name: found[name] for name in metrics.finish()} == metrics.finish()
    assert "map@8" in metrics.finish()
    assert "map@8" not in RankingMetrics(KS, ITEMS).names


def as_text(table: pa.Table) -> pa.Table:
    """Ids that sort as the numbers do."""
    for name in ("user_id", "item_id"):
        if name in table.column_names:
            text = pa.array([f"id-{value:05}" for value in table[name].to_pylist()])
            table = table.set_column(table.column_names.index(name), name, text)
    return table


def far(table: pa.Table) -> pa.Table:
    """Ids that are no small numbers."""
    for name in ("user_id", "item_id"):
        if name in table.column_names:
            table = table.set_column(
                table.column_names.index(name), name, pa.array(table[name].to_numpy() * 10**12 - 5)
            )
    return table


@pytest.mark.parametrize("change", [shuffled, as_text, far], ids=lambda change: change.__name__)
@pytest.mark.parametrize("on_disk", [False, True])
def test_order_kind_of_ids_and_disk_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, change: Any, on_disk: bool
) -> None:
    tables = world()
    options = {"by": ["country"], "bootstrap": 10}
    expected = evaluated(tables, users=tables["users"], **options)
    if on_disk:
        monkeypatch.setattr(lists_module, "_IN_MEMORY", 100)
        monkeypatch.setattr(lists_module, "_CHUNK", 64)
        for name, value in (("_IN_MEMORY", 100), ("_MOST_COUNTS", 1_000), ("_USERS", 7)):
            monkeypatch.setattr(exposure_module, name, value)
    changed = {name: change(table) for name, table in tables.items()}
    found = evaluated(changed, users=changed["users"], **options)
    assert found.metrics == expected.metrics
    if change is shuffled:
        assert found.intervals == expected.intervals


def with_users_and_items(tables: Mapping[str, pa.Table], user: int, item: int) -> dict[str, pa.Table]:
    """One more user and one more item, of whom and of which nothing else is known."""
    users = pa.concat_tables([tables["users"], pa.table({"user_id": [user], "country": ["IT"]})])
    more = pa.table({"item_id": [item], "events": [0], "genres": [["g0"]]})
    return {**tables, "users": users, "items": pa.concat_tables([tables["items"], more])}


def test_ids_of_users_and_items_that_are_no_small_numbers_change_no_metric() -> None:
    near, tables = with_users_and_items(world(), USERS, ITEMS), world()
    expected = evaluated(near, users=near["users"], by=["country"])
    for user, item in ((20_000_000, ITEMS), (USERS, 99_999_999), (USERS, -1), (-7, 2**40)):
        given = with_users_and_items(tables, user, item)
        assert evaluated(given, users=given["users"], by=["country"]) == expected


def drawn_weights(units: Any, replicates: int, seed: int) -> np.ndarray:
    weights = np.empty((replicates, len(units)))
    poisson_weights(np.asarray(units, np.uint64), np.uint64(seed), weights)
    return weights


def test_intervals_of_spread_are_those_of_lists_as_often_as_users_are_drawn() -> None:
    tables, replicates = world(), 30
    found = evaluated(tables, users=tables["users"], by=["country"], bootstrap=replicates, seed=3)
    ranked = pa.TableGroupBy(tables["predictions"].sort_by("rank"), "user_id", use_threads=False)
    lists = {
        row["user_id"]: row["item_id_list"] for row in ranked.aggregate([("item_id", "list")]).to_pylist()
    }
    with_truth = sorted(set(tables["truth"]["user_id"].to_pylist()))
    for suffix, mine in (("", with_truth), ("/country=FR", [user for user in with_truth if user % 3 == 1])):
        drawn: dict[str, list[float]] = {"coverage": [], "gini": [], "entropy": []}
        for weights in drawn_weights(mine, replicates, 3):
            shown = np.zeros(ITEMS)
            for user, weight in zip(mine, weights, strict=True):
                shown[lists.get(user, [])[:3]] += weight
            counts, p = np.sort(shown), shown[shown > 0] / shown.sum()
            drawn["coverage"].append(len(p) / ITEMS)
            drawn["gini"].append(
                float((2 * np.arange(1, ITEMS + 1) - ITEMS - 1) @ counts) / shown.sum() / ITEMS
            )
            drawn["entropy"].append(float(-(p * np.log(p)).sum()) / len(p))
        for name, values in drawn.items():
            around = np.array(values) - np.mean(values) + found.metrics[f"{name}@3{suffix}"]
            expected = np.clip(np.quantile(around, [0.025, 0.975]), 0, 1)
            assert found.intervals[f"{name}@3{suffix}"] == pytest.approx(expected, rel=1e-9), name + suffix


def test_scores_rank_as_ranks_do() -> None:
    tables = world()
    ranks = tables["predictions"]["rank"].to_numpy()
    scored = (
        tables["predictions"].drop_columns("rank").append_column("score", pa.array(-ranks.astype(np.float32)))
    )
    found = evaluated(
        {**tables, "predictions": shuffled(scored)}, RANKING.model_copy(update={"score": "score"})
    )
    assert found == evaluated(tables)


def test_segments_are_measured_as_if_alone() -> None:
    tables = world()
    found = evaluated(tables, users=tables["users"], by=["country"])
    users = np.arange(USERS)[np.arange(USERS) % 3 == 1]
    alone = {
        name: table.filter(pa.compute.is_in(table["user_id"], pa.array(users)))
        if name in {"predictions", "truth"}
        else table
        for name, table in tables.items()
    }
    expected = {f"{name}/country=FR": value for name, value in evaluated(alone).metrics.items()}
    assert {name: value for name, value in found.metrics.items() if name.endswith("country=FR")} == expected
    assert found.metrics["users/country=null"] == 20


def test_without_truth_only_what_needs_none_is_measured() -> None:
    tables = world()
    found = evaluate_predictions(tables["predictions"], RANKING, items=tables["items"]).metrics
    assert found["users"] == USERS - 1
    assert {name.partition("@")[0] for name in found} == {
        "users", "coverage", "gini", "entropy", "popularity", "novelty", "tail", "diversity",
    }  # fmt: skip


def test_what_is_wrong_with_lists_is_named() -> None:
    tables = world()
    twice = pa.concat_tables([tables["predictions"], tables["predictions"].slice(3, 1)])
    with pytest.raises(DataError, match="an item is twice in the list of user 0"):
        evaluated({**tables, "predictions": twice})
    with pytest.raises(
        DataError, match="1 items of the predictions are not in the table of items, such as 39"
    ):
        evaluated({**tables, "items": tables["items"].slice(0, 39)})
    with pytest.raises(ColumnNotFoundError, match="no column 'position'"):
        evaluated(tables, Ranking(rank="position"))
    ranks = pa.array([None, *tables["predictions"]["rank"].to_pylist()[1:]])
    holes = tables["predictions"].set_column(1, "rank", ranks)
    with pytest.raises(DataError, match="rows have no rank or score"):
        evaluated({**tables, "predictions": holes})
    with pytest.raises(DataError, match="no user has a test item"):
        evaluated({**tables, "truth": tables["truth"].slice(0, 0)})
    with pytest.raises(DataError, match="need a table of users"):
        evaluated(tables, by=["country"])
    with pytest.raises(DataError, match="need a table of items"):
        evaluate_predictions(tables["predictions"], RANKING, truth=tables["truth"])
    with pytest.raises(ConfigError, match="measured alone"):
        evaluate_predictions(tables["predictions"], [RANKING, Regression()])
    for wrong, says in (
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**64}, "seed"),
        ({"bootstrap": -1}, "-1 replicates"),
    ):
        with pytest.raises(ConfigError, match=says):
            evaluated(tables, **{"bootstrap": 5, **wrong})


# --- rows -------------------------------------------------------------------------------------------------------


def binary(rows: int = 2_000) -> pa.Table:
    random = np.random.default_rng(2)
    truth = random.random(rows) < 0.3
    score = np.clip(random.normal(0.3 + 0.2 * truth, 0.2), 0, 1)
    return pa.table(
        {
            "id": np.arange(rows) * 3,
            "truth": truth,
            "probability": score,
            "shop": [f"s{i % 4}" for i in range(rows)],
        }
    )


def test_two_classes_are_measured_as_by_scikit_learn() -> None:
    table = binary()
    truth, score = table["truth"].to_numpy(), table["probability"].to_numpy()
    found = evaluate_predictions(table, Classification()).metrics
    means = {"rel": 1e-10, "abs": 1e-11}
    assert found["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(truth, score), rel=1e-12)
    assert found["pr_auc"] == pytest.approx(sklearn.metrics.average_precision_score(truth, score), rel=1e-12)
    assert found["log_loss"] == pytest.approx(sklearn.metrics.log_loss(truth, score), **means)
    assert found["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(truth, score), **means)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, score > 0.5), **means)
    assert found["f1"] == pytest.approx(
        sklearn.metrics.f1_score(truth, score > 0.5, average="macro"), **means
    )
    share, mean = sklearn.calibration.calibration_curve(truth, score, n_bins=10)
    sizes = np.bincount(np.minimum((score * 10).astype(int), 9), minlength=10)
    expected = (np.abs(share - mean) * sizes[sizes > 0]).sum() / len(truth)
    assert found["ece"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bins", [3, 7, 10, 12])
def test_scores_on_the_edges_of_bins_are_calibrated_as_by_scikit_learn(bins: int) -> None:
    random = np.random.default_rng(4)
    # Edges as they are written, and as they are computed.
    score = np.concatenate([np.arange(bins + 1) / bins, np.linspace(0, 1, bins + 1), [0.1, 0.3, 0.6, 0.7]])
    score = np.repeat(score, 7)
    truth = random.random(len(score)) < 0.3 + score / 3
    share, mean = sklearn.calibration.calibration_curve(truth, score, n_bins=bins)
    rows = np.bincount(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], score), minlength=bins)
    expected = (np.abs(share - mean) * rows[rows > 0]).sum() / len(score)
    found = evaluate_predictions({"truth": truth, "probability": score}, Classification(bins=bins)).metrics
    assert found["ece"] == pytest.approx(expected, abs=1e-10)


def test_many_classes_are_measured_as_by_scikit_learn() -> None:
    random = np.random.default_rng(3)
    names = ["ant", "bee", "cat", "dog"]
    truth = random.integers(0, 4, 1_500)
    scores = random.dirichlet(np.ones(4), 1_500) + np.eye(4)[truth]
    scores /= scores.sum(axis=1, keepdims=True)
    table = pa.table({"truth": np.array(names)[truth], "probabilities": list(scores)})
    of_all = evaluate_predictions(
        table, Classification(probabilities="probabilities", classes=names), bootstrap=12, seed=4
    )
    found, means = of_all.metrics, {"rel": 1e-10, "abs": 1e-11}
    assert found["log_loss"] == pytest.approx(sklearn.metrics.log_loss(truth, scores), **means)
    assert found["f1"] == pytest.approx(
        sklearn.metrics.f1_score(truth, scores.argmax(axis=1), average="macro"), **means
    )
    assert found["auc"] == pytest.approx(
        sklearn.metrics.roc_auc_score(truth, scores, multi_class="ovr"), rel=1e-12
    )
    areas = [sklearn.metrics.average_precision_score(truth == each, scores[:, each]) for each in range(4)]
    assert found["pr_auc"] == pytest.approx(np.mean(areas), rel=1e-12)
    assert found["brier"] == pytest.approx(((scores - np.eye(4)[truth]) ** 2).sum(axis=1).mean(), **means)
    for name, measure in (
        ("auc", sklearn.metrics.roc_auc_score),
        ("pr_auc", sklearn.metrics.average_precision_score),
    ):
        drawn = [
            np.mean([measure(truth == each, scores[:, each], sample_weight=weights) for each in range(4)])
            for weights in drawn_weights(np.arange(1_500), 12, 4)
        ]
        assert of_all.intervals[name] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), rel=1e-10)
    settings = Classification(probabilities="probabilities", classes=names, bins=5, strategy="quantile")
    quantile = evaluate_predictions(shuffled(table), settings).metrics
    sure, right = scores.max(axis=1), scores.argmax(axis=1) == truth
    place = np.searchsorted(np.percentile(sure, [20, 40, 60, 80]), sure)
    assert quantile["ece"] == pytest.approx(np.abs(np.bincount(place, sure - right)).sum() / 1_500, rel=1e-9)
    assert {name for name in quantile if quantile[name] != found[name]} == {"ece"}


def test_the_interval_of_average_precision_holds_the_truth_as_often_as_it_says() -> None:
    random, held = np.random.default_rng(6), 0
    truth = np.arange(600) < 90
    much = np.arange(200_000) < 30_000
    expected = sklearn.metrics.average_precision_score(much, random.normal(much * 1.5, 1))
    for _ in range(60):
        score = 1 / (1 + np.exp(-random.normal(truth * 1.5, 1)))
        found = evaluate_predictions({"truth": truth, "probability": score}, Classification())
        low, high = found.intervals["pr_auc"]
        assert 0 <= low < found.metrics["pr_auc"] < high <= 1
        held += low <= expected <= high
    assert held >= 52  # 57 are expected; fewer than 52 are less likely than 1 in 80
    few = evaluate_predictions(
        {"truth": [0, 1, 1, 0], "probability": [0.1, 0.2, 0.3, 0.25]}, Classification()
    )
    assert not few.intervals


def test_values_are_measured_as_by_scikit_learn() -> None:
    random = np.random.default_rng(4)
    truth = random.normal(3, 2, 2_000)
    prediction = truth + random.normal(0.2, 1, 2_000)
    found = evaluate_predictions({"truth": truth, "prediction": prediction}, Regression()).metrics
    for name, function in {
        "rmse": sklearn.metrics.root_mean_squared_error, "mae": sklearn.metrics.mean_absolute_error,
        "r2": sklearn.metrics.r2_score, "mape": sklearn.metrics.mean_absolute_percentage_error,
        "explained_variance": sklearn.metrics.explained_variance_score,
    }.items():  # fmt: skip
        assert found[name] == pytest.approx(function(truth, prediction), rel=1e-9), name
    assert found["bias"] == pytest.approx((prediction - truth).mean(), rel=1e-9)


@pytest.mark.parametrize(
    ("shift", "scale"), [(0, 1e-6), (0, 1e-100), (0, 1e100), (1e6, 1), (1e8, 1), (1.7e9, 10), (-1e10, 1)]
)
def test_small_and_far_values_are_measured_as_by_scikit_learn(shift: float, scale: float) -> None:
    random = np.random.default_rng(0)
    rows = 20_000
    truth = shift + scale * random.random(rows)
    prediction = truth + scale * random.normal(0.2, 0.1, rows)
    table = pa.table({"truth": truth, "prediction": prediction})
    found = evaluate_predictions(table, Regression(), bootstrap=30)
    theirs = sklearn.metrics
    for name, function in (
        ("rmse", theirs.root_mean_squared_error), ("mae", theirs.mean_absolute_error), ("r2", theirs.r2_score),
        ("explained_variance", theirs.explained_variance_score), ("mape", theirs.mean_absolute_percentage_error),
    ):  # fmt: skip
        assert found.metrics[name] == pytest.approx(function(truth, prediction), rel=1e-9), name
        weights = drawn_weights(np.arange(rows), 30, 0)
        drawn = [function(truth, prediction, sample_weight=each) for each in weights]
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert found.intervals[name] == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9)), name
    assert evaluate_predictions(table.take(random.permutation(rows)), Regression()).metrics == found.metrics


def test_rows_in_any_order_and_from_files_are_measured_to_the_same_bit(tmp_path: Path) -> None:
    table = binary(70_000)
    pq.write_table(shuffled(table), tmp_path / "rows.parquet", row_group_size=1_000)
    options: dict[str, Any] = {"on": "id", "by": ["shop"], "bootstrap": 8}
    whole = evaluate_predictions(table, Classification(), **options)
    assert evaluate_predictions(tmp_path / "rows.parquet", Classification(), **options) == whole
    alone = evaluate_predictions(
        table.filter(pa.compute.equal(table["shop"], "s2")), Classification(), on="id", bootstrap=8
    )
    assert whole.metrics["auc/shop=s2"] == alone.metrics["auc"]
    assert whole.intervals["brier/shop=s2"] == alone.intervals["brier"]


def test_truth_of_its_own_is_found_by_ids() -> None:
    table = binary()
    predictions, truth = table.select(["id", "probability"]), shuffled(table.select(["id", "truth"]))
    expected = evaluate_predictions(table, Classification(), on="id", bootstrap=5)
    assert evaluate_predictions(predictions, Classification(), truth=truth, on="id", bootstrap=5) == expected
    with pytest.raises(DataError, match="has no truth"):
        evaluate_predictions(predictions, Classification(), truth=truth.slice(1), on="id")
    doubled = pa.concat_tables([truth, truth.slice(0, 1)])
    with pytest.raises(DataError, match="is there 2 times"):
        evaluate_predictions(predictions, Classification(), truth=doubled, on="id")
    with pytest.raises(ConfigError, match="name their columns"):
        evaluate_predictions(predictions, Classification(), truth=truth)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (pa.array([2**53 + 1]), pa.array([2.0**53])),
        (pa.array([1]), pa.array(["01"])),
        (pa.array(["1"]), pa.array([1])),
        (pa.array([1500], pa.timestamp("ns")), pa.array([1900], pa.timestamp("ns", "UTC"))),
    ],
)
def test_ids_of_another_kind_are_refused(mine: pa.Array, theirs: pa.Array) -> None:
    predictions, truth = pa.table({"id": mine, "prediction": [0.5]}), pa.table({"id": theirs, "truth": [1.0]})
    with pytest.raises(DataError, match=r"the ids 'id' are .* in one table and .* in the other"):
        evaluate_predictions(predictions, Regression(), truth=truth, on="id")


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (pa.array([7], pa.uint64()), pa.array([7], pa.int8())),
        (pa.array(["a"]).dictionary_encode(), pa.array(["a"], pa.large_string())),
    ],
)
def test_ids_of_another_width_are_the_same(mine: pa.Array, theirs: pa.Array) -> None:
    predictions, truth = pa.table({"id": mine, "prediction": [0.5]}), pa.table({"id": theirs, "truth": [1.0]})
    assert evaluate_predictions(predictions, Regression(), truth=truth, on="id").metrics["mae"] == 0.5


class WithinOne(RowEvaluator):
    """Share of predictions within a distance of the truth."""

    distance: float = 1.0

    def columns(self) -> list[str]:
        return ["truth", "prediction"]

    def values(self, rows: pa.RecordBatch) -> Mapping[str, np.ndarray]:
        error = rows.column("truth").to_numpy() - rows.column("prediction").to_numpy()
        return {"within": (np.abs(error) <= self.distance).astype(np.float64)}


def test_an_evaluator_of_ones_own_stands_beside_the_others() -> None:
    table = {"truth": [1.0, 2.0, 3.0, 4.0] * 5, "prediction": [1.5, 2.0, 7.0, 4.0] * 5}
    found = evaluate_predictions(table, [Regression(), WithinOne(distance=0.4)], bootstrap=50)
    assert found.metrics["within"] == 0.5
    assert found.intervals["within"][0] < 0.5 < found.intervals["within"][1]
    assert found.metrics["mae"] == 1.125
    with pytest.raises(ConfigError, match="two evaluators measure 'within'"):
        evaluate_predictions(table, [WithinOne(), WithinOne(distance=2)])


def test_what_is_wrong_with_rows_is_named() -> None:
    with pytest.raises(DataError, match="probabilities lie between 0 and 1"):
        evaluate_predictions({"truth": [0, 1], "probability": [0.5, 1.5]}, Classification())
    with pytest.raises(DataError, match="Give the evaluator's `classes`"):
        evaluate_predictions({"truth": ["no", "yes"], "probability": [0.5, 0.5]}, Classification())
    with pytest.raises(DataError, match="'may be' is none of the classes"):
        evaluate_predictions(
            {"truth": ["no", "may be"], "probability": [0.5, 0.5]}, Classification(classes=["no", "yes"])
        )
    with pytest.raises(DataError, match="1 of 2 values are missing or not finite"):
        evaluate_predictions({"truth": [0.0, 1.0], "prediction": [None, 1.0]}, Regression())
    with pytest.raises(DataError, match="no row"):
        evaluate_predictions(
            pa.table({"truth": pa.array([], pa.float64()), "prediction": pa.array([], pa.float64())}),
            Regression(),
        )
    with pytest.raises(ColumnNotFoundError, match="no column 'truth'"):
        evaluate_predictions({"a": [1]}, Regression())


def test_more_values_than_count_on_their_own_are_other() -> None:
    table = pa.table(
        {"truth": np.zeros(200), "prediction": np.arange(200.0), "of": [f"v{i % 60:02}" for i in range(200)]}
    )
    found = evaluate_predictions(table, Regression(), by=["of"]).metrics
    named = [name for name in found if name.startswith("rows/")]
    assert len(named) == 51
    assert sum(found[name] for name in named) == 200
    assert found["rows/of=other"] == sum(i % 60 in range(50, 60) for i in range(200))


@pytest.fixture
def local_ray() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_rows_and_lists_of_ray_are_measured_to_the_same_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray.data

    table, tables = binary(5_000), world()
    options: dict[str, Any] = {"on": "id", "by": ["shop"], "bootstrap": 8}
    dataset = ray.data.from_arrow([table.slice(0, 1_700), table.slice(1_700)])
    for chosen in (options, {"bootstrap": 5}):
        expected = evaluate_predictions(table, Classification(), **chosen)
        assert evaluate_predictions(dataset, Classification(), **chosen) == expected
    lists = tables["predictions"]
    both = {**tables, "predictions": ray.data.from_arrow([lists.slice(0, 111), lists.slice(111)])}
    both["truth"] = ray.data.from_arrow(shuffled(tables["truth"]))
    settings: dict[str, Any] = {"by": ["country"], "bootstrap": 5}
    for rows, change in ((1 << 22, None), (7, None), (70, as_text)):  # 7: some partitions have no user
        monkeypatch.setattr(ray_lists_module, "_ROWS", rows)
        given, alone = both, tables
        if change is not None:
            alone = {name: change(table) for name, table in tables.items()}
            given = {**alone, "predictions": ray.data.from_arrow(alone["predictions"])}
        found = evaluated(given, users=given["users"], units=tmp_path / "ray.parquet", **settings)
        assert found == evaluated(alone, users=alone["users"], units=tmp_path / "one.parquet", **settings)
        kept = [pq.read_table(tmp_path / f"{name}.parquet").sort_by("user_id") for name in ("ray", "one")]
        assert kept[0].equals(kept[1])
        assert kept[0].schema.metadata == kept[1].schema.metadata
    wide, near = (with_users_and_items(both, *ids) for ids in ((2**30, -1), (USERS, ITEMS)))
    assert evaluated(wide, users=wide["users"], by=["country"]) == evaluated(
        {**tables, "items": near["items"]}, users=near["users"], by=["country"]
    )
    bare = evaluate_predictions(both["predictions"], Ranking(k=KS), truth=both["truth"])
    assert bare == evaluate_predictions(tables["predictions"], Ranking(k=KS), truth=tables["truth"])
    twice = ray.data.from_arrow([lists, lists.slice(3, 1)])
    with pytest.raises(DataError, match="an item is twice in the list of user 0"):
        evaluated({**both, "predictions": twice})
