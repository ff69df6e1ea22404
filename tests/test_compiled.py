"""Kernels are compiled when they are needed, once a machine, and take the arrays that they say they take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import float64, int32, int64, types
from numba.core import caching

from sp_ray_ml._compiled import compiled


def _sums() -> Callable[..., Any]:
    """The sum of an array that is only read, times a number, into another one."""

    @compiled(
        *(
            types.void(types.Array(kind, 1, "C", readonly=True), int64, float64[::1])
            for kind in (int32, int64)
        )
    )
    def sums(numbers: Any, factor: Any, out: Any) -> None:
        out[0] = 0
        for number in numbers:
            out[0] += number * factor

    return sums


def _sum(kernel: Callable[..., Any], numbers: Any, factor: Any = 2) -> float:
    out = np.full(1, np.nan)
    kernel(numbers, factor, out)
    return float(out[0])


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the test of a machine where no folder for compiled code can be written."""
    monkeypatch.setattr(caching.FunctionCache._impl_class, "_locator_classes", [])


def test_a_signature_is_compiled_when_it_is_called_for() -> None:
    kernel: Any = _sums()
    assert kernel._call is None
    assert _sum(kernel, np.arange(4, dtype=np.int32)) == 12
    assert len(kernel._call.signatures) == 1
    fixed = np.arange(5)
    fixed.flags.writeable = False
    assert _sum(kernel, fixed, np.int32(3)) == 30
    assert _sum(kernel, np.arange(5)) == 20, "one that may be written, as one that is only read"
    assert len(kernel._call.signatures) == 2


def test_arrays_that_no_signature_has_are_refused_and_nothing_is_written() -> None:
    kernel = _sums()
    out = np.full(1, 7.0)
    for wrong in (np.arange(4.0), np.arange(8)[::2], np.arange(4).reshape(2, 2)):
        with pytest.raises(TypeError, match="sums takes no array"):
            kernel(wrong, 2, out)
        assert _sum(kernel, np.arange(4)) == 12
    fixed = np.zeros(1)
    fixed.flags.writeable = False
    with pytest.raises(TypeError, match="sums takes no"):
        kernel(np.arange(4), 2, fixed)
    assert out[0] == 7


def test_threads_that_call_for_different_signatures_at_once_all_get_theirs() -> None:
    kernel = _sums()
    kinds = [np.int32, np.int64] * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda kind: _sum(kernel, np.arange(4, dtype=kind)), kinds))
    assert found == [12.0] * len(kinds)


@pytest.mark.slow
def test_a_second_process_does_not_compile(tmp_path: Path) -> None:
    code = (
        "import numpy as np; from sp_ray_ml.metrics._topk_kernel import best_of_rows as f; from sp_ray_ml.metrics import top_k; "
        "top_k(np.ones((2, 3), np.float32), 1); print(sum(f._call.stats.cache_hits.values()))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    hits = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
        )
        for _ in range(2)
    ]
    assert [run.stdout.strip() for run in hits] == ["0", "1"]
