"""Seeds made of numbers: what is drawn at random depends on the run's seed and on where in training it is drawn."""

from __future__ import annotations

__all__ = ["hash_seed"]


def hash_seed(*parts: int) -> int:
    """One seed, below 2^63, out of several numbers; near ones give seeds that have nothing in common."""
    import numpy as np

    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
