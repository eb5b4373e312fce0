"""--deepspeed-config: what a user's JSON may say, and what flags say here."""

import inspect
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from trainyard.command import parse
from trainyard.config import (
    TrainConfig,
    deepspeed_differences,
    merge_deepspeed_json,
    naming_flags,
    scaler_arguments,
)
from trainyard.config.deepspeed_keys import GROWTH_INTERVAL, KNOWN, REMOVED, defaults
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


@naming_flags()
def config(tmp_path: Path, settings: dict[str, Any], *flags: str) -> TrainConfig:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(settings))
    if not flags:  # the parser takes most of the time
        return TrainConfig(strategy="deepspeed", use_gpu=True, deepspeed_config=str(path))
    usual = ["--strategy", "deepspeed", "--use-gpu", "--deepspeed-config", str(path)]
    return parse(TrainConfig, [*usual, *flags])


def test_one_sentence_names_the_keys_of_flags_and_the_flags(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        config(tmp_path, COURSE)
    for part in (
        "train_batch_size (use --train-batch-size 10)",
        "gradient_accumulation_steps (use --per-device-train-batch-size 10)",
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
        ({"fp16": True}, 'fp16 (give an object: {"enabled": true})'),
        ({"tensorboard": True}, "tensorboard (give an object with its keys)"),
        ({"optimizer": "AdamW"}, "optimizer (give an object with its keys)"),
        ({"optimizer": {"type": "AdamW", "params": {"weight_decy": 0.1}}},
         "optimizer.params.weight_decy (did you mean weight_decay?)"),
        ({"gradient_accumulation_steps": 1}, "steps (use --per-device-train-batch-size 8)"),
        ({"gradient_accumulation_steps": 3}, "that is a multiple of 3 x --num-workers 1, and"),
        ({"gradient_accumulation_steps": "x"}, "(it needs a --train-batch-size that is"),
        ({"scheduler": {"type": ["a"]}}, "scheduler.type (use --lr-scheduler-type: constant"),
        ({"zero_optimization": {"stage": [2]}}, "zero_optimization.stage (give the number 2 or 3"),
        ({"activation_checkpointing": {"partition_activations": True}},
         "activation_checkpointing.partition_activations (use --gradient-checkpointing)"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage (use --zero-stage 3)"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}},
         "zero_optimization.offload_param.device (use --strategy fsdp --fsdp-offload)"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "(use --zero-offload cpu"),
        ({"gradient_clipping": 0.5}, "gradient_clipping (use --max-grad-norm 0.5)"),
        ({"amp": {"enabled": True}}, "amp.enabled (use --mixed-precision fp16, bf16 or no)"),
        ({"bfloat16": {"enabled": True}}, "bfloat16.enabled (use --mixed-precision fp16, bf16 or no)"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype (delete it: weights"),
        ({"communication_data_type": "fp16"}, "communication_data_type (delete it: the gradients of all"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op (delete it: the gradients of all wo"),
        ({"prescale_gradients": True}, "prescale_gradients (delete it: the gradients of all workers"),
        ({"gradient_predivide_factor": 2.0}, "gradient_predivide_factor (delete it: the gradients of"),
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation (delete it: the flags"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size (delete it: all workers share the rows"),
        ({"data_parallel_size": 4}, "data_parallel_size (use --num-workers 4)"),
        ({"compile": {"deepcompile": True}}, "compile.deepcompile (delete it: training does not compile"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel (delete it: it has no counterpart"),
        ({"data_efficiency": {"enabled": True}}, "data_efficiency (delete it: the seed alone decides the"),
        ({"elasticity": {"enabled": True}}, "elasticity (use --num-workers MIN:MAX)"),
        ({"sparse_gradients": True}, "sparse_gradients (delete it: DeepSpeed no longer has it)"),
        ({"zero_force_ds_cpu_optimizer": True}, "zero_force_ds_cpu_optimizer (delete it: the whole"),
        ({"optimizer": {"type": "Adam", "params": {"max_grad_norm": 0.5}}},
         "optimizer.params.max_grad_norm (use --max-grad-norm 0.5)"),
        ({"zero_optimization": True}, "zero_optimization (give an object with its keys, and the stage by"),
        ({"zero_optimization": None}, "zero_optimization (give an object with its keys, and the stage by"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage (use --strategy ddp, which shards"),
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage (use --zero-stage 2, which shards"),
        ({"zero_optimization": {"cpu_offload": True}}, "cpu_offload (use --zero-offload cpu or none)"),
        ({"zero_optimization": {"cpu_offload_param": True}}, "(use --strategy fsdp --fsdp-offload)"),
        ({"zero_optimization": {"offload_optimizer": "cpu"}}, "offload_optimizer (use --zero-offload cpu"),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}, "ratio (delete it: the whole step"),
        ({"zero_optimization": {"offload_optimizer": {"super_offload": True}}}, "super_offload (delete"),
        ({"zero_optimization": {"offload_param": "cpu"}}, "offload_param (use --strategy fsdp --fsdp-off"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "compute_grad_norm (delete it: gradients"),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, "zero_quantized_gradients (delete it:"),
        ({"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, "zero_optimization.zenflow (delete it:"),
        ({"zero_optimization": {"round_robin_gradients": True}},
         "zero_optimization.round_robin_gradients (delete it: checkpoints name each moment by its par"),
        ({"zero_optimization": {"mics_shard_size": 2}}, "mics_shard_size (delete it: DeepSpeed no"),
    ],
)  # fmt: skip
def test_other_values_than_the_flags_are_refused(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        config(tmp_path, settings)
    assert sentence in str(refused.value)


def test_settings_that_are_off_or_ours_are_accepted_and_not_passed_on(tmp_path: Path) -> None:
    settings = {
        "amp": {"enabled": False, "opt_level": "O1"},
        "bfloat16": {"enabled": False, "check_grad_overflow": True},
        "elasticity": {"enabled": False, "min_gpus": 2},
        "sparse_gradients": False,
        "curriculum_learning": {},
        "activation_checkpointing": {"partition_activations": False, "number_checkpoints": None},
        "optimizer": None,
        "scheduler": {"type": None},
        "tensorboard": None,
        "data_types": {"grad_accum_dtype": "fp32", "keep_in_fp32_modules": ["norm"]},
        "communication_data_type": "fp32",
        "prescale_gradients": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "zenflow": None, "zero_quantized_weights": False, "cpu_offload_param": False,
            "overlap_comm": True, "round_robin_gradients": False,
            "offload_optimizer": {"device": None}, "offload_param": {"device": None, "pin_memory": True},
        },
        "wall_clock_breakdown": True,
    }  # fmt: skip
    found = config(tmp_path, settings)
    assert deepspeed_differences(found) == []
    assert merge_deepspeed_json({}, found.deepspeed_config) == {
        "zero_optimization": {"offload_optimizer": {}, "overlap_comm": True},
        "wall_clock_breakdown": True,
    }


def test_keys_without_effect_are_named_and_not_passed_on(tmp_path: Path) -> None:
    settings = {
        "activation_checkpointing": {"partition_activations": True},
        "aio": {"block_size": 1048576},
        "checkpoint": {"tag_validation": "Warn"},
        "compile": {"debug_log": True},
        "dataloader_drop_last": True,
        "zero_optimization": {
            "stage3_gather_16bit_weights_on_model_save": True, "elastic_checkpoint": False,
        },
    }  # fmt: skip
    found = config(tmp_path, settings, "--gradient-checkpointing")
    assert deepspeed_differences(found) == [
        "warning: --deepspeed-config sets keys that have no effect here: activation_checkpointing "
        "(--gradient-checkpointing decides), aio (nothing is kept on NVMe), checkpoint (DeepSpeed writes "
        "no checkpoints), compile (training does not compile the model), dataloader_drop_last (DeepSpeed "
        "loads no rows), zero_optimization.stage3_gather_16bit_weights_on_model_save (DeepSpeed writes "
        "no checkpoints)"
    ]
    assert merge_deepspeed_json({}, found.deepspeed_config) == {"zero_optimization": {}}


HUGGING_FACE: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16,
             "hysteresis": 2, "min_loss_scale": 1},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto",
                                              "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupDecayLR", "params": {
        "warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto",
        "total_num_steps": "auto", "warmup_type": "linear"}},
    "zero_optimization": {
        "stage": 2, "offload_optimizer": {"device": "none", "pin_memory": True},
        "allgather_partitions": True, "allgather_bucket_size": 2e8, "overlap_comm": True,
        "reduce_scatter": True, "reduce_bucket_size": 2e8, "contiguous_gradients": True},
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 2000,
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}  # fmt: skip
"""The usual file of Hugging Face's documentation for ZeRO-2."""


def test_the_usual_file_of_hugging_face_trains_with_a_warning(tmp_path: Path) -> None:
    found = config(tmp_path, HUGGING_FACE, "--mixed-precision", "fp16")
    assert scaler_arguments(found.deepspeed_config) == {
        "init_scale": 65536.0,
        "growth_interval": 1000,
    }
    assert deepspeed_differences(found) == [
        "warning: --deepspeed-config sets keys that have no effect here: fp16.hysteresis (each overflow "
        "halves the loss scale), fp16.min_loss_scale (20 skipped steps in a row end the run)"
    ]
    assert deepspeed_differences(config(tmp_path, HUGGING_FACE)) == []  # no loss scale at all


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"wall_clock_breakdown": "x"}, 'wall_clock_breakdown is "x"; it must be true or false'),
        ({"flops_profiler": {"enabled": 1}}, "flops_profiler.enabled is 1; it must be true or false"),
        ({"steps_per_print": True}, "steps_per_print is true; it must be a number"),
        ({"log_level": "loud"}, 'log_level is "loud"; it must be debug, info, warning, error or critical'),
    ],
)  # fmt: skip
def test_a_value_that_deepspeed_would_not_check_is_checked(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        config(tmp_path, settings)
    assert str(refused.value) == f"--deepspeed-config: {sentence}"


def test_a_key_that_is_set_twice_is_refused() -> None:
    text = '{"zero_optimization": {"stage": 2, "overlap_comm": true, "overlap_comm": false}}'
    with pytest.raises(UserError, match="sets overlap_comm twice; delete one of the two"):
        TrainConfig(strategy="deepspeed", use_gpu=True, deepspeed_config=text)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"zero_optimisation": {"stage": 2}},
         "zero_optimisation is not a key of DeepSpeed (did you mean zero_optimization?)"),
        ({"train_batchsize": "auto", "ideas": 1},
         "--deepspeed-config: ideas is not a key of DeepSpeed (delete it), train_batchsize is not a key of "
         "DeepSpeed (did you mean train_batch_size?)"),
        ({"zero_optimization": {"reduce_bucketsize": 1}}, "(did you mean reduce_bucket_size?)"),
        ({"zero_optimization": {"offload_optimizer": {"pinned_memory": True}}},
         "zero_optimization.offload_optimizer.pinned_memory is not a key of DeepSpeed (did you mean"),
        ({"flops_profiler": {"enabld": True}}, "flops_profiler.enabld is not a key of DeepSpeed (did"),
        ({"activation_checkpointing": {"partition_activation": True}}, "(did you mean partition_act"),
        ({"data_types": {"params": "bf16"}}, "data_types.params is not a key of DeepSpeed (delete it)"),
        ({"compile": {"foo": 1}}, "compile.foo is not a key of DeepSpeed (delete it)"),
        ({"fp16": {"enable": True}}, "fp16.enable is not a key of DeepSpeed (did you mean enabled?)"),
        ({"timers": {"throughput": {"sync": True}}}, "timers.throughput.sync is not a key of DeepSpeed"),
    ],
)  # fmt: skip
def test_a_misspelled_key_is_refused_with_the_nearest_one(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        config(tmp_path, settings)
    assert sentence in str(refused.value)


def test_what_the_file_leaves_to_defaults_of_deepspeed_is_not_silently_otherwise(
    tmp_path: Path,
) -> None:
    assert deepspeed_differences(config(tmp_path, COURSE, *MEANT)) == [
        "warning: --deepspeed-config leaves out keys whose defaults in DeepSpeed are not those in use "
        "here: scheduler.params.warmup_type (log there, linear here), fp16.loss_scale_window (1000 there, "
        "2000 here), fp16.hysteresis (2 there, 1 here), fp16.min_loss_scale (1 there, 0 here)"
    ]
    course = json.loads(json.dumps(COURSE))
    course["scheduler"]["params"]["warmup_type"] = "linear"
    course["fp16"] |= {"loss_scale_window": 2000, "hysteresis": 1, "min_loss_scale": "auto"}
    assert deepspeed_differences(config(tmp_path, course, *MEANT)) == []
    assert deepspeed_differences(TrainConfig(task="demo")) == []


@pytest.mark.parametrize(
    ("settings", "flags", "sentence"),
    [
        ({"scheduler": {"type": "WarmupDecayLR"}}, [],
         ": scheduler.params.warmup_type (log there, linear here), scheduler.params.warmup_num_steps (1000 "
         "there, 0 here), scheduler.params.warmup_max_lr (0.001 there, 5e-05 here)"),
        ({"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_type": "linear"}}},
         ["--lr-scheduler-type", "cosine", "--warmup-steps", "1000"],
         ": scheduler.params.cos_min_ratio (0.0001 there, 0 here)"),
        ({"optimizer": {"type": "AdamW"}}, ["--learning-rate", "1e-3", "--weight-decay", "0.1"],
         ": optimizer.params.weight_decay (0 there, 0.1 here)"),
    ],
)  # fmt: skip
def test_each_default_that_differs_is_named(
    settings: dict[str, Any], flags: list[str], sentence: str, tmp_path: Path
) -> None:
    (warning,) = deepspeed_differences(config(tmp_path, settings, *flags))
    assert warning.endswith(f"in use here{sentence}")


