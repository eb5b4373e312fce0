"""--config with a file of `accelerate config`: read for what it means, or refused by name."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.config.default import write_basic_config
from transformers import TrainingArguments

from trainyard.command import parse
from trainyard.config import TrainConfig
from trainyard.config.accelerate_yaml import KEYS, LAYOUT, MARKS
from trainyard.errors import UserError

WRITTEN: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE", "debug": False, "distributed_type": "NO",
    "downcast_bf16": "no", "enable_cpu_affinity": False, "gpu_ids": "all", "machine_rank": 0,
    "main_training_function": "main", "mixed_precision": "no", "num_machines": 1,
    "num_processes": 1, "rdzv_backend": "static", "same_network": True, "tpu_env": [],
    "tpu_use_cluster": False, "tpu_use_sudo": False, "use_cpu": False,
}  # fmt: skip
"""Keys that `accelerate config` of version 1.15 always writes."""
ZERO: dict[str, Any] = {
    "distributed_type": "DEEPSPEED",
    "deepspeed_config": {
        "deepspeed_multinode_launcher": "standard", "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5, "offload_optimizer_device": "cpu", "offload_param_device": "none",
        "zero3_init_flag": False, "zero3_save_16bit_model": True, "zero_stage": 3,
    },
}  # fmt: skip
FSDP: dict[str, Any] = {
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_activation_checkpointing": True, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": True, "fsdp_offload_params": True,
        "fsdp_reshard_after_forward": True, "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_version": 2,
    },
}  # fmt: skip


def read(tmp_path: Path, settings: dict[str, Any], *flags: str) -> TrainConfig:
    path = tmp_path / "default_config.yaml"
    path.write_text(yaml.safe_dump({**WRITTEN, **settings}))
    return parse(TrainConfig, ["--config", str(path), *flags])


@pytest.mark.parametrize(
    ("settings", "meant"),
    [
        ({}, {"use_gpu": True}),
        ({"mixed_precision": "bf16"}, {"use_gpu": True, "mixed_precision": "bf16"}),
        ({"use_cpu": True}, {}),
        ({"distributed_type": False, "use_cpu": True, "fp16": False}, {}),
        ({"distributed_type": False, "mixed_precision": None, "fp16": True},
         {"use_gpu": True, "mixed_precision": "fp16"}),
        ({"mixed_precision": False, "distributed_type": "MULTI_CPU", "num_processes": 2},
         {"num_workers": 2}),
        ({"mixed_precision": "fp16", "distributed_type": "MULTI_GPU"},
         {"mixed_precision": "fp16", "use_gpu": True}),
        ({**ZERO, "mixed_precision": "bf16"},
         {"mixed_precision": "bf16", "use_gpu": True, "strategy": "deepspeed", "zero_stage": 3,
          "zero_offload": "cpu", "max_grad_norm": 0.5}),
        (FSDP, {"use_gpu": True, "strategy": "fsdp", "fsdp_offload": True,
                "gradient_checkpointing": True}),
        ({"distributed_type": "FSDP", "use_cpu": True}, {"strategy": "fsdp"}),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {
            "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "zero_stage": "auto",
            "offload_optimizer_device": "auto"}},
         {"use_gpu": True, "strategy": "deepspeed"}),
    ],
)  # fmt: skip
def test_a_file_of_accelerate_config_is_read_for_what_it_means(
    settings: dict[str, Any], meant: dict[str, Any], tmp_path: Path
) -> None:
    assert read(tmp_path, settings) == TrainConfig(**{"num_workers": 1, **meant})


@pytest.mark.parametrize("key", ["compute_environment", "num_machines", "same_network"])
def test_a_file_without_distributed_type_is_still_accelerate_s(key: str, tmp_path: Path) -> None:
    path = tmp_path / "default_config.yaml"
    path.write_text(yaml.safe_dump({"debug": False, key: WRITTEN[key]}))
    with pytest.raises(UserError) as refused:
        parse(TrainConfig, ["--config", str(path)])
    assert str(refused.value) == (
        f"{key} is a key of `accelerate config`, whose files hold distributed_type too; add it (NO, "
        f"MULTI_CPU, MULTI_GPU, FSDP or DEEPSPEED), or leave {key} out"
    )


def test_no_flag_and_no_setting_of_trainer_marks_a_file_as_accelerate_s() -> None:
    theirs = {field.name for field in fields(ClusterConfig)}
    ours = {field.name for config in (TrainConfig, TrainingArguments) for field in fields(config)}
    assert theirs >= MARKS
    assert MARKS.isdisjoint(ours)


def test_what_accelerate_config_default_writes_trains_on_the_gpu_that_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gpus, uses_gpu in ((0, False), (1, True), (2, True)):
        monkeypatch.setattr("torch.cuda.is_available", lambda gpus=gpus: gpus > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        path = write_basic_config("no", str(tmp_path / f"{gpus}.yaml"))
        found = parse(TrainConfig, ["--config", str(path)])
        assert (found.use_gpu, found.num_workers) == (uses_gpu, max(gpus, 1))


def test_later_flags_win_over_the_file(tmp_path: Path) -> None:
    found = read(tmp_path, ZERO, "--zero-stage", "2", "--mixed-precision", "fp16")
    assert (found.zero_stage, found.mixed_precision, found.zero_offload) == (2, "fp16", "cpu")


def test_it_names_the_json_of_deepspeed(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"overlap_comm": false}}')
    section = {"deepspeed_config_file": str(tmp_path / "ds.json")}
    found = read(tmp_path, {**ZERO, "deepspeed_config": section})
    assert found.deepspeed_config == '{"zero_optimization": {"overlap_comm": false}}'


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"distributed_type": "XLA"}, "distributed_type XLA is a setting of `accelerate config`: use"),
        ({"mixed_precision": "fp8"}, "mixed_precision fp8 is a setting of `accelerate config`: use --mix"),
        ({"gpu_ids": "0,1"}, "gpu_ids 0,1 is a setting of `accelerate config`: set CUDA_VISIBLE_DEVICES"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "training does not compile the model"),
        ({"megatron_lm_config": {"megatron_lm_tp_degree": 2}},
         "megatron_lm_config.megatron_lm_tp_degree of `accelerate config` has no counterpart here"),
        ({**ZERO, "deepspeed_config": {"zero_stage": 1}}, "use --zero-stage 2 or 3"),
        ({**ZERO, "deepspeed_config": {"offload_param_device": "cpu"}}, "use --strategy fsdp"),
        ({**ZERO, "deepspeed_config": {"offload_optimizer_device": "nvme"}}, "use --zero-offload"),
        ({**ZERO, "deepspeed_config": {"gradient_accumulation_steps": 2}},
         "gradient_accumulation_steps 2 is a setting of `accelerate config`: a batch here is global"),
        ({**FSDP, "fsdp_config": {"fsdp_reshard_after_forward": False}}, "--strategy fsdp always shards"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_by_name(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        read(tmp_path, settings)
    assert sentence in str(refused.value)


def test_every_key_that_accelerate_writes_is_known() -> None:
    """As of the pinned version; a new one of the next version is a decision."""
    refused = {
        "command_file", "commands", "fp8_config", "megatron_lm_config", "mpirun_config",
        "parallelism_config", "tpu_env", "tpu_name", "tpu_vm", "tpu_zone",
    }  # fmt: skip
    known = {path.split(".")[0] for path in (*KEYS, *LAYOUT)}
    assert {field.name for field in fields(ClusterConfig)} - known == refused


def test_given_to_deepspeed_config_it_is_sent_to_config(tmp_path: Path) -> None:
    path = tmp_path / "default_config.yaml"
    path.write_text(yaml.safe_dump(WRITTEN | ZERO))
    with pytest.raises(UserError, match=r"is a file of `accelerate config`; give it to --config"):
        parse(
            TrainConfig, ["--strategy", "deepspeed", "--use-gpu", "--deepspeed-config", str(path)]
        )
