"""How the values of the next trial are found. Nothing here knows of Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml.optional import require
from sp_ray_ml.train._seeds import hash_seed

if TYPE_CHECKING:
    from sp_ray_ml.train.tuning import Domain, Trial, Tune

__all__ = ["Search", "search_of"]


class Search(ABC):
    """Gives the values of trial after trial, and hears how they went."""

    @abstractmethod
    def propose(self, number: int) -> dict[str, Any]:
        """The values of this trial, by dotted name; numbers are from 1."""

    def tell(self, trial: Trial, score: float | None) -> None:  # noqa: B027
        """A trial is over; `score` is larger for a better one, None for one that gave nothing."""


def search_of(tune: Tune, seed: int) -> Search:
    """What `tune.search` names.

    Raises:
        MissingDependencyError: Optuna is asked for and not installed.
    """
    if tune.search == "grid":
        return _Grid(tune)
    return _Optuna(tune, seed) if tune.search == "optuna" else _Random(tune, seed)


class _Random(Search):
    def __init__(self, tune: Tune, seed: int) -> None:
        self._space, self._seed = tune.space, seed

    def propose(self, number: int) -> dict[str, Any]:
        import numpy as np

        # By the trial's number, so that it is the same whatever was tried before, or in an earlier process.
        shares = np.random.default_rng(hash_seed(self._seed, number)).random(len(self._space))
        return {
            name: domain.at(float(share))
            for (name, domain), share in zip(self._space.items(), shares, strict=True)
        }


class _Grid(Search):
    def __init__(self, tune: Tune) -> None:
        self._all = tune.grid()

    def propose(self, number: int) -> dict[str, Any]:
        return dict(self._all[number - 1])


class _Optuna(Search):
    """Optuna's tree-structured Parzen estimator."""

    def __init__(self, tune: Tune, seed: int) -> None:
        self._space = tune.space
        self._optuna: Any = require("optuna", "search: optuna")
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        self._distributions = {name: self._distribution(domain) for name, domain in tune.space.items()}
        self._seed = seed
        self._study: Any = None
        self._told: list[Any] = []
        self._asked: dict[int, Any] = {}

    def _distribution(self, domain: Domain) -> Any:
        of = self._optuna.distributions
        if domain.choice is not None:
            # By place: Optuna takes plain values only.
            return of.CategoricalDistribution(list(range(len(domain.choice))))
        if domain.randint is not None:
            return of.IntDistribution(domain.randint[0], domain.randint[1] - 1)
        low, high = domain.extremes
        return of.FloatDistribution(low, high, log=domain.loguniform is not None)

    def propose(self, number: int) -> dict[str, Any]:
        asked = self._started().ask(self._distributions)
        self._asked[number] = asked
        return {
            name: domain.choice[asked.params[name]] if domain.choice is not None else asked.params[name]
            for name, domain in self._space.items()
        }

    def _started(self) -> Any:
        if self._study is None:
            # Another process draws on from what is known, and not the same numbers again.
            sampler = self._optuna.samplers.TPESampler(seed=hash_seed(self._seed, len(self._told)) % 2**32)
            self._study = self._optuna.create_study(direction="maximize", sampler=sampler)
            for trial in self._told:
                self._study.add_trial(trial)
        return self._study

    def tell(self, trial: Trial, score: float | None) -> None:
        states = self._optuna.trial.TrialState
        # What was ended early says how it stood: as good a guide as there is.
        state = states.FAIL if score is None else states.COMPLETE
        asked = self._asked.pop(trial.number, None)
        if asked is not None:
            self._started().tell(asked, score, state=state)
            return
        known = self._optuna.trial.create_trial(
            state=state, value=score, params=self._places(trial.params), distributions=self._distributions
        )
        if self._study is None:
            self._told.append(known)
        else:
            self._study.add_trial(known)

    def _places(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: domain.choice.index(params[name]) if domain.choice is not None else params[name]
            for name, domain in self._space.items()
        }
