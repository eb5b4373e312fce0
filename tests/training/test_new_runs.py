"""Flags that earlier versions accepted without effect: refused for new runs, kept in old ones."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.storage import open_run
from trainyard.training.driver.fit import fit
from trainyard.tuning import SweepConfig
from trainyard.tuning.sweep import tune

SENTENCE = "zero_stage is for strategy='deepspeed', not ddp; change one of the two"


def test_a_zero_stage_without_deepspeed_is_refused_for_a_new_run(tmp_path: Path) -> None:
    place: dict[str, Any] = {"storage_path": str(tmp_path), "zero_stage": 3}
    with pytest.raises(UserError) as refused:
        fit(TrainConfig(**place))
    assert str(refused.value) == SENTENCE
    with pytest.raises(UserError) as refused:
        tune(SweepConfig(**place))
    assert str(refused.value) == SENTENCE
    TrainConfig(strategy="deepspeed", use_gpu=True, **place).check_new()


def test_an_old_run_with_it_still_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(storage_path=str(tmp_path), zero_stage=3)
    open_run(config.storage_path, config.resolved_run_name).update(config=asdict(config))
    opened: list[TrainConfig] = []

    def earlier(config: TrainConfig, *_: object) -> object:
        opened.append(config)
        return "its result"

    monkeypatch.setattr("trainyard.training.driver.fit.earlier_result", earlier)
    assert str(fit(config)) == "its result"
    assert [found.zero_stage for found in opened] == [3]
    with pytest.raises(UserError, match="is for strategy='deepspeed'"):
        fit(replace(config, fresh=True))
    assert str(fit(config)) == "its result"  # it was not deleted
