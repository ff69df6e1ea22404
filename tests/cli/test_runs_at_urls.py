"""The commands that look at runs, with runs at a URL."""

from __future__ import annotations

import json
import uuid

import pytest


@pytest.mark.slow
def test_what_looks_at_runs_looks_at_those_at_a_url(sp_ray, config, tmp_path, monkeypatch):
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "cache"))
    runs = f"memory://{uuid.uuid4()}/runs"
    at = ("--set", f"runs={runs}")
    ran = sp_ray("run", config, *at)
    assert ran.code == 0, ran.err
    assert f"{runs}/small" in ran.out
    assert f"Predictor.load('{runs}/small')" in ran.out
    [info] = json.loads(sp_ray("get", "runs", "--runs", runs, "-o", "json").out)
    assert (info["name"], info["status"], info["path"]) == ("small", "finished", f"{runs}/small")
    planned = json.loads(sp_ray("run", config, *at, "--dry-run", "-o", "json").out)
    assert f"{runs}/small/steps/train/predictor" in [place for step in planned for place in step["writes"]]
    assert sp_ray("run", config, *at, "--set", "name=other", "--set", "train.epochs=1").code == 0

    user = "u000113"
    asked = sp_ray("recommend", "small", "--user", user, "-k", "3", "--runs", runs, "-o", "json")
    assert asked.code == 0, asked.err
    assert len(json.loads(asked.out)) == 3
    assert json.loads(
        sp_ray("recommend", f"{runs}/small", "--user", user, "-k", "3", "-o", "json").out
    ) == json.loads(asked.out)

    compared = sp_ray("compare", "small", "other", "--runs", runs, "--bootstrap", "20")
    assert compared.code == 0, compared.err
    assert f"report: {runs}/other/reports/compare-small.html" in compared.out.replace("\n", "")
    assert "no run 'smal'; did you mean small?" in sp_ray("compare", "smal", "other", "--runs", runs).err

    predicted = sp_ray("predict", config, *at, "-o", "json")
    assert predicted.code == 0, predicted.err
    assert json.loads(predicted.out)["url"] == f"{runs}/small/predict"
    assert sp_ray("recommend", f"{runs}/small/predict", "--user", user, "-k", "3").code == 0

    shown = sp_ray("ui", "--runs", runs)
    assert shown.code == 1
    assert f"sp-ray sync {runs}/NAME" in shown.err
    nothing = sp_ray("sync", "nothing", "--runs", runs)
    assert nothing.err.startswith(f"error: {runs}/nothing: no run was tracked here")
