"""The machine code that counts how often items are shown in each replicate of the bootstrap."""

from __future__ import annotations

from typing import Any

from numba import int16, int32, int64, uint8, uint32, void

from sp_ray_ml._compiled import compiled

__all__ = ["count_shown"]


@compiled(void(int32[:, ::1], int16[:, ::1], uint8[:, ::1], int64[::1], int64, uint32[:, :, :, ::1]))
def count_shown(lists: Any, groups: Any, weights: Any, ks: Any, first: int, shown: Any) -> None:
    """Add users, as often as they are drawn.

    Args:
        lists: [users, depth], -1 where a list ends.
        groups: [memberships, users]: the groups that a user is in; -1 for none.
        weights: [users, replicates]: how often each is drawn.
        ks: Lengths, ascending.
        first: The group that is counted first.
        shown: Added to, [groups, k, items, replicates]: draws that have an item between one length and the next.
    """
    for user in range(lists.shape[0]):
        for membership in range(groups.shape[0]):
            group = groups[membership, user] - first
            if groups[membership, user] < 0 or group < 0 or group >= shown.shape[0]:
                continue
            at_k = 0
            for i in range(ks[-1]):
                item = lists[user, i]
                if item < 0:
                    break
                while i >= ks[at_k]:
                    at_k += 1
                row = shown[group, at_k, item]
                for replicate in range(weights.shape[1]):
                    row[replicate] += weights[user, replicate]