class Reads(dict[str, Any]):
    """Settings that record which keys DeepSpeed looks for."""

    sought: ClassVar[set[str]] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.sought.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.sought.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self


def test_every_key_that_deepspeed_reads_is_known() -> None:
    """As of the pinned version; a new one of the next version is a decision."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime import config as theirs
    from deepspeed.runtime.activation_checkpointing.config import (
        DeepSpeedActivationCheckpointingConfig,
    )
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.swap_tensor.aio_config import get_aio_config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    theirs.DeepSpeedConfig(Reads(train_batch_size=1))
    parallel = {"data_parallel_size", "sequence_parallel_size"}  # read by deepspeed.initialize
    assert KNOWN[""] == Reads.sought | parallel | {"train_batch_size"}
    zero = DeepSpeedZeroConfig.model_fields
    aliases = {field.alias for field in zero.values() if field.alias}
    removed = theirs._REMOVED_ZERO_CONFIG_KEYS.keys()
    old = {"cpu_offload_params"}  # name of cpu_offload_param in older versions
    assert KNOWN["zero_optimization"] == {*zero, *aliases, *removed, *old}
    models = {
        "bf16": DeepSpeedBF16Config, "bfloat16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config,
        "comet": CometConfig, "csv_monitor": CSVConfig, "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig, "comms_logger": CommsLoggerConfig, "compile": CompileConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
        "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
    }  # fmt: skip
    for section, model in models.items():
        assert KNOWN[section] == model.model_fields.keys(), section
    for section, name, read in (
        ("activation_checkpointing", "activation_checkpointing", DeepSpeedActivationCheckpointingConfig),
        ("flops_profiler", "flops_profiler", DeepSpeedFlopsProfilerConfig),
        ("aio", "aio", get_aio_config),
        ("data_types", "data_types", None),
    ):  # fmt: skip
        inside = Reads()
        Reads.sought.clear()
        if read is None:
            theirs.DeepSpeedConfig({"train_batch_size": 1, name: inside})
        else:
            read({name: inside})
        old = {"thread_count"} if section == "aio" else set()
        assert KNOWN[section] == Reads.sought | old, section
    top = theirs._REMOVED_TOP_LEVEL_CONFIG_KEYS.keys() - {"amp"}
    assert set(REMOVED) == top | {f"zero_optimization.{key}" for key in removed}


def test_the_defaults_of_deepspeed_are_those_of_its_code() -> None:
    from accelerate import GradScalerKwargs
    from deepspeed.ops.adam import FusedAdam
    from deepspeed.runtime import lr_schedules
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config

    def stated(settings: dict[str, Any], function: Any) -> None:
        parameters = inspect.signature(function).parameters
        for path, value in defaults(settings, fp16=False).items():
            assert value == parameters[path.rpartition(".")[2]].default

    for name in ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR"):
        stated({"scheduler": {"type": name}}, getattr(lr_schedules, name))
    stated({"optimizer": {"type": "AdamW"}}, FusedAdam)
    params = {"torch_adam": True}
    stated({"optimizer": {"type": "AdamW", "params": params}}, torch.optim.AdamW)
    scaler = DeepSpeedFP16Config(enabled=True)
    for path, value in defaults({"fp16": {"enabled": True}}, fp16=True).items():
        assert value == getattr(scaler, path.removeprefix("fp16."))
    assert GradScalerKwargs().init_scale == 2**scaler.initial_scale_power
    assert GradScalerKwargs().growth_interval == GROWTH_INTERVAL


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
        ({"hysteresis": 0}, "fp16.hysteresis (give a whole number from 1)"),
        ({"min_loss_scale": "1"}, "fp16.min_loss_scale (give a whole number)"),
        (
            {"initial_scale_power": "16"},
            "fp16.initial_scale_power (give a whole number from 0 to 32)",
        ),
        (
            {"initial_scale_power": 33},
            "fp16.initial_scale_power (give a whole number from 0 to 32)",
        ),
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
