"""A question that takes time, answered in a thread, so that whoever asks goes on meanwhile."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from sp_ray_ml.errors import ClusterError

__all__ = ["Asked"]

T = TypeVar("T")


class Asked(Generic[T]):
    """One question at a time.

    Args:
        name: Name of the thread.
        question: What is asked.
        wake: Called when there is an answer, from the thread.

    Attributes:
        asked_at: When it was last asked (`time.monotonic`).
        answered_at: When the last answer was taken.
    """

    def __init__(self, name: str, question: Callable[[], T], wake: Callable[[], None]) -> None:
        self._name, self._question, self._wake = name, question, wake
        self._thread: threading.Thread | None = None
        self._answers: list[T | Exception] = []
        self.asked_at = self.answered_at = -math.inf

    @property
    def busy(self) -> bool:
        """Whether an answer is still to be taken."""
        return self._thread is not None

    @property
    def took_s(self) -> float:
        """How long the last answer took; 0 before the first."""
        return self.answered_at - self.asked_at if self.answered_at > self.asked_at else 0.0

    def ask(self) -> None:
        """Ask, unless an answer is still to be taken."""
        if self._thread is None:
            self.asked_at = time.monotonic()
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def take(self) -> tuple[bool, T | ClusterError | None]:
        """Whether there is an answer; then the answer, or why there is none.

        Raises:
            Exception: What the question raised, unless it is a `ClusterError`.
        """
        if not self._answers:
            return False, None
        answer = self._answers.pop()
        self._thread, self.answered_at = None, time.monotonic()
        if isinstance(answer, Exception) and not isinstance(answer, ClusterError):
            raise answer
        return True, answer

    def _run(self) -> None:
        try:
            self._answers.append(self._question())
        except Exception as error:  # noqa: BLE001 - raised again where the answer is taken
            self._answers.append(error)
        self._wake()
