"""--deepspeed-config: what a user's JSON may say, and what flags say here."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainyard.command import parse
from trainyard.config import TrainConfig, merge_deepspeed_json, scaler_arguments
from trainyard.errors import UserError

COURSE: dict[str, Any] = {
    "train_batch_size": 10,
    "gradient_accumulation_steps": 1,
    "fp16": {"enabled": True},
    "amp": {"enabled": False},
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": 0, "warmup_max_lr": 3e-5, "warmup_num_steps": 100},
    },
    "zero_optimization": {
        "stage": 2, "cpu_offload": True, "allgather_bucket_size": 5e8, "reduce_bucket_size": 5e8,
    },
}  # fmt: skip
MEANT = [
    "--train-batch-size", "10", "--per-device-train-batch-size", "5", "--num-workers", "2",
    "--mixed-precision", "fp16", "--zero-offload", "cpu", "--warmup-steps", "100",
    "--lr-scheduler-type", "constant_with_warmup", "--learning-rate", "3e-5",
]  # fmt: skip


def config(tmp_path: Path, settings: dict[str, Any], *flags: str) -> TrainConfig:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(settings))
    usual = ["--strategy", "deepspeed", "--use-gpu", "--deepspeed-config", str(path)]
    return parse(TrainConfig, [*usual, *flags])


def test_one_sentence_names_the_keys_of_flags_and_the_flags(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        config(tmp_path, COURSE)
    for part in (
        "train_batch_size (use --train-batch-size 10)",
        "gradient_accumulation_steps (use --per-device-train-batch-size of",
        "fp16.enabled (use --mixed-precision fp16, bf16 or no)",
        "zero_optimization.cpu_offload (use --zero-offload cpu or none)",
        "scheduler.type (use --lr-scheduler-type: constant_with_warmup is WarmupLR, linear is",
        "scheduler.params.warmup_num_steps (use --warmup-steps 100)",
        "scheduler.params.warmup_max_lr (use --learning-rate 3e-05)",
        "; keys that agree with the flags may stay",
    ):
        assert part in str(refused.value)
    assert "amp" not in str(refused.value)


def test_with_the_flags_the_file_is_merged_over_our_settings(tmp_path: Path) -> None:
    text = config(tmp_path, COURSE, *MEANT).deepspeed_config
    ours = {
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    }
    assert merge_deepspeed_json(ours, text) == {
        "gradient_clipping": 1.0,
        "zero_optimization": {
            "stage": 2, "offload_optimizer": {"device": "cpu"},
            "allgather_bucket_size": 5e8, "reduce_bucket_size": 5e8,
        },
    }  # fmt: skip


def test_a_run_is_named_by_the_content_of_the_file(tmp_path: Path) -> None:
    first = config(tmp_path, {"zero_optimization": {"reduce_bucket_size": 1e6}})
    (tmp_path / "elsewhere").mkdir()
    same = config(tmp_path / "elsewhere", {"zero_optimization": {"reduce_bucket_size": 1e6}})
    other = config(tmp_path, {"zero_optimization": {"reduce_bucket_size": 2e6}})
    assert first.resolved_run_name == same.resolved_run_name != other.resolved_run_name
    assert not same.changed_since({**vars(first)})


def test_values_for_hugging_face_to_fill_in_are_ours(tmp_path: Path) -> None:
    settings = {
        "train_batch_size": "auto",
        "zero_optimization": {"reduce_bucket_size": "auto", "overlap_comm": False},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
    }
    text = config(tmp_path, settings).deepspeed_config
    assert merge_deepspeed_json({}, text) == {"zero_optimization": {"overlap_comm": False}}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type (delete `optimizer`: it is torch's AdamW)"),
        ({"optimizer": {"type": "Adam", "params": {"lr": 1e-4}}}, "params.lr (use --learning-rate 0.0001)"),
        ({"optimizer": {"type": "Adam", "params": {"betas": [0.8, 0.999]}}}, "params.betas (delete it:"),
        ({"optimizer": {"type": "Adam", "params": {"momentum": 0.9}}}, "momentum (delete it: it has no"),
        ({"scheduler": {"type": "OneCycle"}}, "scheduler.type (use --lr-scheduler-type: constant"),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 90}}},
         "scheduler.params.total_num_steps (use --max-steps 90)"),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_type": "log"}}}, "warm-up is linear)"),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_min_lr": 1e-6}}}, "warm-up begins,"),
        ({"bf16": {"enabled": True}}, "bf16.enabled (use --mixed-precision fp16, bf16 or no)"),
        ({"fp16": True}, "fp16 (delete it: it has no counterpart here)"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage (use --zero-stage 3)"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}},
         "zero_optimization.offload_param.device (use --strategy fsdp --fsdp-offload)"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "(use --zero-offload cpu"),
        ({"gradient_clipping": 0.5}, "gradient_clipping (use --max-grad-norm 0.5)"),
        ({"amp": {"enabled": True}}, "amp.enabled (use --mixed-precision fp16, bf16 or no)"),
    ],
)  # fmt: skip
def test_other_values_than_the_flags_are_refused(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        config(tmp_path, settings)
    assert sentence in str(refused.value)


SCALER: dict[str, Any] = {
    "enabled": True, "loss_scale": 0, "initial_scale_power": 12, "loss_scale_window": 500,
    "hysteresis": 1, "auto_cast": False,
}  # fmt: skip


def test_the_loss_scale_of_a_file_is_torch_s(tmp_path: Path) -> None:
    text = config(tmp_path, {"fp16": SCALER}, "--mixed-precision", "fp16").deepspeed_config
    assert scaler_arguments(text) == {"init_scale": 4096.0, "growth_interval": 500}
    assert merge_deepspeed_json({}, text) == {}
    off = config(tmp_path, {"fp16": False}).deepspeed_config
    assert scaler_arguments(off) == {}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"loss_scale": 128}, "fp16.loss_scale (delete it: the loss scale is dynamic)"),
        ({"hysteresis": 2}, "fp16.hysteresis (delete it: each overflow halves the loss scale)"),
        (
            {"min_loss_scale": 1},
            "fp16.min_loss_scale (delete it: 20 overflows in a row end the run",
        ),
        ({"initial_scale_power": "16"}, "fp16.initial_scale_power (give a whole number)"),
        ({"loss_scale_window": 0}, "fp16.loss_scale_window (give a whole number from 1)"),
        ({"auto_cast": True}, "fp16.auto_cast (delete it: it has no counterpart here)"),
    ],
)
def test_other_settings_of_fp16_are_refused_where_it_is_used(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    settings = {"fp16": {"enabled": "auto", **settings}}
    with pytest.raises(UserError) as refused:
        config(tmp_path, settings, "--mixed-precision", "fp16")
    assert sentence in str(refused.value)
    config(tmp_path, settings, "--mixed-precision", "bf16")


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_file_of_another_kind_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"--deepspeed-config .*bad\.json"):
        parse(
            TrainConfig, ["--strategy", "deepspeed", "--use-gpu", "--deepspeed-config", str(path)]
        )
