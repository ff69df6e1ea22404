"""The example that a model is sent to MLflow with has the types of its signature."""

from __future__ import annotations

import pandas as pd
import pytest

from sp_ray_ml.tracking._sink import _example

TIME = '[{"name": "t", "type": "datetime"}]'


@pytest.mark.parametrize(
    "texts",
    [
        ["2020-01-01T00:00:00"],
        ["2020-01-01T00:00:00+00:00"],
        ["2020-01-01T02:00:00+02:00", None],
    ],
)
def test_times_with_and_without_a_zone_become_those_of_utc(texts):
    given = {"columns": ["t"], "data": [[text] for text in texts]}
    table = _example({"input_example": given, "signature": {"inputs": TIME}})
    assert str(table["t"].dtype) == "datetime64[ns]"
    assert table["t"][0] == pd.Timestamp("2020-01-01")
