"""The installed command, as users start it.

`python -m sp_ray_ml.cli` is nearly the same: but where Ctrl-C comes while a dataclass is made, CPython 3.11 ends a
module that was started by `-m` as killed by SIGINT, whatever exit code it asked for.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

__all__ = ["SP_RAY"]

SP_RAY = str(Path(sysconfig.get_path("scripts")) / "sp-ray")
