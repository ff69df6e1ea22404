"""Configs: every mistake at once and in its place, YAML's traps, variables, secrets, import paths, round trips."""

from __future__ import annotations

import datetime
import json
import pickle
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_ray_ml import errors
from sp_ray_ml._import_path import import_object
from sp_ray_ml.config import (
    Custom,
    Duration,
    Family,
    Settings,
    check,
    document_of,
    dump,
    fingerprint,
    json_schema,
    near_match,
    read_document,
    redact,
    to_yaml,
)
from sp_ray_ml.errors import ConfigError, Problem, SpRayError
from sp_ray_ml.inference.settings import Output
from sp_ray_ml.pipeline import Pipeline, load_config

BASIC = """\
name: movielens
seed: 0
warehouse: data
events: {table: events, user: user_id, item: item_id, time: timestamp, rating: rating, min_rating: 4}
nodes:
  user: {table: users, id: user_id, features: [{kind: standardize, columns: [age]}]}
  item: {table: items, id: item_id, title: title, features: [{kind: multi_hot, columns: [genres], separator: " "}]}
split: {kind: per_user, train: 0.8}
train: {kind: pyg, model: {kind: lightgcn, dim: 64}, loss: sampled_softmax, epochs: 60, scaling: {workers: 0}}
evaluate: {k: [10, 20], baselines: [popularity, ease]}
predict: {k: 20, output: {warehouse: "duckdb:///out.duckdb", table: recommendations}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes a config and returns its path; the working directory is where it lies."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes = BASIC, name: str = "config.yaml") -> Path:
        file = Path(name)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def problems(*arguments: Any, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments, **options)
    return str(caught.value).splitlines()


def only(*arguments: Any, **options: Any) -> str:
    (problem,) = problems(*arguments, **options)
    return problem


class Inner(Settings):
    """For tests."""

    size: int = 1
    rate: float = 0.5
    name: str = "x"
    on: bool = False
    after: Duration = pydantic.Field(default="1d", validate_default=True)
    at: datetime.datetime | None = None
    password: str | None = None
    color: Literal["red", "green"] = "red"


class Outer(Settings):
    """For tests."""

    inner: Inner = Inner()
    many: list[Inner] = pydantic.Field(default_factory=list)
    words: list[str] = pydantic.Field(default_factory=list)
    any: dict[str, Any] = pydantic.Field(default_factory=dict)


def read(text: str, tmp_path: Path, overrides: tuple[str, ...] = ()) -> Any:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    document = read_document(file, overrides)
    assert not document.problems
    return document.data


# --- mistakes ---------------------------------------------------------------------------------------------------


def test_all_mistakes_are_named_at_once_in_the_order_of_the_file(config):
    file = config(
        "name: movielens\n"
        "seed: -1\n"
        "warehouse: data\n"
        "events: {table: events, usr: user_id, item: item_id}\n"
        "split: {kind: per_usr}\n"
        "train:\n"
        "  kind: pyg\n"
        "  num_nieghbors: 3\n"
        "  epochz: 5\n"
        "  epochs: many\n"
        "  model: {kind: lightgcn, dimm: 3, layers: 1.5}\n"
        "  scaling: {workers: two}\n"
        "evaluate: {k: [10, 0], baselines: [popularty]}\n"
        "predict: {output: {table: t}}\n"
    )
    assert problems(file) == [
        "config.yaml:2: seed: must be greater than or equal to 0, got -1",
        "config.yaml:4: events.user: required",
        "config.yaml:4: events.usr: unknown; did you mean user?",
        "config.yaml:5: split.kind: unknown kind 'per_usr'; did you mean per_user? (known: time, per_user, last_n, "
        "random, table; or 'package.module:Name')",
        "config.yaml:8: train.num_nieghbors: unknown; did you mean neighbors?",
        "config.yaml:9: train.epochz: unknown; did you mean epochs?",
        "config.yaml:10: train.epochs: expected a whole number, got 'many'",
        "config.yaml:11: train.model.layers: expected a whole number, got 1.5",
        "config.yaml:11: train.model.dimm: unknown; did you mean dim?",
        "config.yaml:12: train.scaling.workers: expected a whole number, got 'two'",
        "config.yaml:13: evaluate.k.1: must be greater than or equal to 1, got 0",
        "config.yaml:13: evaluate.baselines.0.kind: unknown kind 'popularty'; did you mean popularity? (known: "
        "popularity, ease; or 'package.module:Name')",
        "config.yaml:14: predict.output.warehouse: required",
    ]


def test_mistakes_of_reading_and_of_checking_are_named_together(config, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    file = config("name: a\nname: b\nwarehouse: ${NOWHERE}\nseed: x\nevents: {table: e, user: u, item: i}\n")
    assert problems(file) == [
        "config.yaml:2: name: written twice (first in line 1): keep one",
        "config.yaml:3: warehouse: the environment variable NOWHERE is not set: export NOWHERE=…, or write "
        "${NOWHERE:-default}",
        "config.yaml:4: seed: expected a whole number, got 'x'",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner: 5", "inner: expected a mapping (key: value), got 5"),
        ("inner:", "inner: expected a mapping (key: value), got nothing"),
        ("inner: {name: 5}", "inner.name: expected text, got 5: put it in quotes"),
        ("inner: {size: [1]}", "inner.size: expected a whole number, got a list"),
        ("inner: {rate: fast}", "inner.rate: expected a number, got 'fast'"),
        ("inner: {rate: .nan}", "inner.rate: must be a finite number, got nan"),
        ("inner: {on: perhaps}", "inner.on: expected true or false, got 'perhaps'"),
        ("inner: {color: gren}", "inner.color: expected one of red, green, got 'gren'; did you mean green?"),
        (
            "inner: {after: soon}",
            "inner.after: expected a duration such as 90s, 15m, 2h, 30d or 1w, got 'soon'",
        ),
        ("inner: {after: 99999999999w}", "inner.after: '99999999999w' is longer than 10,000 years"),
        ("many: {size: 1}", "many: expected a list, got a mapping"),
        ("many: [{sise: 1}]", "many.0.sise: unknown; did you mean size?"),
        ("many: [{}, {size: x}]", "many.1.size: expected a whole number, got 'x'"),
        ("innner: {}", "innner: unknown; did you mean inner?"),
        ("words: [a, 1]", "words.1: expected text, got 1: put it in quotes"),
    ],
)
def test_a_wrong_value_says_what_was_expected(text, expected, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        check(Outer, read_document(tmp_path / "c.yaml"))
    assert str(caught.value) == f"{tmp_path}/c.yaml:1: {expected}"


def test_settings_made_in_python_name_every_mistake_too():
    with pytest.raises(ConfigError) as caught:
        Inner(size="x", colour="red")
    assert str(caught.value).splitlines() == [
        "size: expected a whole number, got 'x'",
        "colour: unknown; did you mean color?",
    ]
    assert isinstance(caught.value, ValueError)


def test_settings_are_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Inner().size = 2


def test_a_config_error_is_the_users_mistake():
    assert ConfigError("x").exit_code == 2


def test_input_and_output_warehouse_must_differ(config):
    file = config(BASIC.replace("duckdb:///out.duckdb", "./data"))
    assert only(file).endswith(
        "predict.output.warehouse: is the input warehouse, which is only read: name another"
    )


def test_input_and_output_warehouse_are_compared_whatever_else_is_wrong(config):
    file = config(BASIC.replace("duckdb:///out.duckdb", "./data").replace("seed: 0", "seed: many"))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert [problem.path for problem in caught.value.problems] == ["seed", "predict.output.warehouse"]


def test_a_name_that_no_folder_can_have_is_told_what_one_can(config):
    assert "use letters, digits" in only(config(BASIC.replace("name: movielens", "name: my/run")))


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "c.yaml: the file is empty. Draft one from your tables: sp-ray init WAREHOUSE"),
        ("# nothing\n", "c.yaml: the file is empty. Draft one from your tables: sp-ray init WAREHOUSE"),
        ("---\n", "c.yaml: the file is empty. Draft one from your tables: sp-ray init WAREHOUSE"),
        ("- a\n- b\n", "c.yaml: the file is a list: a config is a mapping (key: value)"),
        ("hello\n", "c.yaml: the file is plain text: a config is a mapping (key: value)"),
        ("name: a\n---\nname: b\n", "c.yaml:3: a second document begins here: a config is one"),
        ("a: b: c\n", "c.yaml:1: not YAML: mapping values are not allowed here"),
        ("a: [1, 2\nb: 3\n", "c.yaml:2: not YAML: expected ',' or ']', but got ':'"),
        (
            "a:\n\tb: 1\n",
            "c.yaml:2: not YAML: found character '\\t' that cannot start any token (a tab: YAML wants spaces)",
        ),
        (
            "a: {b: ${C}}\n",
            "c.yaml:1: not YAML: expected ',' or '}', but got '{' (inside { } and [ ] a variable is to be quoted: "
            '"${NAME}")',
        ),
        ("a: *b\n", "c.yaml:1: not YAML: found undefined alias 'b'"),
        (b"\xff\xfe\x00\x01", "c.yaml: not a text file in UTF-8"),
        (b"PAR1\x00\x00\x15\x04", "c.yaml: has control characters: not a text file"),
        ("[" * 3000, "c.yaml: is nested too deeply"),
    ],
)
def test_a_file_that_is_no_config_is_one_clear_error(text, expected, config):
    assert only(config(text, "c.yaml")) == expected


def test_a_missing_file_is_told_with_a_near_match(config):
    config(BASIC, "movielens.yaml")
    assert only("movielen.yaml").startswith("movielen.yaml: no such file; did you mean movielens.yaml?")
    assert only("nowhere/at/all.yaml").startswith("nowhere/at/all.yaml: no such file. Draft one")


def test_a_folder_and_an_unreadable_file_are_told(config, tmp_path):
    assert (
        only(tmp_path)
        == f"{tmp_path}: is a folder, a config is a file. Draft a config from its tables: sp-ray init {tmp_path}"
    )
    assert only([1]) == "expected a file or a mapping, got list"


def test_a_byte_order_mark_does_no_harm(config):
    assert load_config(config(b"\xef\xbb\xbf" + BASIC.encode())).name == "movielens"


# --- YAML's traps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 1e5), ("1.5e+3", 1500.0), (".5", 0.5), ("1.", 1.0), ("-2", -2), ("+2", 2), ("1_000", 1000),
        ("012", 12), (".inf", float("inf")), ("12:30", "12:30"), ("1:30:00", "1:30:00"), ("on", "on"), ("off", "off"),
        ("yes", "yes"), ("no", "no"), ("NO", "NO"), ("y", "y"), ("true", True), ("False", False), ("null", None), ("~", None),
        ("", None), ("2024-01-01", "2024-01-01"), ("0x1F", "0x1F"), ("1.2.3", "1.2.3"), ("=", "="), ("'1'", "1"),
        ('"true"', "true"), ("!!str 1", "1"), ("!!str 1e-3", "1e-3"), ("9" * 5000, "9" * 5000), ("|\n  a\n  b\n", "a\nb\n"),
    ],
)  # fmt: skip
def test_scalars_have_the_types_of_yaml_1_2(text, value, tmp_path):
    found = read(f"a: {text}\n", tmp_path)["a"]
    assert found == value
    assert type(found) is type(value)


def test_a_switch_may_be_spelled_on_where_true_or_false_is_wanted(tmp_path):
    data = read("inner: {on: on, name: on}", tmp_path)
    assert (check(Outer, read_document(data)).inner.on, data["inner"]["name"]) == (True, "on")


def test_a_key_is_text_whatever_it_looks_like(tmp_path):
    assert read("on: 1\n1: 2\nnull: 3\n", tmp_path) == {"on": 1, "1": 2, "null": 3}


def test_a_doubled_key_is_named_with_both_lines(config):
    file = config(BASIC.replace("epochs: 60", "epochs: 60, epochs: 5") + "seed: 1\n")
    assert problems(file) == [
        "config.yaml:9: train.epochs: written twice (first in line 9): keep one",
        "config.yaml:12: seed: written twice (first in line 2): keep one",
    ]


def test_anchors_and_merge_keys_work_and_mistakes_in_them_have_their_lines(config):
    file = config(
        "many:\n"
        "  - &base {size: 3, name: a}\n"
        "  - {<<: *base, size: 4}\n"
        "  - {size: 5, <<: [*base, {rate: 0.1, name: b}]}\n"
        "  - *base\n"
    )
    many = check(Outer, read_document(file)).many
    assert [(m.size, m.name, m.rate) for m in many] == [
        (3, "a", 0.5),
        (4, "a", 0.5),
        (5, "a", 0.1),
        (3, "a", 0.5),
    ]
    file = config("any: {x: &base {size: x}}\ninner:\n  name: a\n  <<: *base\n")
    with pytest.raises(ConfigError, match=r"^config.yaml:1: inner.size: expected a whole number, got 'x'$"):
        check(Outer, read_document(file))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("any: &a {b: *a}", "c.yaml:1: any.b: an alias that contains itself"),
        ("words: &a [*a]", "c.yaml:1: words.0: an alias that contains itself"),
        ("any: &a {<<: *a}", "c.yaml:1: any: an alias that contains itself"),
        ("any: {<<: 3}", "c.yaml:1: any: << takes a mapping, or a list of them"),
        ("any: {[1, 2]: 3}", "c.yaml:1: any: a key must be a plain word"),
        ("any: !!python/object/apply:os.system [touch hacked]", "c.yaml:1: any: the tag !!python/object/apply:os.system is not allowed"),
        ("any: !!python/name:os.system", "c.yaml:1: any: the tag !!python/name:os.system is not allowed"),
        ("any: !include other.yaml", "c.yaml:1: any: the tag !include is not allowed"),
        ("any: {x: !!binary aGVsbG8=}", "c.yaml:1: any.x: the tag !!binary is not allowed"),
        ("any: {x: '${not a name}'}", "c.yaml:1: any.x: ${not a name} is no variable: write ${NAME} or ${NAME:-default}"),
    ],
)  # fmt: skip
def test_what_yaml_allows_and_a_config_does_not_is_named(text, expected, config, tmp_path):
    with pytest.raises(ConfigError) as caught:
        check(Outer, read_document(config(text, "c.yaml")))
    assert str(caught.value) == expected
    assert not (tmp_path / "hacked").exists()


def test_aliases_of_aliases_do_not_fill_the_memory(config):
    lines = ["any:", "  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="more than 100,000 values, aliases counted each time"):
        check(Outer, read_document(config("\n".join(lines))))


# --- --set ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read_back"),
    [
        ("train.epochs=5", lambda p: p.train.epochs == 5),
        ("train.learning_rate=1e-3", lambda p: p.train.learning_rate == 0.001),
        ("evaluate.k=[5, 10]", lambda p: p.evaluate.k == [5, 10]),
        ("evaluate.k.1=30", lambda p: p.evaluate.k == [10, 30]),
        ("train.loss=bpr", lambda p: type(p.train.loss).__name__ == "BPR"),
        ("train.loss.negatives=7", lambda p: p.train.loss.negatives == 7),
        ("train.early_stopping=null", lambda p: p.train.early_stopping is None),
        ("train.early_stopping=", lambda p: p.train.early_stopping is None),
        ("graph.co_occurrence.window=2h", lambda p: p.graph.co_occurrence.window == datetime.timedelta(hours=2)),
        ("nodes.item.features.0.separator=|", lambda p: False),
        ('nodes.item.features.0.separator="|"', lambda p: p.nodes.item.features[0].separator == "|"),
        ("name=a=b", lambda p: False),
        ("split={kind: last_n, n: 2}", lambda p: p.split.n == 2),
        ("predict.users=users", lambda p: p.predict.users == "users"),
    ],
)  # fmt: skip
def test_set_replaces_or_adds_a_setting(override, read_back, config):
    file = config()
    if override in {"name=a=b", "nodes.item.features.0.separator=|"}:
        assert problems(file, [override])
    else:
        assert read_back(load_config(file, [override]))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochz=5", "train.epochz: unknown; did you mean epochs? (from --set train.epochz)"),
        ("trian.epochs=5", "trian: unknown; did you mean train? (from --set trian.epochs)"),
        ("train.epochs=many", "train.epochs: expected a whole number, got 'many' (from --set train.epochs)"),
        ("evaluate.k=[0]", "evaluate.k.0: must be greater than or equal to 1, got 0 (from --set evaluate.k)"),
        ("evaluate.k.7=3", "--set evaluate.k.7: the list evaluate.k has 2 entries, numbered from 0. Replace the whole list: --set 'evaluate.k=[…]'"),
        ("seed.x=3", "--set seed.x: seed is 0, which has no parts"),
        ("train.epochs", "--set train.epochs: expected dotted.path=value. For example: --set train.epochs=5"),
        ("=5", "--set =5: expected dotted.path=value. For example: --set train.epochs=5"),
        ("train..epochs=5", "--set train..epochs=5: expected dotted.path=value. For example: --set train.epochs=5"),
        ("name=[a", "--set name: the value is not YAML; quote it. For example: --set 'name=\"…\"'"),
        ("train={kind: pyg, epochs: 1, epochs: 2}", "train.epochs: written twice (first in line 1): keep one (from --set train)"),
        ("name=!!python/name:os.system", "name: the tag !!python/name:os.system is not allowed (from --set name)"),
        ("name=a\n---\nb", "--set name: the value is two documents; quote it"),
    ],
)  # fmt: skip
def test_a_wrong_set_is_named(override, expected, config):
    assert only(config(), [override]) == expected


def test_set_stands_in_for_a_variable_that_is_not_set(config, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    file = config(BASIC.replace("warehouse: data", "warehouse: ${NOWHERE}"))
    assert load_config(file, ["warehouse=here"]).warehouse == "here"


def test_set_changes_a_pipeline_and_a_mapping_too(config):
    pipeline = load_config(
        config(BASIC.replace("warehouse: data", "warehouse: 'gs://me:pass@host/${x:-}db'"))
    )
    changed = load_config(pipeline, ["train.epochs=5"])
    assert (changed.train.epochs, changed.warehouse) == (5, "gs://me:pass@host/db")
    assert load_config(yaml.safe_load(BASIC), ["seed=7"]).seed == 7


# --- variables --------------------------------------------------------------------------------------------------


def test_variables_are_replaced_and_typed_where_they_are_not_quoted(config, monkeypatch):
    monkeypatch.setenv("N", "5")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("ODD", "a: [b, $$ ${N}")
    text = (
        "any: {a: '${N}', b: x${N}y, c: '${NOT:-z}', d: '${EMPTY:-}', e: $$, f: '$${N}', g: $N, h: '${ODD}'}"
    )
    data = read_document(config(text.replace("x${N}y", "'x${N}y'"))).data
    assert data["any"] == {
        "a": "5", "b": "x5y", "c": "z", "d": "", "e": "$", "f": "${N}", "g": "$N", "h": "a: [b, $$ ${N}",
    }  # fmt: skip
    data = read_document(config("any:\n  a: ${N}\n  b: ${NOT:-1e-3}\n  c: ${EMPTY:-}\n")).data
    assert data["any"] == {"a": 5, "b": 0.001, "c": None}


def test_a_mapping_from_python_has_variables_too(monkeypatch):
    monkeypatch.setenv("N", "5")
    assert read_document({"a": "${N}", "b": ["$$x", 3]}).data == {"a": "5", "b": ["$x", 3]}


def test_an_empty_variable_is_named_as_empty(config, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    assert only(config(BASIC.replace("warehouse: data", "warehouse: ${EMPTY}"))) == (
        "config.yaml:3: warehouse: the environment variable EMPTY is empty: export EMPTY=…, or write ${EMPTY:-default}"
    )


@pytest.mark.parametrize(
    "line",
    ["seed: ${S}", "split: ${S}", "split: {kind: '${S}'}", "events: {table: e, user: u, item: i, unknown: '${S}'}",
     "events: '${S}'", "train: {kind: pyg, loss: '${S}'}", "graph: {half_life: '${S}'}", "split: {kind: time, test: '${S}'}",
     "split: {kind: time, cut: '${S}'}", "train: '${S}'", "evaluate: {k: '${S}'}", "name: a b ${S}", "split: {kind: 'x:${S}'}",
     "nodes: {user: {table: t, id: i, features: ['${S}']}}", "predict: {k: ['${S}']}"],
)  # fmt: skip
@pytest.mark.parametrize(
    "secret", ["hunter2-swordfish", "hunter2\nswordfish", "hunter2's", "no_such_module:hunter2"]
)
def test_what_a_variable_holds_is_never_said(line, secret, config, monkeypatch):
    monkeypatch.setenv("S", secret)
    file = config(line + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    text = f"{caught.value!r} {caught.value}"
    assert "hunter" not in text
    assert "swordfish" not in text
    assert "${S}" in text


def test_what_set_takes_from_a_variable_is_never_said(config, monkeypatch):
    monkeypatch.setenv("S", "hunter2")
    assert only(config(), ["seed=${S}"]) == (
        "seed: expected a whole number, got the value of ${S} (from --set seed)"
    )


# --- secrets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("postgresql://me:pass@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p@ss:w@host/db", "postgresql://me:***@host/db"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://host/x?api_key=abc&y=1", "https://host/x?api_key=***&y=1"),
        ("http://host:8080/x", "http://host:8080/x"),
        ("duckdb:////data/a@b.duckdb", "duckdb:////data/a@b.duckdb"),
        ({"password": "x", "db": {"api_key": "y", "name": "z"}}, {"password": "***", "db": {"api_key": "***", "name": "z"}}),
        ({"tokens": ["a", "b"], "max_tokens": 5, "secret": None}, {"tokens": ["***", "***"], "max_tokens": 5, "secret": None}),
    ],
)  # fmt: skip
def test_secrets_are_struck_out(value, expected):
    assert redact(value) == expected


def test_secrets_reach_neither_yaml_nor_dump():
    outer = Outer(
        inner={"password": "hunter2", "name": "mysql://me:hunter2@host"}, any={"api_token": "hunter2"}
    )
    assert "hunter2" not in to_yaml(outer)
    assert "hunter2" not in json.dumps(dump(outer))
    assert "hunter2" in json.dumps(document_of(outer).data)


def test_a_secret_that_is_wrong_is_not_said():
    with pytest.raises(ConfigError) as caught:
        Inner(password=["hunter2"])
    assert "hunter2" not in str(caught.value)


# --- import paths and classes of one's own ----------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A project of the user's own in the working directory, whose import leaves a mark."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"own_{tmp_path.name.replace('-', '_')}"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(
        "from pathlib import Path\n"
        "Path('imported').touch()\n"
        "from sp_ray_ml.graph.models import GNN\n"
        "class MyModel(GNN):\n"
        "    hidden: int = 3\n"
        "    def build(self, data):\n"
        "        return None\n"
        "def factory(data, width=2):\n"
        "    def inner():\n"
        "        pass\n"
        "    return width\n"
        "NUMBER = 5\n"
        "if NUMBER:\n"
        "    from os.path import join as late\n"
        "else:\n"
        "    late = None\n"
    )
    (package / "broken.py").write_text("def f(:\n")
    (package / "raises.py").write_text("raise RuntimeError('boom')\n")
    (package / "needs.py").write_text("import no_such_library_at_all\nclass A: ...\n")
    yield name
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]


def with_model(kind: str, **arguments: Any) -> dict[str, Any]:
    config = yaml.safe_load(BASIC)
    config["train"]["model"] = {"kind": kind, **arguments}
    return config


def test_a_model_of_ones_own_is_used_by_import_path(own):
    model = load_config(with_model(f"{own}.models:MyModel", hidden=5)).train.model
    assert (type(model).__name__, model.hidden) == ("MyModel", 5)
    function = load_config(with_model(f"{own}.models:factory", width=7)).train.model
    assert isinstance(function, Custom)
    assert function.load()(None, **function.arguments) == 7


def test_check_only_looks_import_paths_up_without_importing(own, tmp_path):
    pipeline = load_config(with_model(f"{own}.models:MyModel", hidden="five"), check_only=True)
    assert isinstance(pipeline.train.model, Custom)
    for name in ("factory", "NUMBER", "late", "MyModel.build"):
        load_config(with_model(f"{own}.models:{name}"), check_only=True)
    assert not (tmp_path / "imported").exists()
    assert own not in sys.modules


@pytest.mark.parametrize("check_only", [False, True])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("no_such_package.models:A", "no module 'no_such_package'"),
        ("{own}.modles:MyModel", "no module '{own}.modles'"),
        ("{own}.models.deeper:A", "no module '{own}.models.deeper'"),
        ("{own}.models:MyModle", "module {own}.models has no MyModle; did you mean MyModel?"),
        ("{own}.models:inner", "module {own}.models has no inner"),
        ("{own}.broken:f", "{own}.broken cannot be imported: SyntaxError"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_named(path, expected, check_only, own):
    problem = only(with_model(path.format(own=own)), check_only=check_only)
    assert problem.startswith(f"train.model.kind: {expected.format(own=own)}")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("{own}.models:NUMBER", "{own}.models:NUMBER is not a model (a subclass of GNN)"),
        ("{own}.raises:A", "{own}.raises cannot be imported: RuntimeError: boom"),
        ("{own}.needs:A", "{own}.needs cannot be imported: it needs no_such_library_at_all"),
        (
            "sp_ray_ml.data.splits:TimeSplit",
            "sp_ray_ml.data.splits:TimeSplit is not a model (a subclass of GNN)",
        ),
    ],
)
def test_what_is_no_model_is_named(path, expected, own):
    assert only(with_model(path.format(own=own))) == f"train.model.kind: {expected.format(own=own)}"


def test_wrong_arguments_of_ones_own_class_have_their_path(own):
    assert (
        only(with_model(f"{own}.models:MyModel", hiden=5))
        == "train.model.hiden: unknown; did you mean hidden?"
    )


def test_where_only_settings_will_do_a_function_is_refused(own):
    config = {**yaml.safe_load(BASIC), "split": f"{own}.models:factory"}
    assert only(config) == f"split.kind: {own}.models:factory is not a split (a subclass of Split)"
    with pytest.raises(ConfigError, match="expected split settings"):
        Pipeline(**{**yaml.safe_load(BASIC), "split": Custom(target=print)})


def test_modules_that_are_not_files_are_found_without_importing(own):
    load_config(with_model("time:sleep"), check_only=True)
    load_config(with_model("zipimport:zipimporter"), check_only=True)


def test_a_callable_stands_where_yaml_has_an_import_path(own):
    import_object(f"{own}.models:factory")
    module = sys.modules[f"{own}.models"]
    pipeline = Pipeline(**with_model("lightgcn") | {"train": {"kind": "pyg", "model": module.factory}})
    assert dump(pipeline)["train"]["model"] == {"kind": f"{own}.models:factory"}
    made = Pipeline(**with_model("lightgcn") | {"train": {"kind": "pyg", "model": module.MyModel(hidden=4)}})
    assert dump(made)["train"]["model"] == {"kind": f"{own}.models:MyModel", "hidden": 4}


def test_a_callable_without_an_import_path_is_refused_where_it_would_be_saved():
    class Local(Inner):
        pass

    pipeline = Pipeline(**with_model("lightgcn") | {"train": {"kind": "pyg", "model": lambda data: None}})
    for save in (dump, to_yaml, document_of):
        with pytest.raises(ConfigError, match=r"<lambda> cannot be saved: it has no import path\. Move it"):
            save(pipeline)
    with pytest.raises(ConfigError, match="Local cannot be saved"):
        Family("thing", {}).kind_of(Local())


def test_ones_own_code_is_part_of_the_fingerprint(own):
    def mark() -> str:
        for name in [m for m in sys.modules if m.startswith(f"{own}.")]:
            del sys.modules[name]
        pipelines = [load_config(with_model(f"{own}.models:{name}")) for name in ("MyModel", "factory")]
        return " ".join(fingerprint(p.train) for p in pipelines)

    file = Path(own, "models.py")
    before = mark().split()
    assert mark().split() == before
    file.write_text(file.read_text() + "\nOTHER = 1\n")
    import linecache

    linecache.checkcache()
    after = mark().split()
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_the_fingerprint_changes_with_every_setting_and_with_nothing_else(config):
    pipeline = load_config(config())
    assert fingerprint(pipeline) == fingerprint(load_config(config()))
    assert fingerprint(pipeline) != fingerprint(load_config(config(), ["train.model.dim=65"]))
    assert fingerprint(pipeline) != fingerprint(load_config(config(), ["split.kind=random"]))


class Red(Settings):
    """For tests."""

    shade: int = 1


class Green(Red):
    """For tests."""


class Pot(Settings):
    """For tests."""

    paint: Annotated[
        Red, Family("paint", {"red": f"{__name__}:Red", "green": f"{__name__}:Green"}, default="red")
    ] = Red()


@pytest.fixture
def paints(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[Red.__module__])


@pytest.mark.usefixtures("paints")
def test_a_family_takes_a_kind_a_mapping_or_an_object():
    assert Pot(paint="green").paint == Green()
    assert Pot(paint={"kind": "green", "shade": 2}).paint == Green(shade=2)
    assert Pot(paint={"shade": 2}).paint == Red(shade=2)
    assert Pot(paint=Green()).paint == Green()
    for wrong, expected in (
        (
            "gren",
            "paint.kind: unknown kind 'gren'; did you mean green? (known: red, green; or 'package.module:Name')",
        ),
        (5, "paint: expected paint settings, such as {kind: red}, got 5"),
        (None, "paint: expected paint settings, such as {kind: red}, got nothing"),
        ({"kind": 5}, "paint.kind: required, one of: red, green, or an import path 'package.module:Name'"),
        ({"kind": "green", "shad": 1}, "paint.shad: unknown; did you mean shade?"),
    ):
        with pytest.raises(ConfigError) as caught:
            Pot(paint=wrong)
        assert str(caught.value) == expected


# --- errors -----------------------------------------------------------------------------------------------------


def subclasses(cls: type) -> list[type]:
    return [cls, *(found for child in cls.__subclasses__() for found in subclasses(child))]


@pytest.mark.parametrize("cls", [c for c in subclasses(SpRayError) if c.__module__ == errors.__name__])
def test_every_error_pickles_with_all_it_says(cls):
    error = cls("what", where="where", hint="hint")
    if issubclass(cls, ConfigError):
        error = cls("what", hint="hint", problems=(Problem("a.b", "wrong", "c.yaml", 3),))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (str(again), again.__dict__, again.args) == (str(error), error.__dict__, error.args)
    assert cls.__name__ in errors.__all__


# --- there and back ---------------------------------------------------------------------------------------------


def test_a_config_that_is_saved_reads_back_the_same(config):
    pipeline = load_config(config())
    assert check(Pipeline, read_document(yaml.safe_load(to_yaml(pipeline)))) == pipeline
    again = config(to_yaml(pipeline), "saved.yaml")
    assert load_config(again) == pipeline
    assert load_config(again, check_only=True) == pipeline


_TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12)
_ODD = st.sampled_from(
    [
        "1e-3",
        "12:30",
        "on",
        "no",
        "null",
        "~",
        "",
        "012",
        "1_0",
        ".inf",
        "$",
        "$$",
        "${A}",
        "$${A}",
        "a: b",
        "#",
        "- x",
    ]
)


@settings(deadline=None)
@given(st.lists(_TEXT | _ODD, max_size=5), st.floats(allow_nan=False, allow_infinity=False), st.timedeltas(datetime.timedelta(0), datetime.timedelta(days=20_000)))  # fmt: skip
def test_any_text_number_and_duration_survives_the_way_through_yaml(words, rate, after):
    outer = Outer(words=words, inner=Inner(rate=rate, after=after))
    saved = to_yaml(outer)
    assert check(Outer, read_document(yaml.safe_load(saved))) == outer
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(saved)
        file.flush()
        assert check(Outer, read_document(file.name)) == outer


def test_durations_read_as_they_are_written():
    for text in ("90s", "15m", "2h", "30d", "1w", "0.5s", "1234567s", "1.5h"):
        inner = Inner(after=text)
        assert Inner(after=dump(inner)["after"]) == inner
    assert dump(Inner(after="120m"))["after"] == "2h"


def test_near_match_is_silent_without_a_likeness():
    assert near_match("epochz", ["epochs", "seed"]) == "; did you mean epochs?"
    assert near_match("xyz", ["epochs", "seed"]) == ""


# --- the schema -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    import jsonschema

    schema = json_schema(Pipeline)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_takes_what_check_takes(validator):
    validator.validate(yaml.safe_load(BASIC))
    for change in ({"train": "pyg"}, {"train": {"kind": "pyg", "model": {"dim": 8}}}, {"train": {"kind": "pyg", "model": "my.models:Model"}},
                   {"split": {"kind": "time", "test": "14d"}}, {"graph": {"half_life": "7d"}}, {"split": "random"},
                   {"train": {"kind": "pyg", "model": {"kind": "my.models:Model", "hidden": 3}}}):  # fmt: skip
        config = {**yaml.safe_load(BASIC), **change}
        validator.validate(config)
        load_config(config, check_only=False) if "my.models" not in str(change) else None


def test_the_schema_refuses_what_check_refuses(validator):
    for change in ({"nmae": "x"}, {"seed": -1}, {"split": {"kind": "tiem"}}, {"train": {"kind": "pyg", "epochs": 0}}, {"evaluate": {"k": []}},
                   {"split": {"kind": "per_user", "trian": 0.5}}, {"split": {"train": 0.5}}):  # fmt: skip
        config = {**yaml.safe_load(BASIC), **change}
        assert not validator.is_valid(config), change
        with pytest.raises(ConfigError):
            load_config(config)


def test_the_schema_explains_every_key():
    def unexplained(node: Any, path: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        found = [
            f"{path}.{name}"
            for name, field in node.get("properties", {}).items()
            if name != "kind" and not ("description" in field or "$ref" in field)
        ]
        return found + [f for name, d in node.get("$defs", {}).items() for f in unexplained(d, name)]

    assert unexplained(json_schema(Pipeline), "") == []


def test_output_by_partition_needs_its_column():
    with pytest.raises(ValueError, match="partition_by: COLUMN"):
        Output(warehouse="x", mode="partition")
    assert Output(warehouse="x", mode="partition", partition_by="day").partition_by == "day"
