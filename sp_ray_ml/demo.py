"""The demo warehouse: a made-up world of podcast listening, at any scale, the same to the bit for the same seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from sp_ray_ml._demo_world import World

__all__ = ["write_demo"]

_ROWS = 500_000


def write_demo(
    url_or_folder: str | os.PathLike[str],
    *,
    users: int = 2_000,
    shows: int = 600,
    events: int = 60_000,
    days: int = 120,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write the tables `events`, `users` and `shows` into a warehouse.

    People listen to shows of their topics, languages and publishers; popularity has a long tail; tastes and
    popularity drift; and in the last fifth of the days new shows come out, which nothing but their features can
    rank under a split by time. Events are made a part of a day at a time: memory does not grow with their number.

    Args:
        url_or_folder: What `open_warehouse` takes.
        users: How many users.
        shows: How many shows, at least 20.
        events: How many events.
        days: Over how many days, at least 10.
        seed: Of everything that is drawn.
        progress: Called with the events made so far and all there will be.

    Returns:
        Rows of each table.

    Raises:
        ConfigError: A number is too small.
        StorageError: The warehouse cannot be written; each table is whole or as it was.
    """
    from sp_ray_ml._demo_world import World
    from sp_ray_ml.data.warehouse import open_warehouse

    for name, value, least in (
        ("users", users, 1),
        ("shows", shows, 20),
        ("events", events, 1),
        ("days", days, 10),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}, at least {least} are needed", where="demo")
    if seed < 0:
        raise ConfigError(f"seed is {seed}, it is 0 or more", where="demo")
    warehouse = open_warehouse(url_or_folder)
    world = World(users, shows, days, seed)
    return {
        "shows": warehouse.write("shows", _shows(world)),
        "users": warehouse.write("users", _users(world)),
        "events": warehouse.write("events", _events(world, events, progress)),
    }


def _ids(prefix: str, count: int, digits: int) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = pc.cast(pa.array(range(count)), pa.string())
    padded = pc.utf8_lpad(numbers, max(digits, len(str(count - 1))), "0")
    return pc.binary_join_element_wise(prefix, padded, "")


