"""Spaces, searchers and schedulers: pure functions, no cluster."""

import dataclasses
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.command import parse
from trainyard.command.starter import InitConfig, write_starter
from trainyard.config import TrainConfig, naming_flags
from trainyard.errors import UserError
from trainyard.fleet import RunSpec, Supply
from trainyard.fleet.driver.ray_tune import SUPERVISOR, _resources
from trainyard.storage.folder import RunFolder
from trainyard.storage.sweep_folder import SweepFolder, TrialRecord, TrialSpec
from trainyard.tasks import TASKS
from trainyard.tuning.conclude import write_best
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.schedulers import SCHEDULERS, Scheduler, next_stretch
from trainyard.tuning.searchers import SEARCHERS, Point, Searcher, rank, suggest
from trainyard.tuning.space import SPACES, Domain, build_space, parse_domain
from trainyard.tuning.sweep import trial_capacity
from trainyard.tuning.trials import Context, search_supply

BASE = SweepConfig()


def trial(index: int, point: dict[str, Any], status: str, score: float | None) -> TrialRecord:
    return TrialRecord(
        spec=TrialSpec(index=index, name=f"trial-{index:04d}", hyperparameters=point),
        status=status,
        score=score,
        evaluations=2,
        run=RunFolder(Path("absent")),
    )


@pytest.mark.parametrize("name", SPACES)
def test_named_spaces_are_valid(name: str) -> None:
    space = build_space(name, (), BASE)
    assert list(space) == list(SPACES[name])


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_suggestions_lie_in_the_space_and_repeat(searcher: Any) -> None:
    space = build_space("wide", ["max_grad_norm=choice:0,1", "seed=7"], BASE)
    history: list[TrialRecord] = []
    for index in range(14):
        point = suggest(searcher, space, BASE, index, history)
        assert point == suggest(searcher, space, BASE, index, history)
        assert point is not None
        assert all(value in space[field] for field, value in point.items())
        status = ["finished", "pruned", "diverged", "running", "waiting"][index % 5]
        score = point["learning_rate"] if status in ("finished", "pruned") else None
        history.append(trial(index, point, status, score))
    assert len({record.spec.hyperparameters["learning_rate"] for record in history}) == 14


def test_optuna_learns_where_random_does_not() -> None:
    space = build_space("default", (), BASE)

    def found(searcher: Any) -> float:
        history: list[TrialRecord] = []
        for index in range(40):
            point = suggest(searcher, space, BASE, index, history)
            assert point is not None
            loss = abs(point["weight_decay"] - 0.08) + abs(point["learning_rate"] * 1e3 - 0.3)
            history.append(trial(index, point, "finished", -loss))
        return sum(record.score or 0 for record in history[20:]) / 20

    assert found("optuna") > found("random") + 0.02


def test_trial_0_is_the_default_recipe_where_the_space_holds_it() -> None:
    space = build_space("default", (), BASE)
    assert suggest("random", space, BASE, 0, ()) == {"learning_rate": 5e-5, "weight_decay": 0.0}
    elsewhere = build_space("default", ["weight_decay=choice:0.1,0.2"], BASE)
    point = suggest("random", elsewhere, BASE, 0, ())
    assert point is not None
    assert point["weight_decay"] in (0.1, 0.2)


def test_a_grid_visits_every_point_once() -> None:
    space = build_space("bert", (), BASE)
    points: list[dict[str, Any]] = []
    while (point := suggest("grid", space, BASE, len(points), ())) is not None:
        points.append(point)
    assert len(points) == 18
    assert len({tuple(point.values()) for point in points}) == 18


