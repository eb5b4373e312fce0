"""Packages and files that flags need, checked before anything is started."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainyard.config import TrainConfig, check_packages
from trainyard.config.packages import EXTRAS
from trainyard.errors import UserError

ROOT = Path(__file__).parents[2]


def config(settings: dict[str, Any] | None = None) -> TrainConfig:
    text = None if settings is None else json.dumps(settings)
    return TrainConfig(strategy="deepspeed", use_gpu=True, deepspeed_config=text)


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages(config())
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError) as refused:
        check_packages(config())
    assert str(refused.value) == (
        "--strategy deepspeed needs the package deepspeed, which is not installed; install it (pip install "
        "'deepspeed~=0.19.8'), or use --strategy fsdp"
    )


def test_the_extra_of_deepspeed_has_the_version_of_the_tables() -> None:
    (extra,) = [extra for extra in EXTRAS if extra.module == "deepspeed"]
    wanted = f"deepspeed{extra.versions}"
    assert f'deepspeed = ["{wanted}"]' in (ROOT / "pyproject.toml").read_text()
    assert wanted.replace("~=", "==") in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"zero_optimization": {"overlap_comm": "maybe"}},
         'zero_optimization.overlap_comm is "maybe"; it must be a valid boolean'),
        ({"zero_optimization": {"reduce_bucket_size": -5, "parameter_alignment": 64}},
         "zero_optimization.reduce_bucket_size is -5; it must be greater than 0 and "
         "zero_optimization.parameter_alignment is 64; it must be a valid boolean"),
        ({"zero_optimization": {"leaf_module": {"names": 3}}},
         "zero_optimization.leaf_module.names is 3; it must be a valid list"),
        ({"zero_optimization": {"prefetch_bucket_size": "many"}},
         'zero_optimization.prefetch_bucket_size is "many"; it must be a valid integer'),
        ({"tensorboard": {"enabled": "perhaps"}}, 'tensorboard.enabled is "perhaps"; it must be a valid b'),
        ({"comms_logger": {"prof_ops": 3}}, "comms_logger.prof_ops is 3; it must be a valid list"),
        ({"timers": {"throughput": {"enabled": "x"}}}, 'timers.throughput.enabled is "x"; it must be a'),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_one_sentence_in_the_driver(
    settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as refused:
        check_packages(config(settings))
    assert str(refused.value).startswith(f"--deepspeed-config: {sentence}")
    assert "\n" not in str(refused.value)


def test_a_file_that_deepspeed_accepts_passes() -> None:
    check_packages(config({"zero_optimization": {"reduce_bucket_size": 5e8}, "optimizer": None}))
