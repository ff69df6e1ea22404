"""`PyGTrainer` on tables of events gives what the other trainers give: a result with a sealed predictor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml.errors import ColumnNotFoundError, DataError
from sp_ray_ml.graph.models import LightGCN
from sp_ray_ml.train import Predictor, PyGTrainer, Recommender, Trial, Tune


def events(place: slice) -> pa.Table:
    """Users of four groups; each has items of the own group, one an hour."""
    random = np.random.default_rng(0)
    rows = [
        (f"u{user:02d}", f"i{own * 4 + user % 4:02d}", hour * 3600)
        for user in range(60)
        for hour, own in enumerate(random.permutation(12)[:8])
        if hour in range(8)[place]
    ]
    who, what, when = zip(*rows, strict=True)
    return pa.table({"who": who, "what": what, "when": pa.array(when, pa.timestamp("s"))})


def trainer(epochs: int = 12) -> PyGTrainer:
    return PyGTrainer(model=LightGCN(dim=16), epochs=epochs)


COLUMNS = {"user": "who", "item": "what", "time": "when"}


def test_events_become_a_sealed_recommender(tmp_path: Path) -> None:
    result = trainer().fit(events(slice(0, 7)), events(slice(7, 8)), folder=tmp_path, **COLUMNS)
    assert result.metrics["recall@20"] > 0.5
    predictor = Predictor.load(result.checkpoint)
    assert isinstance(predictor, Recommender)
    found = predictor.predict(pa.table({"who": ["u01", "u02"]}), k=4)
    assert found.column_names == ["who", "rank", "what", "score"]
    # What a user has had is not recommended again; what is left of the own group comes first.
    own = [
        int(item[1:]) % 4 == int(user[1:]) % 4
        for user, item in zip(*(found[c].to_pylist() for c in ("who", "what")), strict=True)
    ]
    assert all(own)
    assert predictor.manifest["metrics"] == dict(result.metrics)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_is_tuned_like_the_others(tmp_path: Path) -> None:
    import ray

    train, validation = events(slice(0, 7)), events(slice(7, 8))
    settings = Tune(space={"learning_rate": {"choice": [0.0001, 0.02]}}, search="grid", max_concurrent=2)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        result = trainer().tune(train, validation, tune=settings, folder=tmp_path / "tuned", **COLUMNS)
        # Started again, nothing is left to do.
        news: list[Trial] = []
        again = trainer().tune(
            train, validation, tune=settings, folder=tmp_path / "tuned", on_trial=news.append, **COLUMNS
        )
    finally:
        ray.shutdown()
    assert [trial.status for trial in result.trials] == ["finished", "finished"]
    assert (result.metric, result.mode) == ("ndcg@20", "max")
    assert result.metrics["ndcg@20"] == max(trial.metrics["ndcg@20"] for trial in result.trials)
    assert result.params == {"learning_rate": 0.02}
    assert {trial.status for trial in news} == {"finished"}
    assert again.metrics == result.metrics
    # What is sealed is what was measured, on the rows that no trial learned from.
    assert {entry["phase"] for entry in result.history} == {0}
    sealed = result.predictor()
    assert isinstance(sealed, Recommender)
    assert sealed.manifest["metrics"] == dict(result.metrics)
    alone = trainer().model_copy(update={"learning_rate": 0.02, "refit": False})
    plain = alone.fit(train, validation, folder=tmp_path / "alone", **COLUMNS).predictor()
    assert isinstance(plain, Recommender)
    assert np.array_equal(sealed.user_vectors, plain.user_vectors)


def test_the_same_folder_goes_on_where_it_was(tmp_path: Path) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def stop(metrics: object) -> None:
        assert isinstance(metrics, dict)
        if metrics["epoch"] == 4:
            raise Stop

    train, validation = events(slice(0, 7)), events(slice(7, 8))
    with pytest.raises(Stop):
        trainer().fit(train, validation, folder=tmp_path / "broken", on_epoch=stop, **COLUMNS)
    broken = trainer().fit(train, validation, folder=tmp_path / "broken", **COLUMNS).predictor()
    whole = trainer().fit(train, validation, folder=tmp_path / "whole", **COLUMNS).predictor()
    assert isinstance(broken, Recommender)
    assert isinstance(whole, Recommender)
    assert np.array_equal(broken.user_vectors, whole.user_vectors)


def test_events_that_cannot_be_learned_from_are_named(tmp_path: Path) -> None:
    rows = events(slice(0, 8))
    with pytest.raises(ColumnNotFoundError, match="train: no column 'user'"):
        trainer(1).fit(rows, folder=tmp_path)
    with pytest.raises(DataError, match="there are no events"):
        trainer(1).fit(rows.slice(0, 0), folder=tmp_path, **COLUMNS)
    with pytest.raises(DataError, match=r"train\.who: ids must be text or whole numbers, these are double"):
        trainer(1).fit(rows.set_column(0, "who", pa.array([0.5] * len(rows))), folder=tmp_path, **COLUMNS)
    gap = pa.array([None, *rows["what"].to_pylist()[1:]])
    with pytest.raises(DataError, match="1 of 480 events have no what"):
        trainer(1).fit(rows.set_column(1, "what", gap), folder=tmp_path, **COLUMNS)
    assert not (tmp_path / "predictor").exists()
