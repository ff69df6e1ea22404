"""A world where taste is known: users and items are of four groups, a group the sum of two features modulo 4.

Neither feature says anything alone, and no sum of what each says by itself does: a projection of features learns nothing
of a user or an item that it has no events of, a network with a hidden layer can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sp_ray_ml.data import Categorical

GROUPS, EACH = 4, 12
USER_FEATURES = [Categorical(columns=["country", "age_group"])]
ITEM_FEATURES = [Categorical(columns=["genre", "era"])]
COLUMNS = {"user": "who", "item": "what", "time": "when"}


@dataclass(frozen=True)
class TowerWorld:
    """Tables; the last users and items of theirs are named by no event.

    Attributes:
        train: Events.
        validation: Later ones of the same users.
        users: Ids and features of all users.
        items: Of all items.
        user_group: The group of each row of `users`.
        item_group: Of each row of `items`.
        cold_users: How many of the last users have no events.
        cold_items: Likewise.
    """

    train: pa.Table
    validation: pa.Table
    users: pa.Table
    items: pa.Table
    user_group: np.ndarray
    item_group: np.ndarray
    cold_users: int
    cold_items: int

    @property
    def options(self) -> dict[str, Any]:
        """What `fit` takes besides the events."""
        return {
            **COLUMNS,
            "users": self.users,
            "items": self.items,
            "user_features": USER_FEATURES,
            "item_features": ITEM_FEATURES,
        }

    def hits(self, recommended: pa.Table, only: pa.Array | None = None) -> float:
        """Of what is recommended (of `only`, where given), the share that is of the user's group."""
        if only is not None:
            recommended = recommended.filter(pa.compute.is_in(recommended["what"], only))
        user = pa.compute.index_in(recommended["who"], self.users["who"].combine_chunks())
        item = pa.compute.index_in(recommended["what"], self.items["what"].combine_chunks())
        return float((self.user_group[user.to_numpy()] == self.item_group[item.to_numpy()]).mean())

    @property
    def new_users(self) -> pa.Table:
        """Rows of the users without events."""
        return self.users.slice(len(self.users) - self.cold_users)

    @property
    def new_items(self) -> pa.Table:
        """Rows of the items without events."""
        return self.items.slice(len(self.items) - self.cold_items)


def make_tower_world(
    users: int = 200, items: int = 80, cold_users: int = 40, cold_items: int = 16
) -> TowerWorld:
    """Nine of ten events are of the user's group; some items of each are more popular than others."""
    random = np.random.default_rng(3)

    def features(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        one, other = random.integers(0, GROUPS, count), random.integers(0, GROUPS, count)
        return one, other, (one + other) % GROUPS

    country, age, user_group = features(users)
    genre, era, item_group = features(items)
    warm = items - cold_items
    popularity = random.permutation(np.linspace(0.3, 2, warm))
    rows = []
    for user in range(users - cold_users):
        chance = popularity * np.where(item_group[:warm] == user_group[user], 0.9, 0.1 / (GROUPS - 1))
        chosen = random.choice(warm, EACH, replace=False, p=chance / chance.sum())
        rows += [(f"u{user:04d}", f"i{item:04d}", 3600 * hour) for hour, item in enumerate(chosen)]
    who, what, when = zip(*rows, strict=True)
    events = pa.table({"who": who, "what": what, "when": pa.array(when, pa.timestamp("s"))})
    last = pa.array(np.arange(len(events)) % EACH == EACH - 1)
    return TowerWorld(
        events.filter(pa.compute.invert(last)),
        events.filter(last),
        pa.table(
            {
                "who": [f"u{user:04d}" for user in range(users)],
                "country": [f"c{value}" for value in country],
                "age_group": [f"a{value}" for value in age],
            }
        ),
        pa.table(
            {
                "what": [f"i{item:04d}" for item in range(items)],
                "genre": [f"g{value}" for value in genre],
                "era": [f"e{value}" for value in era],
            }
        ),
        user_group,
        item_group,
        cold_users,
        cold_items,
    )
