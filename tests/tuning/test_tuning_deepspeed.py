"""A sweep whose trials train by DeepSpeed, each in two workers of Ray Train."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle
from support import lifted
from support.lifted import lift_workers
from support.small_sweeps import folder_of, small_sweep, wait_until_free
from support.weights import weights_hash

from trainyard.config import TrainConfig
from trainyard.storage.folder import open_run
from trainyard.training import fit
from trainyard.tuning.sweep import tune


@pytest.mark.long
def test_trials_of_zero_2_end_as_runs_of_the_same_config(
    cluster: Any, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guards are lifted in the processes of the trials, and in the workers of these."""
    from trainyard.fleet.actor import build_trainable

    def build_lifted(shared: Any) -> Any:
        base: Any = build_trainable(shared)

        class LiftedRun(base):
            def setup(self, config: dict[str, Any]) -> None:
                lift_workers(pytest.MonkeyPatch())
                super().setup(config)

        return LiftedRun

    cloudpickle.register_pickle_by_value(lifted)
    lift_workers(monkeypatch)
    monkeypatch.setattr("trainyard.fleet.driver.ray_tune.build_trainable", build_lifted)
    config = dataclasses.replace(
        small_sweep(small_run, tmp_path), run_name="zero", strategy="deepspeed", num_workers=2,
        num_trials=2, confirm_seeds=0,
    )  # fmt: skip
    result = tune(config)
    assert result.trials == {"finished": 2}
    wait_until_free(cluster, 4)
    for trial in folder_of(config).records():
        direct = config.train_config(
            trial.spec.hyperparameters, storage_path=str(tmp_path / "direct"),
            run_name=trial.spec.name, resources_per_worker={"CPU": 1},
        )  # fmt: skip
        assert direct.identity() == trial.run.read()["identity"]
        fit(direct)
        run = open_run(direct.storage_path, trial.spec.name)
        assert run.metrics() == trial.run.metrics()
        logits, expected = (one.read_predictions("validation") for one in (trial.run, run))
        assert np.array_equal(logits, expected)
        if trial.spec.name == result.best_trial:  # the only one whose model is kept
            assert weights_hash(Path(result.model) / "model.safetensors") == weights_hash(
                run.model / "model.safetensors"
            )
