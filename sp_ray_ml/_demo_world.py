"""The demo's world of podcast listening: who and what there is, and what is listened to on a day.

Users choose by topic (tastes drift over the days), by the publishers they follow, or by what is popular in their
language. A show's popularity has a long tail, drifts, and flares up when it is new.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml._demo_words import TOPICS

__all__ = ["AGE_EDGES", "COUNTRIES", "LANGUAGES", "START", "Day", "World"]

START = np.datetime64("2025-01-01", "D")
LANGUAGES = ("en", "es", "de", "fr", "pt")
COUNTRIES = (
    ("US", "GB", "IN", "AU"),
    ("ES", "MX", "AR"),
    ("DE", "AT", "CH"),
    ("FR", "BE", "CA"),
    ("BR", "PT"),
)
AGE_EDGES = (16, 25, 35, 45, 60, 80)
_LANGUAGE_SHARE = (0.52, 0.17, 0.13, 0.10, 0.08)
_CHUNK = 262_144
_NEW_SHARE, _RECENT_SHARE = 0.12, 0.08
_POPULAR, _FOLLOWED = (
    0.12,
    0.40,
)  # shares of listening that come from the charts, and from followed publishers
_SHOWS, _USERS, _DAYS, _TITLES = 1, 2, 3, 4  # streams of random numbers


@dataclass(frozen=True)
class World:
    """Everything that stays the same over the days. The same arguments make the same world, to the bit.

    Attributes:
        users: How many users.
        shows: How many shows.
        days: How many days.
        seed: Of everything that is drawn.
    """

    users: int
    shows: int
    days: int
    seed: int

    def random(self, *stream: int) -> np.random.Generator:
        """Random numbers of one purpose (and chunk or day), independent of all others."""
        return np.random.default_rng([self.seed, *stream])

    # --- shows --------------------------------------------------------------------------------------------------

    @cached_property
    def show(self) -> dict[str, NDArray[Any]]:
        """Per show: `publisher`, `language`, `topics` [shows, 3] (-1 for none), `popularity` (log), `trend` (log, from
        the first to the last day), `released` (day, negative before the first), `length` (minutes), `episodes`."""
        random, n = self.random(_SHOWS), self.shows
        publishers = max(len(LANGUAGES), n // 10)
        language = random.choice(len(LANGUAGES), size=publishers, p=_LANGUAGE_SHARE)
        language[: len(LANGUAGES)] = np.arange(len(LANGUAGES))
        focus = random.random((publishers, len(TOPICS))).argsort(axis=1)[:, :2]
        size = 1 / np.arange(1, publishers + 1) ** 0.5
        publisher = random.choice(publishers, size=n, p=size / size.sum())
        publisher[: len(LANGUAGES)] = np.arange(len(LANGUAGES))

        topics = np.full((n, 3), -1, dtype=np.int8)
        own = focus[publisher, random.integers(0, 2, n)]
        anything = random.random((n, len(TOPICS))).argsort(axis=1)[:, :3]
        topics[:, 0] = np.where(random.random(n) < 0.85, own, anything[:, 0])
        for place, share in ((1, 0.6), (2, 0.3)):
            taken = (topics[:, :place] == anything[:, place : place + 1]).any(axis=1)
            more = (random.random(n) < share) & ~taken & (topics[:, place - 1] >= 0)
            topics[more, place] = anything[more, place]

        rank = random.permutation(n) + 1.0
        released = -random.exponential(700, n) - 20
        kind = random.random(n)
        new = np.zeros(n, dtype=bool)
        new[random.permutation(n)[: max(1, round(n * _NEW_SHARE))]] = True
        recent = ~new & (kind < _RECENT_SHARE)
        released[recent] = random.uniform(0, 0.75 * self.days, int(recent.sum()))
        # From the day after four fifths on: a split at that moment has no event of them to train on.
        released[new] = random.uniform(0.8 * self.days, 0.95 * self.days, int(new.sum()))
        released = np.ceil(released)
        rank[new] = random.integers(1, max(n // 4, 2), int(new.sum()))
        popularity = -0.9 * np.log(rank + 3) + random.normal(0, 0.4, n)
        return {
            "publisher": publisher,
            "language": language[publisher],
            "topics": topics,
            "popularity": popularity,
            "trend": random.normal(0, 1.2, n),
            "released": released,
            "length": random.lognormal(3.5, 0.4, n),
            "episodes": 5 + random.geometric(1 / 60, n),
        }

    # --- groups of shows that are drawn from --------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Shows by language, by topic and language, and by publisher, group after group: where each group begins,
        the shows, and how much each counts in its group."""
        show, n = self.show, np.arange(self.shows)
        languages, language = len(LANGUAGES), show["language"]
        group, member, share = [language], [n], [np.ones(self.shows)]
        for place, counts in ((0, 1.0), (1, 0.5), (2, 0.35)):
            has = show["topics"][:, place] >= 0
            group.append(languages + show["topics"][has, place].astype(np.int64) * languages + language[has])
            member.append(n[has])
            share.append(np.full(int(has.sum()), counts))
        group.append(self.by_publisher(show["publisher"]))
        member.append(n)
        share.append(np.ones(self.shows))
        groups, members = np.concatenate(group), np.concatenate(member)
        order = np.lexsort((members, groups))
        total = int(self.by_publisher(show["publisher"].max())) + 1
        start = np.searchsorted(groups[order], np.arange(total + 1))
        return start, members[order], np.concatenate(share)[order]

    @staticmethod
    def by_topic(topic: Any, language: Any) -> Any:
        """Number of a topic's group in a language."""
        return len(LANGUAGES) * (1 + topic) + language

    @staticmethod
    def by_publisher(publisher: Any) -> Any:
        """Number of a publisher's group."""
        return len(LANGUAGES) * (1 + len(TOPICS)) + publisher

    def draw(
        self, random: np.random.Generator, group: NDArray[Any], language: NDArray[Any], weight: NDArray[Any]
    ) -> NDArray[np.int64]:
        """A show from each group, in proportion to `weight` of the shows; from the language's charts if the group
        has none."""
        start, member, share = self.groups
        edge = np.concatenate([[0.0], np.cumsum(share * weight[member])])
        low, high = edge[start[:-1]], edge[start[1:]]
        group = np.where(high[group] - low[group] > 0, group, language)
        at = low[group] + random.random(len(group)) * (high - low)[group]
        # Rounding may put a draw onto its group's upper edge: it stays in the group.
        place = np.searchsorted(edge, at, side="right") - 1
        shows: NDArray[np.int64] = member[
            np.minimum(place, np.searchsorted(edge, high, side="left")[group] - 1)
        ]
        return shows

    # --- users --------------------------------------------------------------------------------------------------

    @cached_property
    def user(self) -> dict[str, NDArray[Any]]:
        """Per user: `language`, `second` (-1 for none), `country`, `age` (-1 if not told), `signed_up` (day, negative
        before the first), `activity`, `topics` [users, 4], `first` and `last` [users, 4] (cumulated shares of the
        topics on the first and the last day), `follows` [users, 3] (publishers)."""
        chunks = [self._users(chunk, at) for chunk, at in enumerate(range(0, self.users, _CHUNK))]
        return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}

    @cached_property
    def _tastes(self) -> NDArray[np.float64]:
        return self.random(_USERS).normal(0, 0.9, (len(AGE_EDGES) - 1, len(TOPICS)))

    def _users(self, chunk: int, at: int) -> dict[str, NDArray[Any]]:
        random, n = self.random(_USERS, chunk), min(_CHUNK, self.users - at)
        language = random.choice(len(LANGUAGES), size=n, p=_LANGUAGE_SHARE)
        second = np.where((language != 0) & (random.random(n) < 0.35), 0, -1)
        country = (random.random(n) ** 1.7 * np.array([len(c) for c in COUNTRIES])[language]).astype(np.int8)
        generation = random.choice(len(AGE_EDGES) - 1, size=n, p=(0.22, 0.30, 0.22, 0.18, 0.08))
        edges = np.array(AGE_EDGES)
        age = (edges[generation] + random.random(n) * np.diff(edges)[generation]).astype(np.int32)
        # The largest of score + Gumbel noise are draws without replacement in proportion to exp(score).
        topics = (self._tastes[generation] + random.gumbel(size=(n, len(TOPICS)))).argsort(axis=1)[:, :-5:-1]
        first = random.gamma(0.7, size=(n, 4)) + 1e-6
        first /= first.sum(axis=1, keepdims=True)
        later = random.gamma(0.7, size=(n, 4)) + 1e-6
        last = 0.45 * first + 0.55 * later / later.sum(axis=1, keepdims=True)
        group = self.by_topic(topics[:, [0, 1, 2]], language[:, None]).ravel()
        found = self.draw(random, group, np.repeat(language, 3), np.ones(self.shows))
        member = random.random(n) < 0.65
        signed_up = np.where(member, -random.exponential(400, n) - 1, random.uniform(0, 0.95 * self.days, n))
        return {
            "language": language.astype(np.int8),
            "second": second.astype(np.int8),
            "country": country,
            "age": np.where(random.random(n) < 0.04, -1, age),
            "signed_up": np.floor(signed_up).astype(np.int32),
            "activity": np.minimum(random.lognormal(0, 1.0, n), 25).astype(np.float32),
            "topics": topics.astype(np.int8),
            "first": np.cumsum(first, axis=1).astype(np.float32),
            "last": np.cumsum(last, axis=1).astype(np.float32),
            "follows": self.show["publisher"][found].reshape(n, 3).astype(np.int32),
        }


