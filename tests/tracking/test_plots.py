import math
import struct

import pytest

from sp_ray_ml.errors import DataError, StorageError
from sp_ray_ml.tracking import plot_history, plot_metrics


def size_of(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_history_gets_a_panel_for_each_kind_of_number(tmp_path):
    rows = [{"epoch": e, "train_loss": 1 / e, "recall@20": 0.1 * e, "note": "x"} for e in range(1, 4)]
    plot_history([{k: r[k] for k in ("epoch", "train_loss")} for r in rows], tmp_path / "one.png")
    plot_history(rows, tmp_path / "two.png", title="A run")
    assert size_of(tmp_path / "two.png")[1] > size_of(tmp_path / "one.png")[1]
    assert size_of(tmp_path / "two.png")[0] >= 1500


def test_history_bears_gaps_and_numbers_that_are_not_finite(tmp_path):
    rows = [{"loss": math.nan}, {"loss": 1.0, "ndcg@10": None}, {"loss": math.inf, "ndcg@10": 0.2}, {}]
    plot_history(rows, tmp_path / "gaps.png")
    plot_history([{"loss": 1.0}], tmp_path / "single.png")
    assert size_of(tmp_path / "gaps.png")


def test_metrics_are_drawn_beside_baselines(tmp_path):
    table = {
        "lightgcn": {"recall@20": 0.21, "recall@20/cold_items": math.nan, "users": 938},
        "popularity": {"recall@20": 0.10, "users": 938},
    }
    plot_metrics(table, tmp_path / "m.png", title="Test")
    assert size_of(tmp_path / "m.png")[0] >= 1000


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no numbers"):
        plot_history([{"epoch": 1, "note": "x"}], tmp_path / "x.png")
    with pytest.raises(DataError, match="no numbers"):
        plot_metrics({"a": {"m": math.nan}}, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_picture_that_cannot_be_written_keeps_the_old_one(tmp_path):
    with pytest.raises(StorageError):
        plot_metrics({"a": {"m": 1}}, tmp_path / "missing" / "x.png")
