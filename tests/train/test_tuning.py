"""What a space may say, and how the values of a trial are found: nothing here starts Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml.errors import ConfigError, MissingDependencyError
from sp_ray_ml.train import Domain, PyGTrainer, Trial, Tune, TuneResult, XGBoostTrainer
from sp_ray_ml.train._tune_search import search_of
from sp_ray_ml.train._tune_store import TrialStore, trial_folder, write_result
from sp_ray_ml.train._tune_table import TrialTable
from sp_ray_ml.train.tuning import check_space, with_settings

TRAINER = XGBoostTrainer(label="y", params={"subsample": 0.9})


def tune(**settings: Any) -> Tune:
    return Tune(**{"space": {"learning_rate": {"loguniform": [0.01, 0.3]}}, **settings})


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ({}, "exactly one of uniform, loguniform, choice, randint, got none"),
        ({"uniform": [0, 1], "choice": [1]}, "exactly one of .*, got uniform, choice"),
        ({"uniforn": [0, 1]}, r"space\.learning_rate\.uniforn: unknown; did you mean uniform\?"),
        ({"uniform": [1, 0]}, r"uniform: \[1, 0\] is empty"),
        ({"randint": [3, 3]}, r"randint: \[3, 3\] is empty"),
        ({"randint": [0.5, 3]}, "expected a whole number"),
        ({"loguniform": [0, 1]}, r"loguniform: \[0, 1\] must begin above 0"),
        ({"choice": []}, "expected 1 or more, got"),
        ({"uniform": ["a", 1]}, "expected a number"),
    ],
)
def test_a_domain_that_is_none_is_refused_with_its_place(domain: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(space={"learning_rate": domain})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": {}}, "space"),
        ({"search": "grid"}, "search: grid needs a choice or randint for learning_rate"),
        ({"search": "optunna"}, "did you mean optuna"),
        ({"search": "optuna", "scheduler": "pbt"}, "goes with search: random only"),
        ({"time_budget": "0s"}, "time_budget must be longer than 0s"),
        ({"time_budget": 3}, "expected a duration"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"max_concurrent": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(**settings)


def test_a_name_that_the_trainer_has_not_is_refused_with_the_near_one() -> None:
    wrong = {"learning_rat": {"uniform": [0, 1]}, "early_stopping.patienc": {"randint": [1, 5]}}
    with pytest.raises(ConfigError) as raised:
        check_space(TRAINER, tune(space=wrong))
    assert [(p.path, p.message) for p in raised.value.problems] == [
        ("tune.space.learning_rat", "unknown; did you mean learning_rate?"),
        ("tune.space.early_stopping.patienc", "unknown; did you mean patience?"),
    ]


def test_values_that_the_trainer_does_not_take_are_refused_with_the_value() -> None:
    space = {
        "learning_rate": {"uniform": [0, 1]},
        "max_depth": {"choice": [3, "deep"]},
        "params.eta": {"uniform": [0.1, 0.2]},
    }
    with pytest.raises(ConfigError) as raised:
        check_space(TRAINER, tune(space=space))
    rate, depth, eta = raised.value.problems
    assert rate.message.startswith(
        "uniform has 0.0, which learning_rate does not take: must be greater than 0"
    )
    assert depth.message.startswith(
        "choice has 'deep', which max_depth does not take: expected a whole number"
    )
    assert "eta is the setting `learning_rate`" in eta.message


def test_a_metric_that_no_training_gives_is_refused_with_the_near_one() -> None:
    with pytest.raises(ConfigError, match=r"tune\.metric: unknown metric 'log_los'; did you mean log_loss\?"):
        check_space(TRAINER, tune(metric="log_los"))
    check_space(TRAINER, tune(metric="auc"))


def test_mistakes_are_found_before_anything_starts(tmp_path: Path) -> None:
    rows = pa.table({"x": [1.0, 2.0], "y": [0, 1]})
    bad = tune(space={"lerning_rate": {"uniform": [0.1, 1]}})
    with pytest.raises(ConfigError):
        TRAINER.tune(rows, rows, tune=bad, folder=tmp_path / "t")
    with pytest.raises(ConfigError, match="needs validation rows"):
        TRAINER.tune(rows, tune=tune(), folder=tmp_path / "t")
    assert not (tmp_path / "t").exists()


# --- a trainer with other settings ------------------------------------------------------------------------------


def test_dotted_names_reach_settings_and_parameters_at_any_depth() -> None:
    changed: Any = with_settings(
        TRAINER,
        {
            "learning_rate": 0.05,
            "params.subsample": 0.5,
            "params.reg_lambda": 2.0,
            "early_stopping.patience": 3,
        },
    )
    assert (changed.learning_rate, changed.early_stopping.patience) == (0.05, 3)
    assert changed.params == {"subsample": 0.5, "reg_lambda": 2.0}
    assert TRAINER.params == {"subsample": 0.9}
    graph: Any = with_settings(PyGTrainer(), {"model.dim": 16})
    assert graph.model.dim == 16
    with pytest.raises(ConfigError, match="nothing below a setting that is None"):
        with_settings(XGBoostTrainer(label="y", early_stopping=None), {"early_stopping.patience": 3})


def test_a_path_below_a_users_own_model_is_its_argument() -> None:
    trainer = PyGTrainer(model={"kind": f"{__name__}:own_model", "width": 3})
    changed: Any = with_settings(trainer, {"model.width": 5})
    assert changed.model.arguments == {"width": 5}


def own_model(data: Any, width: int) -> None:
    """Stands for a model that a user has written."""


# --- search -----------------------------------------------------------------------------------------------------


def test_random_values_fill_their_domains_evenly_and_never_leave_them() -> None:
    space = {
        "learning_rate": {"loguniform": [0.001, 1.0]},
        "max_depth": {"randint": [2, 5]},
        "params.subsample": {"uniform": [0.25, 0.75]},
        "params.grow_policy": {"choice": ["depthwise", "lossguide"]},
    }
    search = search_of(tune(space=space), 0)
    drawn = [search.propose(number) for number in range(1, 601)]
    rates = np.log10([values["learning_rate"] for values in drawn])
    assert np.histogram(rates, bins=3, range=(-3, 0))[0].tolist() == pytest.approx([200] * 3, abs=40)
    depths = [values["max_depth"] for values in drawn]
    assert {d: depths.count(d) for d in (2, 3, 4)} == pytest.approx(dict.fromkeys((2, 3, 4), 200), abs=40)
    assert {values["params.grow_policy"] for values in drawn} == {"depthwise", "lossguide"}
    assert all(0.25 <= values["params.subsample"] <= 0.75 for values in drawn)


def test_a_trials_random_values_depend_on_its_number_and_the_seed_alone() -> None:
    one, other = search_of(tune(), 7), search_of(tune(), 7)
    whole = [one.propose(number) for number in range(1, 9)]
    assert [other.propose(number) for number in (8, 3)] == [whole[7], whole[2]]
    assert search_of(tune(), 8).propose(1) != whole[0]


def test_a_grid_is_all_combinations_once() -> None:
    space = {"max_depth": {"choice": [2, 4]}, "max_bin": {"randint": [16, 19]}}
    settings = tune(space=space, search="grid")
    search = search_of(settings, 0)
    found = [tuple(search.propose(number).values()) for number in range(1, settings.count + 1)]
    assert found == [(d, b) for d in (2, 4) for b in (16, 17, 18)]
    assert tune(space=space, search="grid", trials=4).count == 4
    assert tune().count == 20


def test_optuna_finds_a_valley_that_random_search_misses() -> None:
    def away(values: dict[str, Any]) -> float:
        return abs(np.log10(values["learning_rate"]) + 1.2) + (values["params.kind"] != [2])

    space = {"learning_rate": {"loguniform": [1e-6, 1.0]}, "params.kind": {"choice": [[1], [2], [3]]}}

    def best(search: str, seed: int) -> float:
        found = search_of(tune(space=space, search=search), seed)
        seen = []
        for number in range(1, 41):
            values = found.propose(number)
            seen.append(away(values))
            found.tell(Trial(number, values, "finished"), -seen[-1])
        return min(seen)

    ours = [best("optuna", seed) for seed in range(5)]
    random = [best("random", seed) for seed in range(5)]
    assert float(np.median(ours)) < float(np.median(random)) / 3


def test_optuna_goes_on_from_what_an_earlier_process_found() -> None:
    settings = tune(space={"learning_rate": {"loguniform": [1e-6, 1.0]}}, search="optuna")

    def away(values: dict[str, Any]) -> float:
        return float(abs(np.log10(values["learning_rate"]) + 1))

    first = search_of(settings, 3)
    earlier = []
    for number in range(1, 26):
        earlier.append(first.propose(number))
        first.tell(Trial(number, earlier[-1], "finished"), -away(earlier[-1]))
    second = search_of(settings, 3)
    second.tell(Trial(99, {"learning_rate": 0.5}, "failed"), None)
    for number, values in enumerate(earlier, 1):
        second.tell(Trial(number, values, "finished"), -away(values))
    later = []
    for number in range(26, 46):
        later.append(second.propose(number))
        second.tell(Trial(number, later[-1], "finished"), -away(later[-1]))
    assert not {v["learning_rate"] for v in later} & {v["learning_rate"] for v in earlier}
    # At random half of them would be 2 away.
    assert np.median([away(values) for values in later]) < 1


def test_a_missing_optuna_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match=r"sp_ray_ml\[tune\]"):
        search_of(tune(search="optuna"), 0)


# --- the folder -------------------------------------------------------------------------------------------------


def test_a_store_knows_what_was_begun_and_what_is_over(tmp_path: Path) -> None:
    store = TrialStore(tmp_path, "k")
    for number in (1, 2):
        store.begin(number, {"max_depth": number})
    over = Trial(1, {"max_depth": 1}, "finished", {"rmse": 0.5, "r2": float("-inf")}, 0.5, 7, 1.5)
    write_result(trial_folder(tmp_path, 1), over, history=[{"epoch": 7}])
    store.spend(4.0)
    again = TrialStore(tmp_path, "k")
    assert again.begun() == {1: {"max_depth": 1}, 2: {"max_depth": 2}}
    assert (again.result(1), again.result(2)) == (over, None)
    assert (again.seconds, again.history(1)) == (4.0, [{"epoch": 7}])


def test_the_folder_of_another_tuning_is_left_alone(tmp_path: Path) -> None:
    TrialStore(tmp_path, "one").begin(1, {})
    with pytest.raises(ConfigError, match="holds a tuning of other settings or other data"):
        TrialStore(tmp_path, "other")
    assert TrialStore(tmp_path, "one").begun() == {1: {}}


# --- the table --------------------------------------------------------------------------------------------------


class _Stream:
    encoding = "utf-8"

    def __init__(self, tty: bool) -> None:
        self.text, self.tty = "", tty

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def _news() -> list[Trial]:
    values = {"learning_rate": 0.123456}
    return [
        Trial(1, values),
        Trial(1, values, "finished", {"rmse": 0.5}, 0.5, 9, 1.25),
        Trial(2, values, "failed", error="DataError: a\n  column"),
    ]


def test_outside_a_terminal_each_trial_is_one_line_when_it_is_over() -> None:
    stream: Any = _Stream(tty=False)
    with TrialTable(stream) as table:
        for trial in _news():
            table.show(trial)
    head, one, two = stream.text.splitlines()
    assert head.split() == ["trial", "status", "value", "epochs", "seconds", "values"]
    assert one.split() == ["1", "finished", "0.5", "9", "1.2", "learning_rate=0.1235"]
    assert two.endswith("learning_rate=0.1235: DataError: a column")


def test_on_a_terminal_there_is_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream: Any = _Stream(tty=True)
    with TrialTable(stream) as table:
        for trial in _news():
            table.show(trial)
    final = stream.text.rpartition("trial")[2]  # what was drawn last
    assert "finished" in final
    assert "failed" in final
    assert "running" not in final


# --- lightness --------------------------------------------------------------------------------------------------


def test_settings_of_tuning_import_nothing_heavy() -> None:
    code = (
        "import sys; from sp_ray_ml.train import Tune, TuneResult, Domain, Trial;"
        "Tune(space={'learning_rate': {'uniform': [0.1, 1]}});"
        "print([m for m in ('ray', 'optuna', 'torch', 'xgboost', 'pandas', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_result_is_a_training_result_with_the_best_trials_values() -> None:
    best = Trial(3, {"max_depth": 4}, "finished", {"rmse": 0.1}, 0.1)
    result = TuneResult({"rmse": 0.1}, [], Path("runs/x"), trials=[best], best=best)
    assert result.params == {"max_depth": 4}
    assert result.predictor_path == Path("runs/x/predictor")


def test_a_domains_share_reaches_both_ends() -> None:
    assert Domain(uniform=(2, 4)).at(0.0) == 2
    assert Domain(loguniform=(1e-3, 1e3)).at(0.5) == pytest.approx(1.0)
    assert Domain(choice=["a", "b"]).at(0.999999) == "b"
    assert [Domain(randint=(1, 3)).at(share) for share in (0.0, 0.49, 0.5, 0.99)] == [1, 1, 2, 2]
