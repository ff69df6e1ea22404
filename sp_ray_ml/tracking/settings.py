"""Settings of tracking: where runs are recorded and what of them."""

from __future__ import annotations

import re
import warnings

import pydantic

from sp_ray_ml.config import Settings, near_match

__all__ = ["Tracking"]

_SCHEMES = (
    "sqlite",
    "http",
    "https",
    "file",
    "postgresql",
    "mysql",
    "mssql",
    "databricks",
    "databricks-uc",
    "uc",
)


with warnings.catch_warnings():
    # Every class has ABCMeta's method `register`, which none of the settings uses: the name may mean a setting.
    warnings.filterwarnings("ignore", "Field name .register. in", UserWarning)

    class Tracking(Settings):
        """Where a run is recorded: in MLflow, by default in an SQLite file beside the runs."""

        enabled: bool = True
        """Whether the run is sent to MLflow. Without, the run's folder still has the journal."""
        uri: str | None = None
        """MLflow tracking URI: `http(s)://`, `sqlite:///`, `postgresql://`, `file:`, `databricks`. Without one, that of
        the environment variable `MLFLOW_TRACKING_URI`, and without that `mlflow.db` in the folder of the runs; of runs at
        a URL only the journal is kept then, which `sp-ray sync` sends."""
        experiment: str | None = pydantic.Field(default=None, min_length=1, max_length=500)
        """MLflow experiment; without one, the run's name."""
        model: bool = True
        """Whether the trained model is recorded, too."""
        register: str | None = pydantic.Field(default=None, min_length=1, max_length=250)
        """Name under which MLflow registers the trained model, as a new version: then `models:/NAME/1` opens it."""

        @pydantic.field_validator("uri")
        @classmethod
        def _known_scheme(cls, value: str | None) -> str | None:
            match = re.match(r"([A-Za-z][\w+.-]*):", value or "")
            scheme = match.group(1).partition("+")[0].lower() if match else None
            if scheme and scheme not in _SCHEMES:
                raise ValueError(
                    f"MLflow knows no scheme {scheme!r}{near_match(scheme, _SCHEMES)} (known: {', '.join(_SCHEMES)})"
                )
            if value is not None and not value.strip():
                raise ValueError("is empty; leave it out for the default store")
            return value

        @pydantic.field_validator("register")
        @classmethod
        def _can_be_registered(cls, value: str | None, info: pydantic.ValidationInfo) -> str | None:
            if value is not None and re.search(r"[/:%\x00-\x1f]", value):
                raise ValueError(f"MLflow takes no '/', ':' or '%' in a model's name, got {value!r}")
            if value is not None and not (info.data.get("enabled", True) and info.data.get("model", True)):
                raise ValueError("needs `enabled: true` and `model: true`")
            return value