def _dates(days: NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    from sp_ray_ml._demo_world import START

    return pa.array((START + days.astype("timedelta64[D]")).astype("datetime64[D]"))


def _shows(world: World) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    from sp_ray_ml._demo_words import TOPICS
    from sp_ray_ml._demo_world import LANGUAGES

    show = world.show
    return pa.table(
        {
            "show_id": _ids("s", world.shows, 5),
            "title": _titles(world),
            "language": pa.array(np.array(LANGUAGES)[show["language"]]),
            "topics": [" ".join(TOPICS[t] for t in row if t >= 0) for row in show["topics"]],
            "publisher": pa.array(np.array(_publishers(int(show["publisher"].max()) + 1))[show["publisher"]]),
            "episodes": pa.array(show["episodes"].astype(np.int32)),
            "release_date": _dates(show["released"]),
        }
    )


def _titles(world: World) -> list[str]:
    from sp_ray_ml._demo_words import ADJECTIVES, FIRST_NAMES, LAST_NAMES, NOUNS, TEMPLATES, TOPICS

    numbers = world.random(4).integers(0, 2**31, (world.shows, 4, 6)).tolist()
    titles: dict[str, None] = {}
    for topics, tries in zip(world.show["topics"].tolist(), numbers, strict=True):
        nouns = NOUNS[TOPICS[topics[0]]]
        others = NOUNS[TOPICS[topics[1]]] if topics[1] >= 0 else nouns
        title = ""
        for a, b, c, d, e, f in tries:
            noun, other = nouns[b % len(nouns)], others[d % len(others)]
            if other == noun:
                other = others[(d + 1) % len(others)]
            title = TEMPLATES[a % len(TEMPLATES)].format(
                noun=noun, other=other, adjective=ADJECTIVES[c % len(ADJECTIVES)]
            )
            if title not in titles:
                break
            title += f" with {FIRST_NAMES[e % len(FIRST_NAMES)]} {LAST_NAMES[f % len(LAST_NAMES)]}"
            if title not in titles:
                break
        number = 2
        unique = title
        while unique in titles:
            unique, number = f"{title}, Part {number}", number + 1
        titles[unique] = None
    return list(titles)


def _publishers(count: int) -> list[str]:
    from sp_ray_ml._demo_words import PUBLISHERS

    first, second = PUBLISHERS
    names = []
    for i in range(count):
        # Steps through both lists at once: neighbours in number share no word.
        turn, place = divmod(i, len(first) * len(second))
        name = f"{first[place % len(first)]} {second[(place + place // len(first)) % len(second)]}"
        names.append(name if turn == 0 else f"{name} {turn + 1}")
    return names


def _users(world: World) -> Any:
    import numpy as np
    import pyarrow as pa

    from sp_ray_ml._demo_world import COUNTRIES, LANGUAGES
    from sp_ray_ml.data.source import Source

    user = world.user
    ids = _ids("u", world.users, 6)
    countries = np.array([code for group in COUNTRIES for code in group])
    first = np.cumsum([0, *(len(group) for group in COUNTRIES)])[:-1]

    def batches() -> Iterator[pa.RecordBatch]:
        for at in range(0, world.users, _ROWS):
            rows = slice(at, min(at + _ROWS, world.users))
            language, age = user["language"][rows], user["age"][rows].astype(np.int32)
            yield pa.record_batch(
                {
                    "user_id": ids[rows],
                    "age": pa.array(age, mask=age < 0),
                    "country": pa.array(countries[first[language] + user["country"][rows]]),
                    "language": pa.array(np.array(LANGUAGES)[language]),
                    "signed_up": _dates(user["signed_up"][rows]),
                }
            )

    schema = pa.schema(
        {"user_id": pa.string(), "age": pa.int32(), "country": pa.string(), "language": pa.string(), "signed_up": pa.date32()}
    )  # fmt: skip
    return Source("users", schema, batches, num_rows=world.users)


def _events(world: World, events: int, progress: Callable[[int, int], None] | None) -> Any:
    import numpy as np
    import pyarrow as pa

    from sp_ray_ml._demo_world import Day
    from sp_ray_ml.data.source import Source

    user_ids, show_ids = _ids("u", world.users, 6), _ids("s", world.shows, 5)

    def batches() -> Iterator[pa.RecordBatch]:
        made = 0
        for day, count in enumerate(_per_day(events, world.days)):
            if count == 0:
                continue
            today = Day(world, day)
            parts = -(-count // _ROWS)
            for part in range(parts):
                size = count * (part + 1) // parts - count * part // parts
                found = today.events(part, parts, size)
                yield pa.record_batch(
                    {
                        "user_id": user_ids.take(pa.array(found["user"])),
                        "show_id": show_ids.take(pa.array(found["show"])),
                        "timestamp": pa.array(found["time"]).cast(pa.timestamp("us", "UTC")),
                        "minutes": pa.array(found["minutes"]),
                    }
                )
                made += size
                if progress is not None:
                    progress(made, events)

    def _per_day(total: int, days: int) -> list[int]:
        day = np.arange(days)
        share = (1 + 0.3 * day / days) * np.where(day % 7 >= 5, 0.75, 1.0)
        edges = np.floor(np.cumsum(share) / share.sum() * total + 0.5).astype(np.int64)
        edges[-1] = total
        return np.diff(edges, prepend=0).tolist()  # type: ignore[no-any-return]

    schema = pa.schema(
        {
            "user_id": pa.string(),
            "show_id": pa.string(),
            "timestamp": pa.timestamp("us", "UTC"),
            "minutes": pa.float32(),
        }
    )
    return Source("events", schema, batches, num_rows=events)