@given(
    low=st.floats(1e-9, 1e-2), factor=st.floats(1.01, 90), kind=st.sampled_from(["uniform", "loguniform"])
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_range_parses_back_from_what_it_prints(low: float, factor: float, kind: Any) -> None:
    domain = parse_domain("learning_rate", f"{kind}:{low!r}:{low * factor!r}")
    assert (domain.low, domain.high, domain.kind) == (low, low * factor, kind)
    assert low in domain
    assert low * factor * 1.1 not in domain
    again = (
        parse_domain("learning_rate", str(domain)) if domain.low < domain.high * 0.99 else domain
    )
    assert again.low == pytest.approx(domain.low, rel=1e-5)


def test_values_have_the_type_of_their_field() -> None:
    assert parse_domain("num_train_epochs", "choice:1,2").values == (1, 2)
    assert parse_domain("learning_rate", "choice:1,2e-5").values == (1.0, 2e-5)
    assert parse_domain("gradient_checkpointing", "choice:True,False").values == (True, False)
    assert parse_domain("max_steps", "choice:None,5").values == (None, 5)
    assert parse_domain("weight_decay", "0.01") == Domain("choice", values=(0.01,))
    assert parse_domain("model_name_or_path", "package:a/b").values == ("package:a/b",)


MISTAKES = {
    "lr=uniform:1:2": "there is no such field",
    "learning_rat=uniform:1e-5:1e-4": "did you mean 'learning_rate'?",
    "learning_rate": "has no field=domain; write for example learning_rate=loguniform:1e-6:1e-3",
    "learning_rate=": "has no field=domain",
    "learning_rate=uniform:1e-5": "'1e-5' is not LOW:HIGH; write for example",
    "learning_rate=uniform:a:b": "'a:b' is not LOW:HIGH",
    "learning_rate=normal:0:1": "there is no 'normal:'; write uniform:LOW:HIGH",
    "learning_rate=loguniform:0:1e-3": "0 to 0.001 is not a range; the first must be less",
    "learning_rate=uniform:1e-3:1e-5": "is not a range",
    "learning_rate=uniform:nan:1": "nan to 1 is not a range; give two finite numbers",
    "weight_decay=uniform:0:inf": "0 to inf is not a range; give two finite numbers",
    "num_train_epochs=randint:2:inf": "2 to inf is not a range; give two finite numbers",
    "num_train_epochs=randint:nan:5": "nan to 5 is not a range; give two finite numbers",
    "num_train_epochs=randint:2.5:4.7": "2.5 to 4.7 is not a range of integers; give whole numbers",
    "max_length=uniform:1:inf": "1 to inf is not a range; give two finite numbers",
    "learning_rate=uniform:0.1:2": "--learning-rate is 2.0; it must lie between 0 and 1",
    "num_train_epochs=uniform:1:4": "cannot be drawn by uniform; use num_train_epochs=randint:LOW",
    "num_train_epochs=randint:0:4": "--num-train-epochs is 0; it must be at least 1",
    "num_train_epochs=choice:1,many": "'many' is not a value of num_train_epochs; expected int",
    "lr_scheduler_type=choice:linear,cosin": "'cosin' is not a value of lr_scheduler_type; expected lin",
    "train_batch_size=choice:6,8": "does not share out evenly over --num-workers 1",
    "train_batch_size=randint:0:8": "--train-batch-size is 0; it must be at least 1",
    "max_length=randint:8:64": "list its values: max_length=choice:8,64",
    "num_workers=choice:1,2": "is the same for all trials of a sweep; what can be searched: seed, model",
    "task=choice:mrpc,rte": "task is the same for all trials",
}


@pytest.mark.parametrize("override", MISTAKES)
@naming_flags()
def test_an_override_that_cannot_work_is_one_sentence(override: str) -> None:
    with pytest.raises(UserError, match=re.escape(MISTAKES[override])) as caught:
        build_space("default", [override], BASE)
    assert "\n" not in str(caught.value)


def test_a_searched_batch_reduces_a_larger_micro_batch(tmp_path: Path) -> None:
    sweep = SweepConfig(train_batch_size=32, per_device_train_batch_size=16)
    space = build_space("wide", (), sweep.base)
    assert space["train_batch_size"].values == (8, 16, 32, 64)
    micro_batches = {8: 8, 16: 16, 32: 16, 64: 16}
    for batch, size in micro_batches.items():
        trial_config = sweep.train_config({"train_batch_size": batch})
        assert trial_config.per_device_train_batch_size == size
    assert sweep.train_config({"learning_rate": 1e-5}).per_device_train_batch_size == 16

    folder, run = SweepFolder(tmp_path / "sweep"), RunFolder(tmp_path / "run")
    best = sweep.train_config({"train_batch_size": 8})
    run.model.mkdir(parents=True)
    run.update(config=dataclasses.asdict(best))
    folder.path.mkdir()
    write_best(folder, run, "trial-0001")
    parsed = parse(TrainConfig, ["--config", str(folder.best_config)])
    assert (parsed.train_batch_size, parsed.per_device_train_batch_size) == (8, 8)
    assert parsed.identity() == dataclasses.replace(best, storage_path="runs").identity()


def test_a_searched_micro_batch_is_not_reduced() -> None:
    sizes = ["train_batch_size=choice:8,16", "per_device_train_batch_size=choice:8,16"]
    with pytest.raises(UserError, match="train_batch_size=8, per_device_train_batch_size=16, but"):
        build_space("default", sizes, SweepConfig(train_batch_size=16).base)


def test_searchers_refuse_spaces_that_they_cannot_walk() -> None:
    with pytest.raises(UserError, match="--space wid is unknown; did you mean 'wide'"):
        build_space("wid", (), BASE)
    with pytest.raises(UserError, match="--searcher grid cannot visit learning_rate=loguniform"):
        SEARCHERS["grid"].check("grid", build_space("default", (), BASE), None)
    with pytest.raises(UserError, match="the grid has 18 points, more than --num-trials 4"):
        SEARCHERS["grid"].check("grid", build_space("bert", (), BASE), 4)
    space = build_space("default", ["learning_rate=grid:1e-5,2e-5"], BASE)
    with pytest.raises(UserError, match="every point of a grid, which --searcher optuna does not"):
        SEARCHERS["optuna"].check("optuna", space, None)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_trials": 0}, "--num-trials is 0; it must be at least 1"),
        ({"max_seconds": 0.0}, "--max-seconds is 0; it must be more than 0"),
        ({"reduction_factor": 1.0}, "--reduction-factor is 1; it must be more than 1"),
        ({"confirm_seeds": -1}, "--confirm-seeds is -1; it must be at least 0"),
        ({"scheduler": "pbt", "num_workers": 2}, "--scheduler pbt pauses trials in their process"),
        ({"scheduler": "pbt", "searcher": "optuna"}, "--scheduler pbt chooses its own points"),
        (
            {"scheduler": "pbt", "early_stopping_patience": 2},
            "stopped early does not have; drop --early-stopping-patience, or use --scheduler asha",
        ),
    ],
)
@naming_flags()
def test_flags_that_cannot_work_are_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        SweepConfig(**fields)