class Day:
    """One day's listening.

    Args:
        world: The world.
        day: From 0.
    """

    def __init__(self, world: World, day: int) -> None:
        self.world, self.day = world, day
        show, user = world.show, world.user
        age = day - show["released"]
        new = np.where(show["released"] >= 0, 1.3 * np.exp(-np.maximum(age, 0) / 21), 0)
        drift = show["trend"] * ((day + 0.5) / world.days - 0.5)
        self._weight = np.where(age >= 0, np.exp(show["popularity"] + drift + new), 0)
        self._active = np.cumsum(np.where(user["signed_up"] <= day, user["activity"], 0), dtype=np.float64)

    def events(self, part: int, parts: int, count: int) -> dict[str, NDArray[Any]]:
        """`count` events of one of the `parts` of the day (earlier parts are earlier): `user`, `show`, `time` (µs
        since 1970 UTC) and `minutes`, in order of time."""
        world, n = self.world, count
        random = world.random(_DAYS, self.day, part)
        user, show = world.user, world.show
        who = np.searchsorted(self._active, random.random(n) * self._active[-1], side="right")
        who = np.minimum(who, world.users - 1)
        language = user["language"][who].astype(np.int64)
        second = user["second"][who]
        language = np.where((second >= 0) & (random.random(n) < 0.3), second, language)
        way = random.random(n)
        drifted = (self.day + 0.5) / world.days
        reached = (1 - drifted) * user["first"][who] + drifted * user["last"][who]
        choice = (random.random(n)[:, None] > reached[:, :3]).sum(axis=1)
        topic = world.by_topic(user["topics"][who, choice].astype(np.int64), language)
        follows = world.by_publisher(user["follows"][who, random.integers(0, 3, n)])
        group = np.where(way < _POPULAR, language, np.where(way < _POPULAR + _FOLLOWED, follows, topic))
        what = world.draw(random, group, language, self._weight)
        # Who follows or likes the topic listens to the end more often than who tries what is popular.
        keen = way >= _POPULAR
        heard = random.beta(np.where(keen, 4.0, 1.2), np.where(keen, 1.5, 2.5))
        minutes = np.maximum(np.round(show["length"][what] * heard, 1), 0.1).astype(np.float32)
        return {"user": who, "show": what, "time": self._times(random, part, parts, n), "minutes": minutes}

    def _times(self, random: np.random.Generator, part: int, parts: int, n: int) -> NDArray[np.int64]:
        hours = np.array(
            [2, 1, 1, 1, 1, 2, 5, 9, 9, 6, 4, 4, 5, 5, 4, 4, 6, 9, 9, 7, 6, 5, 4, 3], dtype=np.float64
        )
        share = np.concatenate([[0.0], np.cumsum(hours / hours.sum())])
        drawn = np.sort((part + random.random(n)) / parts)
        of_day = np.interp(drawn, share, np.arange(25) * 3_600e6).astype(np.int64)
        since = int(
            (START + np.timedelta64(self.day, "D") - np.datetime64("1970-01-01", "D")).astype(np.int64)
        )
        times: NDArray[np.int64] = since * 86_400_000_000 + np.minimum(of_day, 86_400_000_000 - 1)
        return times
