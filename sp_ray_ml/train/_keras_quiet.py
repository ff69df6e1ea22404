"""Imports of TensorFlow without its chatter on the terminal. Imports no heavy library itself.

Set TF_CPP_MIN_LOG_LEVEL=0 to see all that TensorFlow says.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from sp_ray_ml.logger import LOGGER

__all__ = ["quiet"]

_LEVEL, _QUIET = "TF_CPP_MIN_LOG_LEVEL", "3"
# What C++ code logs: I0000 00:00:1795561660.588402 6634 port.cc:153] …
_CHATTER = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d|WARNING: All log messages before absl|To enable the following instructions"
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
)


@contextmanager
def quiet() -> Iterator[None]:
    """What C++ code writes to the error stream before its logging is set up heeds no setting: it is taken out here."""
    if "tensorflow" in sys.modules or os.environ.get(_LEVEL, _QUIET) != _QUIET:
        yield
        return
    os.environ[_LEVEL] = _QUIET
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
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