def test_diverged_and_failed_trials_rank_last() -> None:
    trials = [
        trial(0, {}, "diverged", 0.99), trial(1, {}, "pruned", 0.9), trial(2, {}, "finished", 0.5),
        trial(3, {}, "failed", None), trial(4, {}, "finished", 0.7), trial(5, {}, "finished", 0.7),
    ]  # fmt: skip
    assert [record.spec.index for record in rank(trials)] == [4, 5, 2, 1, 0, 3]


def context(config: SweepConfig, folder: SweepFolder) -> Context:
    return Context(
        sweep="sweep", config=config, task=TASKS["mrpc"], data={}, per_worker={"CPU": 1.0},
        folders={"search": folder.trials},
    )  # fmt: skip


def taken(supply: Supply) -> Iterator[TrialSpec | None]:
    while isinstance(run := supply(), RunSpec):
        yield run.trial


@pytest.mark.parametrize(("scheduler", "again"), [("fifo", [2, 3, 4]), ("asha", [0, 1, 2, 3, 4])])
def test_a_sweep_goes_on_where_it_was(tmp_path: Path, scheduler: Any, again: list[int]) -> None:
    """What ended is not run again (ASHA only hears of it), what failed is, and then come new ones."""
    config = SweepConfig(scheduler=scheduler, num_trials=7)
    space = build_space("default", (), config)

    def supply_from(folder: SweepFolder) -> list[TrialSpec]:
        supply = search_supply(context(config, folder), space, folder)
        return [trial for trial in taken(supply) if trial is not None]

    undisturbed = supply_from(SweepFolder(tmp_path / "undisturbed"))
    assert [spec.index for spec in undisturbed] == list(range(7))
    folder = SweepFolder(tmp_path / "killed")
    for spec, status in zip(
        undisturbed, ("finished", "pruned", "failed", "running", None), strict=False
    ):
        run = folder.add(spec)
        if status:
            run.update(status=status, trial_score=0.5, trial_evaluations=1)
    assert supply_from(folder) == [*(undisturbed[i] for i in again), *undisturbed[5:]]
    assert [trial.status for trial in folder.records()][:4] == [
        "finished", "pruned", "stopped", "running",
    ]  # fmt: skip


