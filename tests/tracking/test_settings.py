import subprocess
import sys

import pytest

from sp_ray_ml.errors import ConfigError, TrackingError
from sp_ray_ml.tracking import Tracking, environment_tags, tracking_uri, ui_command, ui_environment
from sp_ray_ml.tracking._store import redact_uri, secrets_of


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000",
        "https://u:p@host/x",
        "sqlite:///a.db",
        "postgresql+psycopg2://h/d",
        "databricks",
    ],
)
def test_mlflow_addresses_are_taken(uri):
    assert Tracking(uri=uri).uri == uri


def test_unknown_scheme_is_refused_with_a_near_match():
    with pytest.raises(ConfigError, match="did you mean http"):
        Tracking(uri="htp://127.0.0.1:5000")
    with pytest.raises(ConfigError, match="empty"):
        Tracking(uri=" ")


def test_default_store_lies_beside_the_runs(tmp_path):
    assert tracking_uri(Tracking(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_environment_names_the_store_where_the_settings_do_not(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri(Tracking(), tmp_path) == "http://127.0.0.1:1"
    assert tracking_uri(Tracking(uri="databricks"), tmp_path) == "databricks"


def test_relative_stores_are_those_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(Tracking(uri="sqlite:///x.db"), "runs") == f"sqlite:///{tmp_path}/x.db"
    assert tracking_uri(Tracking(uri="mlruns"), "runs") == (tmp_path / "mlruns").as_uri()


@pytest.mark.parametrize(
    ("uri", "shown", "secret"),
    [
        ("http://me:hunter2@host:1/x", "http://me:***@host:1/x", "hunter2"),
        ("http://sometoken@host", "http://***@host", "sometoken"),
        ("postgresql://me:p%40ss@host/db", "postgresql://me:***@host/db", "p@ss"),
        ("postgresql://me:p@ss@host/db", "postgresql://me:***@host/db", "p@ss"),
        ("mysql://h/db?user=me&password=hunter2", "mysql://h/db?user=me&password=***", "hunter2"),
    ],
)
def test_passwords_are_struck_out(uri, shown, secret):
    assert redact_uri(uri) == shown
    assert secret in secrets_of(uri)


def test_addresses_without_secrets_stay():
    for uri in ("sqlite:////tmp/a@b.db", "http://host:1", "postgresql://me@host/db", "databricks"):
        assert redact_uri(uri) == uri
        assert secrets_of(uri) == []


def test_ui_shows_the_store_on_loopback_without_its_address_in_the_arguments(tmp_path):
    settings = Tracking(uri="postgresql://me:hunter2@host/db")
    command = ui_command(settings, tmp_path, port=5001)
    assert command[1:6] == ["-m", "mlflow", "ui", "--host", "127.0.0.1"]
    assert command[command.index("--port") + 1] == "5001"
    assert "hunter2" not in " ".join(command)
    assert ui_environment(settings, tmp_path)["MLFLOW_BACKEND_STORE_URI"] == settings.uri
    assert ui_environment(Tracking(), tmp_path)["MLFLOW_DEFAULT_ARTIFACT_ROOT"].endswith("/mlartifacts")


def test_ui_of_a_server_is_its_own_page(tmp_path):
    with pytest.raises(TrackingError, match=r"Open https://me:\*\*\*@host in a browser"):
        ui_command(Tracking(uri="https://me:hunter2@host"), tmp_path)


def test_environment_tags_have_the_commit_only_inside_a_repository(tmp_path):
    tags = environment_tags(tmp_path)
    assert tags["python"].count(".") == 2
    assert tags["version.mlflow"]
    assert "mlflow.source.git.commit" not in tags
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    tags = environment_tags(tmp_path)
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["git.dirty"] == "false"


def test_settings_and_run_import_no_heavy_library():
    code = (
        "import sys, sp_ray_ml.tracking.settings, sp_ray_ml.tracking.run, sp_ray_ml.tracking.plots\n"
        "heavy = {'mlflow', 'matplotlib', 'numpy', 'pandas', 'ray', 'torch', 'pyarrow', 'sqlalchemy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_package_gives_every_public_name():
    import sp_ray_ml.tracking as tracking

    assert all(getattr(tracking, name) for name in tracking.__all__)
    with pytest.raises(AttributeError):
        tracking.nothing  # noqa: B018
