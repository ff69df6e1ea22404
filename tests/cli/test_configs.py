"""`sp-ray validate`, `sp-ray schema`, `sp-ray init` and `sp-ray demo`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import yaml


def test_validate_says_ok_with_the_name(config, sp_ray):
    ran = sp_ray("validate", config)
    assert (ran.code, ran.out, ran.err) == (0, "small.yaml: OK (small)\n", "")


def test_validate_names_every_mistake_one_a_line(config, sp_ray):
    config.write_text(
        config.read_text()
        .replace("epochs: 2", "epohcs: 2")
        .replace("split: {kind: time", "split: {kind: tme")
    )
    ran = sp_ray("validate", config, "--set", "seed=-1")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        "error: small.yaml has 3 mistakes",
        "  seed: must be greater than or equal to 0, got -1 (from --set seed)",
        "  small.yaml:7: split.kind: unknown kind 'tme'; did you mean time? (known: time, per_user, last_n, random, table; or "
        "'package.module:Name')",
        "  small.yaml:8: train.epohcs: unknown; did you mean epochs?",
    ]


def test_validate_tells_warehouses_of_no_known_kind_and_unknown_options_of_their_urls(config, sp_ray):
    ran = sp_ray("validate", config, "--set", "warehouse=bigquey://p/d")
    assert ran.code == 2
    assert (
        "warehouse: unknown kind of warehouse 'bigquey'; did you mean bigquery? Known: bigquery://, "
        in ran.err
    )
    ran = sp_ray("validate", config, "--set", "predict.output.warehouse=bigquery://p/d?stagin=gs://b")
    assert ran.code == 2
    assert "predict.output.warehouse: unknown option 'stagin'; did you mean staging? " in ran.err


def test_validate_imports_nothing_heavy_and_no_code_of_the_users(config):
    Path("mine.py").write_text("from pathlib import Path\nPath('imported').touch()\nclass Model: ...\n")
    config.write_text(config.read_text().replace("kind: lightgcn, dim: 8", "kind: 'mine:Model'"))
    heavy = "ray torch pandas pyarrow mlflow numpy scipy duckdb numba matplotlib rich.progress mine"
    code = (
        "import sys\nfrom sp_ray_ml.cli.__main__ import main\n"
        f"assert main(['validate', 'small.yaml']) == 0\nprint(sorted(set({heavy.split()}) & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["small.yaml: OK (small)", "[]"]
    assert not Path("imported").exists()


def test_schema_is_json_that_takes_the_config(config, sp_ray):
    ran = sp_ray("schema")
    assert (ran.code, ran.err) == (0, "")
    schema = json.loads(ran.out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(yaml.safe_load(config.read_text()))
    assert not validator.is_valid({"name": "x"})
    assert "yaml-language-server: $schema=" in sp_ray("schema", "--help").out


def test_init_writes_a_config_that_is_valid_and_never_overwrites(warehouse, sp_ray):
    ran = sp_ray("init", warehouse, "-o", "mine.yaml")
    assert (ran.code, ran.out) == (0, "mine.yaml\n")
    assert "sp-ray run mine.yaml" in ran.err
    assert sp_ray("validate", "mine.yaml").code == 0
    assert sp_ray("run", "mine.yaml", "--dry-run").code == 0
    Path("mine.yaml").write_text("mine")
    ran = sp_ray("init", warehouse, "-o", "mine.yaml")
    assert (ran.code, ran.out, Path("mine.yaml").read_text()) == (2, "", "mine")
    assert ran.err.startswith("error: mine.yaml: is there already and stays as it is\n")


def test_init_of_what_is_not_there_is_one_error(sp_ray):
    ran = sp_ray("init", "nowhere")
    assert ran.code in {1, 2}
    assert ran.err.startswith("error: nowhere: no such folder")
    assert not Path("nowhere.yaml").exists()


def test_demo_writes_tables_and_names_the_next_command(sp_ray):
    ran = sp_ray("demo", "d", "--events", 500, "--users", 30, "--shows", 25, "--days", 12, "--seed", 3)
    assert (ran.code, ran.out) == (0, "d: 25 shows, 30 users, 500 events\n")
    assert ran.err.splitlines()[-1] == "Next: sp-ray init d"
    assert sp_ray("init", "d").code == 0


def test_demo_with_a_wrong_number_is_the_users_mistake(sp_ray):
    ran = sp_ray("demo", "d", "--shows", 3)
    assert (ran.code, ran.err) == (2, "error: demo: shows is 3, at least 20 are needed\n")