def test_a_stretch_that_was_cut_off_has_not_come_to_its_exchange(tmp_path: Path) -> None:
    """Asked to stop in its middle, a member goes on; the others wait for it."""
    config = SweepConfig(scheduler="pbt", population=2)
    space, folder = build_space("default", (), config), SweepFolder(tmp_path / "population")
    for _ in range(2):
        spec = next_stretch(config, space, folder.records(), 2)
        assert isinstance(spec, TrialSpec)
        folder.add(spec).update(status="stopped", trial_score=0.5, trial_evaluations=1)
    last = folder.records()[-1]
    last.run.update(trial_evaluations=0)
    assert next_stretch(config, space, folder.records(), 2) == "later"
    supply = search_supply(context(config, folder), space, folder)
    assert next(taken(supply)) == last.spec
    last.run.update(trial_evaluations=1)
    following = next_stretch(config, space, folder.records(), 2)
    assert isinstance(following, TrialSpec)
    assert following.generation == 1


def test_the_name_is_the_search_and_not_its_budget() -> None:
    more = dataclasses.replace(BASE, num_trials=40, confirm_seeds=0, num_workers=2)
    assert more.resolved_run_name == BASE.resolved_run_name
    assert dataclasses.replace(BASE, searcher="optuna").identity() != BASE.identity()
    assert dataclasses.replace(BASE, learning_rate=1e-4).identity() != BASE.identity()


def test_trials_share_the_cluster_and_never_wait_for_each_other() -> None:
    four = [{"CPU": 4.0}]
    assert trial_capacity(BASE, 12, four)[1] == 4
    assert trial_capacity(BASE, 12, four)[0] == {"CPU": 1.0}
    assert trial_capacity(BASE, 2, four)[0] == {"CPU": 2.0}  # few trials: more CPUs for each
    nested = SweepConfig(num_workers=2)
    assert trial_capacity(nested, 12, four)[1] == 2
    assert trial_capacity(nested, 12, [{"CPU": 1.0}, {"CPU": 1.0}])[1] == 1
    shared = SweepConfig(use_gpu=True, resources_per_worker={"GPU": 0.25, "CPU": 1})
    assert trial_capacity(shared, 12, [{"CPU": 8.0, "GPU": 1.0}])[1] == 4
    assert trial_capacity(SweepConfig(max_concurrent_trials=3), 12, four)[1] == 3
    labeled = SweepConfig(label_selector={"zone": "a"})
    with pytest.raises(
        UserError, match=r"0 CPU on 0 node\(s\) with labels {'zone': 'a'}, enough for 0; use"
    ):
        trial_capacity(labeled, 12, [])
    with pytest.raises(UserError, match=r"trials of --num-workers 8 .* has 4 CPU on 1 node"):
        trial_capacity(SweepConfig(num_workers=8, train_batch_size=64), 12, four)


