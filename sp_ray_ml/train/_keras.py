"""TensorFlow and Keras, imported without their chatter on the terminal.

    from sp_ray_ml.train._keras import keras, tf

Set TF_CPP_MIN_LOG_LEVEL to see all that TensorFlow says.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sp_ray_ml.errors import ConfigError
from sp_ray_ml.logger import LOGGER

__all__ = ["keras", "tf"]

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# What C++ code logs: I0000 00:00:1795561660.588402 6634 port.cc:153] …
_CHATTER = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d|WARNING: All log messages before absl|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
)


@contextmanager
def _without_chatter() -> Iterator[None]:
    """What C++ code writes to the error stream before its logging is set up heeds no setting: it is taken out here."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with tempfile.TemporaryFile() as taken:
            os.dup2(taken.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(terminal, 2)
                taken.seek(0)
                for line in taken:
                    if _CHATTER.match(line):
                        LOGGER.debug("%s", line.decode(errors="replace").rstrip())
                    else:
                        os.write(2, line)
    finally:
        os.close(terminal)


def _import() -> tuple[Any, Any]:
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    if "tensorflow" in sys.modules or _LEVEL in os.environ:
        import keras
        import tensorflow as tf
    else:
        os.environ[_LEVEL] = "3"
        with _without_chatter():
            import keras
            import tensorflow as tf
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"Keras was imported with the backend {keras.backend.backend()!r}",
            where="train.kind",
            hint="Set KERAS_BACKEND=tensorflow before keras is imported",
        )
    return tf, keras


tf, keras = _import()
