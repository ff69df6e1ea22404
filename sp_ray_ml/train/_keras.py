"""TensorFlow and Keras, imported without their chatter: `from sp_ray_ml.train._keras import keras, tf`."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from sp_ray_ml.errors import ConfigError
from sp_ray_ml.train._keras_quiet import quiet

__all__ = ["keras", "tf"]


def _import() -> tuple[Any, Any]:
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    # PyTorch's compiler brings an LLVM of its own. Loaded after TensorFlow's it ends the process; before, all is well.
    if "tensorflow" not in sys.modules:
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401
    with quiet():
        import keras
        import tensorflow as tf
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"Keras was imported with the backend {keras.backend.backend()!r}",
            where="train.kind",
            hint="Set KERAS_BACKEND=tensorflow before keras is imported",
        )
    return tf, keras


tf, keras = _import()
