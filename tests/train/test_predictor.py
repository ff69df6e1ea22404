"""The sealed predictor: what was computed in training is what is computed from it, wherever and however it is opened."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse

from sp_ray_ml.errors import CheckpointError, ColumnNotFoundError, ConfigError, DataError, StorageError
from sp_ray_ml.inference.evaluate import evaluate
from sp_ray_ml.storage import file_sha256
from sp_ray_ml.train import Predictor, Recommender

USERS, ITEMS, DIM = 300, 50, 5


def make(users: int = USERS, items: int = ITEMS, *, text: bool = False, **more: Any) -> Recommender:
    """Random vectors; ids are not their own positions."""
    random = np.random.default_rng(4)
    seen = scipy.sparse.csr_array(random.random((users, items)) < 0.2)
    ids = {"users": random.permutation(users) * 3 + 10, "items": random.permutation(items) * 5 + 1_000}
    arrays = {
        name: pa.array([f"{name[0]}{i}" for i in values]) if text else pa.array(values)
        for name, values in ids.items()
    }
    settings = {
        "user_vectors": random.normal(size=(users, DIM)).astype(np.float32),
        "item_vectors": random.normal(size=(items, DIM)).astype(np.float32),
        "item_bias": random.normal(size=items).astype(np.float32),
        "seen": seen,
        "titles": pa.array([f"Title {i}" if i != 3 else None for i in range(items)]),
        "columns": ("user_id", "item_id"),
        "embedding_dim": DIM - 1,
    }
    return Recommender(**{**arrays, **settings, **more})


@pytest.fixture(scope="module")
def made() -> Recommender:
    return make()


@pytest.fixture
def sealed(made: Recommender) -> Path:
    folder = Path("predictor").absolute()
    made.save(
        folder,
        preprocessors={"user": {"mean": 1.5}},
        weights={"w": np.arange(6, dtype=np.float64).reshape(2, 3), "n": np.array([1, 2])},
        about={"validation": {"ndcg@20": 0.1}, "config": {"name": "é"}},
    )
    return folder


def opened(folder: Any) -> Recommender:
    predictor = Predictor.load(folder)
    assert isinstance(predictor, Recommender)
    return predictor


# --- saved and opened -------------------------------------------------------------------------------------------


def test_at_a_url_it_is_what_was_saved(made: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SP_RAY_CACHE", str(Path("cache").absolute()))
    url = f"memory://{Path.cwd()}/predictor"
    with pytest.raises(StorageError, match="nothing complete"):
        Predictor.load(url)
    made.save(url)
    other = opened(url)
    assert other.user_vectors.tobytes() == made.user_vectors.tobytes()
    assert other.item_ids.equals(made.item_ids)
    assert (other.seen != made.seen).nnz == 0


def test_opened_it_is_what_was_saved_to_the_bit(made: Recommender, sealed: Path) -> None:
    other = opened(sealed)
    for name in ("user_vectors", "item_vectors", "item_bias"):
        one, two = getattr(made, name), getattr(other, name)
        assert one.dtype == two.dtype == np.float32
        assert one.tobytes() == two.tobytes()
    assert other.user_ids.equals(made.user_ids)
    assert other.item_ids.equals(made.item_ids)
    assert other.titles.equals(made.titles)
    assert (other.seen != made.seen).nnz == 0
    assert (other.user_column, other.item_column, other.embedding_dim) == ("user_id", "item_id", DIM - 1)
    assert other.manifest["validation"] == {"ndcg@20": 0.1}
    assert other.manifest["config"] == {"name": "é"}
    assert other.recommend(k=7).equals(made.recommend(k=7))
    assert "300 users, 50 items, 4 dimensions" in repr(other)


def test_saved_twice_the_bytes_are_the_same(made: Recommender, sealed: Path) -> None:
    opened(sealed).save("again", preprocessors={"user": {"mean": 1.5}})
    for name in (
        "vectors.safetensors",
        "seen.safetensors",
        "users.arrow",
        "items.arrow",
        "preprocessors.json",
    ):
        assert (sealed / name).read_bytes() == Path("again", name).read_bytes()


@pytest.mark.parametrize("columns", [("user", "title"), ("title", "item"), ("id", "id2"), ("a", "score2")])
def test_ids_under_any_name_survive(columns: tuple[str, str]) -> None:
    made = make(columns=columns)
    made.save("named")
    other = opened("named")
    assert other.item_ids.equals(made.item_ids)
    assert other.titles.equals(made.titles)
    table = other.recommend(k=2)
    assert table.equals(made.recommend(k=2))
    assert len(set(table.column_names)) == len(table.column_names)
    assert other.similar_items(made.item_ids[:2], 2).column_names[0] == columns[1]


def test_without_titles_there_is_no_title_column() -> None:
    made = make(titles=None)
    made.save("untitled")
    assert opened("untitled").titles is None
    assert opened("untitled").recommend(k=1).column_names == ["user_id", "rank", "item_id", "score"]
    assert "title" not in opened("untitled").similar_items(made.item_ids[:1]).column_names


def test_failed_save_keeps_the_old_one(made: Recommender, sealed: Path) -> None:
    with pytest.raises(TypeError):
        made.save(sealed, about={"not": {"json": object()}})
    assert opened(sealed).manifest["config"] == {"name": "é"}
    assert [path.name for path in sealed.parent.iterdir()] == ["predictor"]


# --- the same numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64, 256, 300])
def test_a_user_gets_the_same_bits_in_any_batch(made: Recommender, sealed: Path, size: int) -> None:
    everything = made.recommend(k=10)
    other, random = opened(sealed), np.random.default_rng(size)
    order = random.permutation(USERS)
    for start in range(0, USERS, size):
        some = order[start : start + size]
        found = other.recommend(made.user_ids.take(pa.array(some)), k=10)
        for user in some[:3].tolist():
            id_ = made.user_ids[user].as_py()
            one, two = (
                table.filter(pa.compute.equal(table["user_id"], id_)) for table in (found, everything)
            )
            assert one["item_id"].to_pylist() == two["item_id"].to_pylist()
            assert one["score"].to_numpy().tobytes() == two["score"].to_numpy().tobytes()


def test_what_evaluation_ranks_is_what_is_recommended(made: Recommender, sealed: Path) -> None:
    other = opened(sealed)
    table = other.recommend(k=5)
    random = np.random.default_rng(0)
    truth = scipy.sparse.csr_array(random.random((USERS, ITEMS)) < 0.1)
    metrics = evaluate(made, truth, made.seen, [5])
    wanted = (truth - truth.multiply(made.seen)).tocsr()
    wanted.eliminate_zeros()
    hits = []
    position = {id_: at for at, id_ in enumerate(made.item_ids.to_pylist())}
    items: dict[int, list[int]] = {}
    for user, item in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True):
        items.setdefault(user, []).append(position[item])
    for row, user in enumerate(made.user_ids.to_pylist()):
        true = set(wanted[[row]].indices.tolist())
        if true:
            hits.append(len(true & set(items[user])) / len(true))
    assert metrics["recall@5"] == pytest.approx(sum(hits) / len(hits), abs=1e-9)


def test_scores_are_the_products_plus_the_bias(made: Recommender) -> None:
    table = made.recommend([made.user_ids[0].as_py()], k=3, exclude_seen=False)
    items = [made.item_ids.to_pylist().index(item) for item in table["item_id"].to_pylist()]
    exact = made.item_vectors.astype(float) @ made.user_vectors[0].astype(float) + made.item_bias
    assert items == np.argsort(-exact)[:3].tolist()
    np.testing.assert_allclose(table["score"].to_numpy(), exact[items], rtol=1e-5)


# --- recommend --------------------------------------------------------------------------------------------------


def test_recommendations_are_ranked_from_one_without_what_was_seen(made: Recommender) -> None:
    table = made.recommend(k=10)
    assert table.schema.names == ["user_id", "rank", "item_id", "title", "score"]
    assert table.schema.types == [pa.int64(), pa.int32(), pa.int64(), pa.string(), pa.float32()]
    seen = {
        (made.user_ids[u].as_py(), made.item_ids[i].as_py())
        for u, i in zip(*made.seen.nonzero(), strict=True)
    }
    assert not seen & set(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    for user in made.user_ids[:20].to_pylist():
        mine = table.filter(pa.compute.equal(table["user_id"], user))
        assert mine["rank"].to_pylist() == list(range(1, 11))
        scores = mine["score"].to_numpy()
        assert (scores[:-1] >= scores[1:]).all()
    both = made.recommend(k=ITEMS, exclude_seen=False)
    assert both.num_rows == USERS * ITEMS


def test_who_has_seen_nearly_all_gets_what_is_left() -> None:
    seen = scipy.sparse.csr_array(np.array([[1] * 3 + [0], [1] * 4, [0] * 4]))
    made = make(3, 4, seen=seen)
    table = made.recommend(k=4)
    counts = {user: table["user_id"].to_pylist().count(user) for user in made.user_ids.to_pylist()}
    assert list(counts.values()) == [1, 0, 4]


def test_titles_are_those_of_the_items(made: Recommender) -> None:
    titles = dict(zip(made.item_ids.to_pylist(), made.titles.to_pylist(), strict=True))
    table = made.recommend(k=20)
    assert table["title"].to_pylist() == [titles[item] for item in table["item_id"].to_pylist()]
    assert None in table["title"].to_pylist()


@pytest.mark.parametrize("text", [False, True])
def test_users_are_given_in_any_form(text: bool) -> None:
    made = make(text=text)
    ids = made.user_ids.to_pylist()[:3]
    wanted = made.recommend(ids, 3)
    assert wanted["user_id"].to_pylist() == [user for user in ids for _ in range(3)]
    forms: list[Any] = [tuple(ids), pa.array(ids), pa.chunked_array([ids[:1], ids[1:]]), np.array(ids)]
    forms += [pa.array(ids).dictionary_encode(), __import__("pandas").Series(ids)]
    for form in forms:
        assert made.recommend(form, 3).equals(wanted), type(form)
    for one in (ids[0], np.array(ids)[0]):
        assert made.recommend(one, 3).equals(wanted.slice(0, 3))
    assert made.recommend([], 3).num_rows == 0
    assert made.recommend([ids[0], ids[0]], 3).num_rows == 6


def test_unknown_ids_are_named_with_examples_of_known_ones(made: Recommender) -> None:
    known = str(made.user_ids[0].as_py())
    with pytest.raises(DataError, match=rf"user_id: 2 of 3 ids are not in the model, such as 1, 2.*{known}"):
        made.recommend([made.user_ids[0].as_py(), 1, 2])
    with pytest.raises(DataError, match=r"item_id: 1 of 1 ids are not in the model, such as 7"):
        made.similar_items(7)
    with pytest.raises(DataError, match=r"such as None"):
        made.recommend([None])


@pytest.mark.parametrize(
    "wrong", ["abc", ["abc"], [1.5], 1.5, [{"a": 1}], [1, "a"], {"user_id": object()}, object(), [b"\xff"]]
)
def test_ids_of_a_wrong_type_are_an_error(made: Recommender, wrong: Any) -> None:
    with pytest.raises(DataError, match=r"^user_id: "):
        made.recommend(wrong)


def test_k_that_cannot_be_is_refused(made: Recommender) -> None:
    with pytest.raises(ConfigError, match=r"k = 51 is larger than the catalogue of 50 items"):
        made.recommend(k=51)
    with pytest.raises(ConfigError, match="at least 1"):
        made.recommend(k=0)


def test_predict_takes_the_users_of_a_table(made: Recommender) -> None:
    ids = made.user_ids[:4]
    table = pa.table({"other": [1.0] * 4, "user_id": ids})
    assert made.predict(table, k=3).equals(made.recommend(ids, 3))
    with pytest.raises(ColumnNotFoundError, match=r"no column 'user_id'; did you mean user_ids?"):
        made.predict(pa.table({"user_ids": ids}))


# --- similar items ----------------------------------------------------------------------------------------------


def test_similar_items_are_the_nearest_by_cosine() -> None:
    vectors = np.array([[1, 0, 9], [2, 0, -9], [1, 1, 0], [0, 3, 5], [-1, 0, 0]], np.float32)
    made = make(2, 5, item_vectors=vectors, user_vectors=np.zeros((2, 3), np.float32), embedding_dim=2)
    ids = made.item_ids.to_pylist()
    table = made.similar_items([ids[0], ids[3]], 4)
    assert table["item_id"].to_pylist() == [ids[0]] * 4 + [ids[3]] * 4
    assert table["rank"].to_pylist() == [1, 2, 3, 4] * 2
    # By hand: cos(0, ·) = 1, 1/√2, 0, -1 and cos(3, ·) = 1/√2, 0, 0, 0; equal ones by their order.
    assert table["similar"].to_pylist() == [ids[i] for i in (1, 2, 3, 4, 2, 0, 1, 4)]
    half = 1 / math.sqrt(2)
    np.testing.assert_allclose(table["cosine"].to_numpy(), [1, half, 0, -1, half, 0, 0, 0], atol=1e-6)
    titles = dict(zip(ids, made.titles.to_pylist(), strict=True))
    assert table["title"].to_pylist() == [titles[item] for item in table["similar"].to_pylist()]


def test_similar_items_are_at_most_all_others() -> None:
    assert make(2, 4).similar_items(make(2, 4).item_ids[:1], 10).num_rows == 3
    assert make(2, 1).similar_items(make(2, 1).item_ids, 10).num_rows == 0


def test_item_without_a_vector_is_similar_to_none_and_no_error() -> None:
    vectors = np.zeros((3, DIM), np.float32)
    vectors[1:, 0] = 1
    table = make(2, 3, item_vectors=vectors).similar_items(make(2, 3).item_ids[:1], 2)
    assert table["cosine"].to_pylist() == [0, 0]


# --- what is no predictor, or no longer one ---------------------------------------------------------------------


def test_vectors_that_do_not_fit_the_ids_are_refused() -> None:
    with pytest.raises(CheckpointError, match="300 users and 50 items have 2 and 50 vectors"):
        make(user_vectors=np.zeros((2, DIM), np.float32))


FILES = [
    "manifest.json",
    "model.safetensors",
    "vectors.safetensors",
    "seen.safetensors",
    "users.arrow",
    "items.arrow",
    "preprocessors.json",
]


def test_the_folder_holds_these_files(sealed: Path) -> None:
    assert sorted(file.name for file in sealed.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
        None,
    ],
    ids=["truncated", "empty", "bit near the end", "bit in the middle", "missing"],
)
def test_damaged_file_is_an_error(sealed: Path, name: str, damage: Callable[[bytes], bytes] | None) -> None:
    file = sealed / name
    file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError) as raised:
        Predictor.load(sealed)
    assert "predictor" in str(raised.value)
    assert name in str(raised.value) or name == "manifest.json"


@pytest.mark.parametrize(
    "content", ["[]", "{}", "null", '"text"', "{", '{"format": "x", "kind": 1, "files": []}', "\x00"]
)
def test_foreign_manifest_is_an_error(content: str) -> None:
    Path("foreign").mkdir()
    Path("foreign/manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"foreign/manifest\.json: the manifest is damaged"):
        Predictor.load("foreign")


def resealed(folder: Path, **changes: Any) -> None:
    """Change the manifest as one who knows the checksum."""
    from sp_ray_ml.train import predictor

    manifest = {**json.loads((folder / "manifest.json").read_bytes()), **changes}
    manifest["sha256"] = predictor._seal(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_newer_format_says_what_to_do(sealed: Path) -> None:
    resealed(sealed, format=2)
    with pytest.raises(CheckpointError, match=r"written in format 2, this version reads 1.*--upgrade"):
        Predictor.load(sealed)
    Path("newer").mkdir()
    Path("newer/manifest.json").write_text('{"format": 3, "kind": "recommender", "files": {}}')
    with pytest.raises(CheckpointError, match="format 3"):
        Predictor.load("newer")


def test_other_kind_is_named(sealed: Path) -> None:
    resealed(sealed, kind="classifier")
    with pytest.raises(CheckpointError, match=r"holds a 'classifier', known are: recommender"):
        Predictor.load(sealed)


def test_manifest_that_leaves_files_out_does_not_get_around_the_check(sealed: Path) -> None:
    resealed(sealed, files={})
    with pytest.raises(CheckpointError, match=r"the manifest does not name vectors\.safetensors"):
        Predictor.load(sealed)


def test_manifest_that_names_files_outside_reads_none(sealed: Path) -> None:
    Path("secret").write_text("x")
    manifest = json.loads((sealed / "manifest.json").read_bytes())
    resealed(sealed, files={**manifest["files"], "../secret": "0" * 64})
    with pytest.raises(CheckpointError, match="secret is missing"):
        Predictor.load(sealed)


def test_manifest_that_fits_no_files_is_an_error(sealed: Path) -> None:
    manifest = json.loads((sealed / "manifest.json").read_bytes())
    del manifest["user_column"], manifest["sha256"]
    (sealed / "manifest.json").write_text(json.dumps(manifest))
    resealed(sealed)
    with pytest.raises(CheckpointError, match="does not hold what a recommender needs"):
        Predictor.load(sealed)


def test_what_is_no_predictor_says_what_is(made: Recommender) -> None:
    Path("empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(CheckpointError, match=rf"{place}: is no sealed predictor.*sp-ray get runs"):
            Predictor.load(place)
    with pytest.raises(CheckpointError, match="expected a path, a Ray Checkpoint or an MLflow URI, got int"):
        Predictor.load(3)


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_opening_reads_no_pickle(sealed: Path) -> None:
    for name in ("model.pkl", "data.pickle", "model.pt", "vectors.safetensors.pkl", "python_model.pkl"):
        (sealed / name).write_bytes(pickle.dumps(_Bomb()))
    opened(sealed).recommend(k=1)
    assert not Path("exploded").exists()
    (sealed / "vectors.safetensors").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(CheckpointError):
        Predictor.load(sealed)
    resealed(sealed, files={name: file_sha256(sealed / name) for name in FILES if name != "manifest.json"})
    with pytest.raises(CheckpointError, match="does not hold"):
        Predictor.load(sealed)
    assert not Path("exploded").exists()


def test_opening_and_recommending_needs_no_torch(sealed: Path) -> None:
    code = (
        "import sys; from sp_ray_ml.train import Predictor; p = Predictor.load(sys.argv[1]); p.recommend(k=3);"
        "print({'torch', 'ray', 'mlflow'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sealed)], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"


# --- from anywhere ----------------------------------------------------------------------------------------------


def test_opened_from_a_runs_folder(made: Recommender, sealed: Path) -> None:
    Path("runs/one/steps/train").mkdir(parents=True)
    shutil.move(sealed, "runs/one/steps/train/predictor")
    for place in ("runs/one", Path("runs/one"), "runs/one/steps/train/predictor"):
        assert opened(place).recommend(k=2).equals(made.recommend(k=2))


@pytest.mark.slow
def test_opened_from_a_ray_checkpoint(made: Recommender, sealed: Path) -> None:
    import ray.train

    checkpoint = ray.train.Checkpoint.from_directory(str(sealed))
    assert opened(checkpoint).recommend(k=2).equals(made.recommend(k=2))


@pytest.mark.slow
def test_opened_from_mlflow_it_predicts_the_same(
    made: Recommender, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import pandas as pd

    from sp_ray_ml.tracking import Run, Tracking

    uri = f"sqlite:///{Path('mlflow.db').absolute()}"
    run = Run.open("run", name="one", settings=Tracking(uri=uri))
    run.log_model(sealed, signature=made.mlflow_signature())
    outcome = run.finish(wait_s=120)
    assert not outcome.pending, str(outcome)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = f"runs:/{run.mlflow_run_id}/model"
    users = made.user_ids.to_pylist()[:5]
    wanted = made.recommend(users, 20)
    environment = dict(os.environ)
    assert opened(model).recommend(users, 20).equals(wanted)
    assert dict(os.environ) == environment
    served = mlflow.pyfunc.load_model(model)
    frame = served.predict(pd.DataFrame({"user_id": users}))
    pd.testing.assert_frame_equal(frame, wanted.to_pandas())
    with pytest.raises(DataError, match="not in the model"):
        served.predict(pd.DataFrame({"user_id": [1]}))
