"""Schedulers on Ray: what ASHA stops is given back, and what a population comes to."""

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.small_sweeps import folder_of, small_sweep, wait_until_free

from trainyard.config import TrainConfig
from trainyard.errors import Interrupted
from trainyard.storage.folder import RunFolder
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.sweep import tune


@pytest.fixture(scope="module")
def config(small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    return small_sweep(small_run, tmp_path_factory.mktemp("sweeps"))


@pytest.mark.long
def test_asha_with_one_trial_at_a_time_is_not_changed_by_an_interruption(
    cluster: Any, config: SweepConfig
) -> None:
    """Asked to stop in its third trial; each trial ends as in the undisturbed sweep."""
    whole = dataclasses.replace(
        config, run_name="asha", scheduler="asha", num_trials=4, reduction_factor=2.0,
        max_concurrent_trials=1, confirm_seeds=0,
    )  # fmt: skip
    halved = dataclasses.replace(whole, run_name="asha-halved")

    def interrupt() -> None:
        while not RunFolder(folder_of(halved).trials / "trial-0002").progress():
            time.sleep(0.02)
        folder_of(halved).stop_request.touch()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted):
        tune(halved)
    assert [r.status for r in folder_of(halved).records()].count("stopped") == 1
    result, undisturbed = tune(halved), tune(whole)
    assert result.trials["pruned"]
    assert result.best_trial == undisturbed.best_trial
    known = [
        [(r.spec, r.status, r.score, r.run.metrics()) for r in folder_of(one).records()]
        for one in (halved, whole)
    ]
    assert known[0] == known[1]
    wait_until_free(cluster, 4)


@pytest.mark.long
def test_nested_trials_stopped_early_and_killed_give_everything_back(
    cluster: Any, config: SweepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """ASHA over trials of two workers on four CPUs; one trial is killed.

    `make test-long` runs it without a dashboard, whose State API nobody reaches then, and with one.
    Rates far below the first trial's, and enough epochs that a trial still trains when it is stopped.
    """
    nested = dataclasses.replace(
        config, run_name="nested", num_workers=2, scheduler="asha", num_trials=3, confirm_seeds=0,
        num_train_epochs=20, reduction_factor=2.0, max_concurrent_trials=None,
        set=(("learning_rate=loguniform:1e-7:1e-3",),),
    )  # fmt: skip
    folder = folder_of(nested)
    killed: list[int] = []

    def kill_a_trial() -> None:
        import psutil

        while not killed:
            time.sleep(0.05)
            if RunFolder(folder.trials / "trial-0000").progress().get("step", 0) < 2:
                continue
            for process in psutil.Process().children(recursive=True):
                if "ResourceTrainable" in " ".join(process.cmdline()):
                    killed.append(process.pid)
                    process.kill()
                    return

    threading.Thread(target=kill_a_trial, daemon=True).start()
    result = tune(nested)
    assert killed
    assert folder.read()["max_concurrent_trials"] == 2
    assert sum(result.trials.values()) == 3
    assert set(result.trials) == {"finished", "pruned"}
    said = capsys.readouterr().err
    assert said.count(": stopped by the scheduler") == result.trials["pruned"]
    assert ": running" not in said
    wait_until_free(cluster, 4)
    from ray.util import placement_group_table

    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
    assert not [t for t in folder.records() if (t.run.path / "lease.json").exists()]


@pytest.mark.long
def test_a_population_trains_to_its_end(cluster: Any, config: SweepConfig) -> None:
    """On nodes with a label, for which Ray Tune is asked in a way of its own."""
    label = {"ray.io/node-id": cluster.nodes()[0]["NodeID"]}
    population = dataclasses.replace(
        config, run_name="population", scheduler="pbt", population=2, num_trials=None,
        max_concurrent_trials=None, confirm_seeds=0, label_selector=label,
    )  # fmt: skip
    result = tune(population)
    assert result.trials == {"stopped": 2, "finished": 2}
    first, second = (
        [r for r in folder_of(population).records() if r.spec.generation == generation]
        for generation in (0, 1)
    )
    best = max(first, key=lambda trial: trial.score or 0)
    assert [trial.spec.parent for trial in second] == [best.spec.name] * 2
    assert result.best_trial in {trial.spec.name for trial in second}
    assert Path(result.model, "model.safetensors").exists()
    wait_until_free(cluster, 4)