@given(cpus=st.lists(st.integers(1, 16), min_size=1, max_size=4), workers=st.integers(1, 4),
       trials=st.integers(1, 30))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_what_runs_at_once_fits(cpus: list[int], workers: int, trials: int) -> None:
    nodes = [{"CPU": float(count)} for count in cpus]
    config = SweepConfig(num_workers=workers, train_batch_size=48)
    if sum(cpus) < workers:
        return
    needed, concurrent = trial_capacity(config, trials, nodes)
    assert 1 <= concurrent * workers <= sum(int(count // needed["CPU"]) for count in cpus)


def test_what_supervises_workers_takes_no_cpu() -> None:
    trial = TrialSpec(index=0, name="trial-0000", hyperparameters={})
    alone = TrainConfig(resources_per_worker={"CPU": 2}, label_selector={"zone": "a"})
    request = _resources({"spec": RunSpec(config=alone, trial=trial)})
    assert request.bundles == [{"CPU": 2}]
    assert request._kwargs["bundle_label_selector"] == [{"zone": "a"}]
    for spec in (
        RunSpec(config=dataclasses.replace(alone, num_workers=2), trial=trial),
        RunSpec(config=alone),  # an ordinary run has workers, also if it is one
    ):
        assert _resources({"spec": spec}).bundles == [SUPERVISOR]


class First(Searcher):
    def point(self, space: Any, seed: int, index: int, history: Any) -> Point | None:  # noqa: ARG002
        return {field: domain.ends[0] for field, domain in space.items()} if index < 2 else None


class Shrinking(Scheduler):
    """Halve the last trial's rate, to three trials."""

    def budget(self, config: SweepConfig, space: Any) -> int:  # noqa: ARG002
        return 3

    def next_trial(self, config: Any, space: Any, history: Any, rows: int) -> Any:
        found: Any = super().next_trial(config, space, history, rows)
        rate = 1e-3 / 2 ** len(history)
        return found and dataclasses.replace(found, hyperparameters={"learning_rate": rate})


def test_a_searcher_and_a_scheduler_are_a_row_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SEARCHERS, "first", First())
    monkeypatch.setitem(SCHEDULERS, "shrinking", Shrinking())
    # The choices of a flag are the rows of its table at import.
    monkeypatch.setattr("trainyard.config.flags.check_fields", lambda _: None)
    config = SweepConfig(
        searcher="first", num_trials=9, set=(("learning_rate=uniform:1e-4:1e-3",),)
    )
    space, folder = build_space("seed", config.overrides, config), SweepFolder(tmp_path / "first")
    runs = list(taken(search_supply(context(config, folder), space, folder)))
    assert [run.hyperparameters["learning_rate"] for run in runs if run] == [1e-4] * 2
    assert folder.records()[1].spec == runs[1]
    shrinking = dataclasses.replace(config, scheduler="shrinking", searcher="random")
    folder = SweepFolder(tmp_path / "shrinking")
    runs = list(taken(search_supply(context(shrinking, folder), space, folder)))
    assert [run.hyperparameters["learning_rate"] for run in runs if run] == [1e-3, 5e-4, 2.5e-4]


def test_the_commands_of_the_docs_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    shutil.copy(root / "examples" / "mail.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    write_starter(InitConfig(train_file="mail.csv"))
    page = (root / "docs" / "tune.md").read_text()
    commands = re.findall(r"^trainyard tune ((?:.*\\\n)*.*)", page, re.MULTILINE)
    assert commands
    for command in commands:
        config = parse(SweepConfig, shlex.split(command.replace("\\\n", " "), comments=True))
        build_space(config.space, config.overrides, config.base)
    domains = re.findall(r"[a-z_]+=[a-z]+:[a-z0-9:.,-]+", page)
    assert len(domains) >= 3
    build_space("wide", domains, BASE)
