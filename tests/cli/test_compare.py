"""`sp-ray compare`: runs by name, what is printed and written, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sp_ray_ml.inference import Classification, Ranking, evaluate_predictions
from tests.inference.test_evaluation import binary, shuffled, world


def evaluated_run(name: str, config_text: str, *, rows: bool = False, seed: int = 0) -> None:
    """A run's folder as it is after its evaluation."""
    folder = Path("runs", name)
    (folder / "steps" / "evaluate").mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps({"status": "finished", "updated": "2026-01-01T00:00:00+00:00"})
    )
    (folder / "config.yaml").write_text(config_text)
    units = folder / "steps" / "evaluate" / "units.parquet"
    if rows:
        evaluate_predictions(binary(), Classification(), on="id", units=units)
    else:
        tables = world()
        predictions = tables["predictions"] if not seed else world(seed)["predictions"]
        evaluate_predictions(shuffled(predictions), Ranking(k=[3]), truth=tables["truth"], units=units)


def test_two_runs_are_compared_and_the_report_is_written(sp_ray, config_text):
    evaluated_run("first", config_text)
    evaluated_run("second", config_text, seed=5)
    ran = sp_ray("compare", "first", "second", "--bootstrap", "50")
    assert ran.code == 0, ran.err
    assert "59 users that both were tested on" in ran.out
    assert "ndcg@3" in ran.out
    assert "report: runs/second/reports/compare-first.html" in ran.out
    assert "second against first" in Path("runs/second/reports/compare-first.html").read_text()
    found = json.loads(sp_ray("compare", "runs/first", "second", "--bootstrap", "50", "-o", "json").out)
    assert found["users"] == 59
    each = found["metrics"]["ndcg@3"]
    assert each["difference"] == pytest.approx(each["b"] - each["a"])
    assert each["interval"][0] <= each["difference"] <= each["interval"][1]


def test_runs_that_cannot_be_compared_are_refused(sp_ray, config_text):
    evaluated_run("first", config_text)
    evaluated_run("table", config_text, rows=True)
    ran = sp_ray("compare", "first", "frist")
    assert ran.code == 1
    assert "no run 'frist'; did you mean first?" in ran.err
    assert "both are the run first" in sp_ray("compare", "first", "first").err
    assert "the runs measured different things" in sp_ray("compare", "first", "table").err
    Path("runs/table/steps/evaluate/units.parquet").unlink()
    ran = sp_ray("compare", "first", "table")
    assert "the run table has no evaluation to compare" in ran.err
    assert "sp-ray run runs/table/config.yaml" in ran.err
    assert not list(Path("runs").glob("*/reports"))


@pytest.mark.slow
def test_finished_runs_are_compared_by_segment_and_the_report_is_an_artifact_of_both(
    config_text, tmp_path, sp_ray
):
    import mlflow

    text = config_text.replace("tracking: {enabled: false}\n", "").replace(
        "k: [5, 10]", "k: [5, 10], map: true, by: [country], bootstrap: 50"
    )
    for name, epochs in (("one", 1), ("two", 3)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("name: small", f"name: {name}"))
        ran = sp_ray("run", f"{name}.yaml", "--set", f"train.epochs={epochs}", "--set", "predict=null")
        assert ran.code == 0, ran.err
    evaluated = tmp_path / "runs" / "two" / "steps" / "evaluate"
    metrics = json.loads((evaluated / "metrics.json").read_text())["model"]
    intervals = json.loads((evaluated / "intervals.json").read_text())
    assert intervals["recall@10"][0] <= metrics["recall@10"] <= intervals["recall@10"][1]
    segments = [name for name in metrics if name.startswith("users/country=")]
    assert len(segments) > 1
    assert 0 < metrics["map@10"] < metrics["hit_rate@10"]
    ran = sp_ray("compare", "one", "two", "--by", "country", "-o", "json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["notes"] == []
    assert "map@10" in found["metrics"]
    assert any(name.startswith("recall@10/country=") for name in found["metrics"])
    if "users/cold_users" not in metrics:
        assert found["metrics"]["recall@10"]["b"] == pytest.approx(metrics["recall@10"], abs=1e-12)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    for name in ("one", "two"):
        (run,) = mlflow.search_runs(
            search_all_experiments=True, filter_string=f"run_name = '{name}'", output_format="list"
        )
        assert run.info.status == "FINISHED"
        artifacts = mlflow.MlflowClient().list_artifacts(run.info.run_id, "reports")
        assert [each.path for each in artifacts] == ["reports/compare-one.html"]
