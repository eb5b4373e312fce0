"""Keys of DeepSpeed's JSON: those that flags control, that have no counterpart, and all others."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any


@dataclass(frozen=True)
class Owned:
    """Key that flags control: accepted if it agrees with the flags, never passed to DeepSpeed."""

    agrees: Callable[[Any, Any], bool]
    """Called with a `TrainConfig` and the key's value; returns whether the two agree."""
    instead: str | Callable[[Any, Any], str]
    """Advice in the error: a flag, with `{value}` for the key's value, or why to delete the key.
    A function receives a `TrainConfig` and the key's value, and returns the advice."""
    here: Callable[[Any], Any] | None = None
    """Called with a `TrainConfig`; returns the value in use here. None: not one value."""

    def advice(self, config: Any, value: Any) -> str:
        """Return the advice for a value that does not agree with the flags of `config`."""
        return (
            self.instead.format(value=value)
            if isinstance(self.instead, str)
            else self.instead(config, value)
        )


def _field(name: str, instead: str | Callable[[Any, Any], str]) -> Owned:
    return Owned(
        lambda config, value: value == getattr(config, name),
        instead,
        lambda config: getattr(config, name),
    )


def _only(only: Any, instead: str) -> Owned:
    return Owned(lambda _, value: value == only, instead, lambda _: only)


def _among(*values: Any, instead: str) -> Owned:
    return Owned(lambda _, value: value in values, instead)


def _precision(name: str) -> Owned:
    return Owned(lambda config, value: value == (config.mixed_precision == name), PRECISION)


def _is_count(least: int, most: float = inf) -> Callable[[Any, Any], bool]:
    return lambda _, value: type(value) is int and least <= value <= most


def _stage(_: Any, value: Any) -> str:
    if type(value) is not int:
        return "give the number 2 or 3, and --zero-stage of the same"
    others = {
        0: "use --strategy ddp, which shards nothing",
        1: "use --zero-stage 2, which shards gradients too",
    }
    return others.get(value, f"use --zero-stage {value}")


def _accumulation(config: Any, value: Any) -> str:
    """Return the flag that gives `value` micro-batches of a worker in a step, of the file's size."""
    batch = json.loads(config.deepspeed_config).get("train_batch_size")
    batch = batch if type(batch) is int else config.train_batch_size
    workers = config.worker_range()[1]
    if type(value) is int and value > 0 and batch % (value * workers) == 0:
        return f"use --per-device-train-batch-size {batch // (value * workers)}"
    return (
        f"it needs a --train-batch-size that is a multiple of {value} x --num-workers {workers}, and "
        f"--per-device-train-batch-size of --train-batch-size / ({value} x {workers})"
    )


LARGEST_POWER = 32
"""Power of two of the largest initial loss scale: DeepSpeed's default in older versions."""
PRECISION = "use --mixed-precision fp16, bf16 or no"
OFFLOAD = "use --zero-offload cpu or none"
PARAMETERS = "use --strategy fsdp --fsdp-offload"
LEARNING_RATE = "use --learning-rate {value}"
ADAMW = "delete it: the optimizer is torch's AdamW with its defaults"
OFFLOADED = "delete it: the whole step on the CPU is torch's AdamW"
ENDS = "delete it: warm-up begins, and a schedule ends, at 0"
FP32 = "delete it: weights, gradients and their sums are in fp32"
SUMS = "delete it: the gradients of all workers are summed in fp32, without other factors"
ONE_DIMENSION = "delete it: all workers share the rows of a step"
NO_COUNTERPART = "delete it: it has no counterpart here"
NOT_COMPILED = "training does not compile the model"
SCHEDULES = {
    "WarmupLR": "constant_with_warmup",
    "WarmupDecayLR": "linear",
    "WarmupCosineLR": "cosine",
}
OWNED: dict[str, Owned] = {
    "train_batch_size": _field("train_batch_size", "use --train-batch-size {value}"),
    "train_micro_batch_size_per_gpu": _field(
        "per_device_train_batch_size", "use --per-device-train-batch-size {value}"
    ),
    "gradient_accumulation_steps": Owned(
        lambda c, value: value == c.micro_batches_per_step / c.worker_range()[1],
        _accumulation,
    ),
    "managed_gradient_accumulation": _only(True, "delete it: the flags of batches decide on steps"),
    "gradient_clipping": _field("max_grad_norm", "use --max-grad-norm {value}"),
    "prescale_gradients": _only(False, SUMS),
    "gradient_predivide_factor": _only(1, SUMS),
    "gradient_allreduce_op": _only("mean", SUMS),
    "communication_data_type": _among(None, "fp32", instead=SUMS),
    "seq_parallel_communication_data_type": _among(None, "fp32", instead=SUMS),
    "sequence_parallel_size": _only(1, ONE_DIMENSION),
    "data_parallel_size": Owned(
        lambda c, value: value == c.worker_range()[1], "use --num-workers {value}"
    ),
    "data_types.grad_accum_dtype": _among(None, "fp32", "float32", instead=FP32),
    "data_types.param_dtype": _among(None, "fp32", "float32", instead=FP32),
    "data_types.buffer_dtype": _among(None, "fp32", "float32", instead=FP32),
    "data_types.keep_in_fp32_modules": Owned(lambda *_: True, ""),
    "compile.deepcompile": _only(False, f"delete it: {NOT_COMPILED}"),
    **dict.fromkeys(
        (
            "activation_checkpointing.partition_activations",
            "activation_checkpointing.cpu_checkpointing",
            "activation_checkpointing.contiguous_memory_optimization",
        ),
        Owned(
            lambda c, value: not value or c.gradient_checkpointing, "use --gradient-checkpointing"
        ),
    ),
    "fp16.enabled": _precision("fp16"),
    "fp16.loss_scale": _only(0, "delete it: the loss scale is dynamic"),
    "fp16.initial_scale_power": Owned(
        _is_count(0, LARGEST_POWER), f"give a whole number from 0 to {LARGEST_POWER}"
    ),
    "fp16.loss_scale_window": Owned(
        _is_count(1), "give a whole number from 1", lambda _: GROWTH_INTERVAL
    ),
    "fp16.hysteresis": Owned(_is_count(1), "give a whole number from 1", lambda _: 1),
    "fp16.min_loss_scale": Owned(_is_count(0), "give a whole number", lambda _: 0),
    "bf16.enabled": _precision("bf16"),
    "bfloat16.enabled": _precision("bf16"),
    "amp.enabled": _precision("amp"),
    "torch_autocast.enabled": _precision("torch_autocast"),
    "zero_optimization.stage": _field("zero_stage", _stage),
    "zero_optimization.cpu_offload": Owned(
        lambda c, value: value == (c.zero_offload == "cpu"), OFFLOAD
    ),
    "zero_optimization.offload_optimizer.device": Owned(
        lambda c, value: ("none" if value is None else value) == c.zero_offload, OFFLOAD
    ),
    "zero_optimization.offload_optimizer.ratio": _only(1, OFFLOADED),
    "zero_optimization.offload_optimizer.super_offload": _only(False, OFFLOADED),
    "zero_optimization.cpu_offload_param": _among(None, False, instead=PARAMETERS),
    "zero_optimization.cpu_offload_params": _among(None, False, instead=PARAMETERS),
    "zero_optimization.offload_param.device": _among(None, "none", instead=PARAMETERS),
    "zero_optimization.compute_grad_norm": _only(
        True, "delete it: gradients are clipped by --max-grad-norm"
    ),
    "zero_optimization.zero_quantized_weights": _only(False, FP32),
    "zero_optimization.zero_quantized_nontrainable_weights": _only(False, FP32),
    "zero_optimization.zero_quantized_gradients": _only(False, SUMS),
    "zero_allow_untested_optimizer": Owned(lambda *_: True, ""),
    "zero_force_ds_cpu_optimizer": _only(False, OFFLOADED),
    "optimizer.type": Owned(
        lambda _, value: value is None or str(value).lower() in ("adam", "adamw"),
        "delete `optimizer`: it is torch's AdamW",
    ),
    "optimizer.params.lr": _field("learning_rate", LEARNING_RATE),
    "optimizer.params.weight_decay": _field("weight_decay", "use --weight-decay {value}"),
    "optimizer.params.max_grad_norm": _field("max_grad_norm", "use --max-grad-norm {value}"),
    "optimizer.params.betas": _only([0.9, 0.999], ADAMW),
    "optimizer.params.eps": _only(1e-8, ADAMW),
    "optimizer.params.adam_w_mode": _only(True, ADAMW),
    "optimizer.params.bias_correction": _only(True, ADAMW),
    "optimizer.params.torch_adam": Owned(lambda *_: True, ""),
    "scheduler.type": Owned(
        lambda c, value: value is None or SCHEDULES.get(str(value)) == c.lr_scheduler_type,
        "use --lr-scheduler-type: "
        + ", ".join(f"{ours} is {theirs}" for theirs, ours in SCHEDULES.items()),
    ),
    "scheduler.params.warmup_max_lr": _field("learning_rate", LEARNING_RATE),
    "scheduler.params.warmup_num_steps": _field("warmup_steps", "use --warmup-steps {value}"),
    "scheduler.params.total_num_steps": _field("max_steps", "use --max-steps {value}"),
    "scheduler.params.warmup_type": _only("linear", "delete it: warm-up is linear"),
    "scheduler.params.warmup_min_lr": _only(0, ENDS),
    "scheduler.params.warmup_min_ratio": _only(0, ENDS),
    "scheduler.params.cos_min_ratio": _only(0, ENDS),
}
"""Controlled keys by dotted path, such as `fp16.enabled`; each old spelling has a row."""
GROWTH_INTERVAL = 2000
"""Steps without overflow after which the loss scale doubles: default of torch's GradScaler."""
NOWHERE = Owned(lambda *_: False, NO_COUNTERPART)
PRECISIONS = {
    "fp16": "fp16", "bf16": "bf16", "bfloat16": "bf16", "amp": "amp",
    "torch_autocast": "torch_autocast",
}  # fmt: skip
"""Sections of precisions with the value of --mixed-precision at which their keys have an effect."""
SECTIONS = ("optimizer", "scheduler", "data_types", *PRECISIONS)
"""Sections that are never passed to DeepSpeed.

A key outside `OWNED` is refused, unless it is false or the precision of its section is off.
"""
OBJECTS: dict[str, Owned] = {
    **dict.fromkeys(
        PRECISIONS,
        Owned(lambda _, value: value in (None, False), 'give an object: {{"enabled": true}}'),
    ),
    "zero_optimization": Owned(
        lambda *_: False, "give an object with its keys, and the stage by --zero-stage 2 or 3"
    ),
    "zero_optimization.offload_optimizer": Owned(
        lambda c, value: value is None and c.zero_offload == "none", OFFLOAD
    ),
    "zero_optimization.offload_param": Owned(lambda _, value: value is None, PARAMETERS),
}
"""Objects by dotted path, checked where another value stands in their place."""
AN_OBJECT = Owned(lambda _, value: value is None, "give an object with its keys")
"""Check of another value in the place of any other section of `KNOWN`."""
REMOVED = (
    "compression_training", "curriculum_learning", "eigenvalue", "elasticity", "graph_harvesting",
    "nebula", "progressive_layer_drop", "quantize_training", "sparse_attention", "sparse_gradients",
    "zero_optimization.mics_hierarchical_params_gather", "zero_optimization.mics_shard_size",
    "zero_optimization.zeropp_loco_param",
)  # fmt: skip
"""Keys of older versions, at which DeepSpeed 0.19.8 fails, whatever their value."""
FOREIGN: dict[str, str] = {
    **dict.fromkeys(REMOVED, "delete it: DeepSpeed no longer has it"),
    "elasticity": "use --num-workers MIN:MAX",
    "autotuning": NO_COUNTERPART,
    "data_efficiency": "delete it: the seed alone decides the order of rows",
    "expert_parallel": NO_COUNTERPART,
    "hybrid_engine": NO_COUNTERPART,
    "tensor_parallel": NO_COUNTERPART,
    "weight_quantization": FP32,
    "zero_optimization.round_robin_gradients": "delete it: checkpoints name each moment by its parameter, "
    "and DeepSpeed does not say which one a moment in this order belongs to",
    "zero_optimization.zenflow": "delete it: a step uses the gradients of no other step",
}
"""Keys that would change what is computed or stored, with the advice; dropped where they are off."""
OWN_CHECKPOINTS = "DeepSpeed writes no checkpoints"
NO_NVME = "nothing is kept on NVMe"
WITHOUT_EFFECT: dict[str, str] = {
    "activation_checkpointing": "--gradient-checkpointing decides",
    "aio": NO_NVME,
    "checkpoint": OWN_CHECKPOINTS,
    "compile": NOT_COMPILED,
    "dataloader_drop_last": "DeepSpeed loads no rows",
    "datastates_ckpt": OWN_CHECKPOINTS,
    "disable_allgather": "DeepSpeed no longer reads it",
    "fp16.hysteresis": "each overflow halves the loss scale",
    "fp16.min_loss_scale": "20 skipped steps in a row end the run",
    "pipeline": "all workers share the rows of a step",
    "use_data_before_expert_parallelism": "all workers share the rows of a step",
    **{
        f"zero_optimization.{key}": OWN_CHECKPOINTS
        for key in (
            "elastic_checkpoint", "gather_16bit_weights_on_model_save", "legacy_stage1",
            "load_from_fp32_weights", "pipeline_loading_checkpoint",
            "stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save",
        )
    },
    "zero_optimization.cpu_offload_use_pin_memory": "DeepSpeed no longer reads it",
    "zero_optimization.save_muon_momentum_buffer_in_memory": "the optimizer is torch's AdamW",
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": "the optimizer is torch's AdamW",
    **{
        f"zero_optimization.offload_optimizer.{key}": NO_NVME
        for key in ("buffer_count", "fast_init", "nvme_path", "pipeline_read", "pipeline_write")
    },
}  # fmt: skip
"""Keys and sections that are accepted with a warning, and why they have no effect."""
DROPPED = (*OWNED, *SECTIONS, *FOREIGN, *WITHOUT_EFFECT, "zero_optimization.offload_param")
"""Keys that are never passed to DeepSpeed."""
_PASSED = (
    "comet", "comms_logger", "csv_monitor", "disable_python_gc", "dump_state", "flops_profiler",
    "log_level", "memory_breakdown", "steps_per_print", "tensorboard", "timers", "vocabulary_size",
    "wall_clock_breakdown", "wandb",
)  # fmt: skip
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        (
            "disable_python_gc", "dump_state", "flops_profiler.detailed", "flops_profiler.enabled",
            "memory_breakdown", "wall_clock_breakdown",
        ),
        (lambda value: isinstance(value, bool), "true or false"),
    ),
    **dict.fromkeys(
        (
            "flops_profiler.module_depth", "flops_profiler.profile_step",
            "flops_profiler.recompute_fwd_factor", "flops_profiler.top_modules", "steps_per_print",
            "vocabulary_size",
        ),
        (_is_number, "a number"),
    ),
    "log_level": (
        lambda value: value is None or str(value).lower() in LOG_LEVELS,
        f"{', '.join(LOG_LEVELS[:-1])} or {LOG_LEVELS[-1]}",
    ),
}  # fmt: skip
"""Checks and kinds of the values that DeepSpeed passes on without a check."""
_ZERO = (
    "allgather_bucket_size", "allgather_partitions", "allgather_sequential", "contiguous_gradients",
    "enable_sanity_checks", "ignore_unused_parameters", "leaf_module", "log_trace_cache_warnings",
    "max_live_parameters", "max_reuse_distance", "memory_efficient_linear",
    "model_persistence_threshold", "module_granularity_threshold", "overlap_comm",
    "override_module_apply", "param_persistence_threshold", "parameter_alignment",
    "prefetch_bucket_size", "reduce_bucket_size", "reduce_scatter", "stage3_allgather_sequential",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_model_persistence_threshold",
    "stage3_module_granularity_threshold", "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size", "stage3_use_all_reduce_for_fetch_params", "sub_group_size",
    "use_all_reduce_for_fetch_params", "use_multi_rank_bucket_allreduce", "zero_hpz_partition_size",
)  # fmt: skip
_BF16 = (
    "bf16_master_weights_and_grads", "bf16_optimizer_states", "check_grad_overflow", "enabled",
    "immediate_grad_update",
)  # fmt: skip
_MONITOR = ("enabled", "job_name", "output_path")
_INSIDE: dict[str, tuple[str, ...]] = {
    "": _PASSED,
    "activation_checkpointing": (
        "number_checkpoints", "profile", "synchronize_checkpoint_boundary",
    ),
    "aio": (
        "block_size", "intra_op_parallelism", "overlap_events", "queue_depth", "single_submit",
        "thread_count", "use_gds",
    ),
    "bf16": _BF16,
    "bfloat16": _BF16,
    "checkpoint": (
        "checkpoint_serialization", "load_universal", "parallel_write", "tag_validation",
        "use_node_local_storage", "writer",
    ),
    "comet": (
        "api_key", "enabled", "experiment_key", "experiment_name", "mode", "online", "project",
        "samples_log_interval", "workspace",
    ),
    "comms_logger": ("debug", "enabled", "prof_all", "prof_ops", "verbose"),
    "compile": (
        "autoep_non_moe", "debug_log", "double_buffer", "free_activation", "free_activation_threshold",
        "keep_all_input_tensors", "keep_int_input_tensors", "offload_activation",
        "offload_activation_pin_memory", "offload_opt_states", "offload_parameters", "passes",
        "symmetric_memory", "sync_after_allgather", "sync_after_reduce", "sync_before_allgather",
        "sync_before_reduce",
    ),
    "csv_monitor": _MONITOR,
    "data_types": (),
    "flops_profiler": (
        "detailed", "enabled", "module_depth", "output_file", "profile_step", "recompute_fwd_factor",
        "top_modules",
    ),
    "fp16": ("auto_cast", "consecutive_hysteresis", "fp16_master_weights_and_grads"),
    "optimizer": ("legacy_fusion",),
    "scheduler": (),
    "tensorboard": _MONITOR,
    "timers": ("throughput",),
    "timers.throughput": ("enabled", "synchronized"),
    "torch_autocast": ("dtype", "lower_precision_safe_modules"),
    "wandb": ("enabled", "group", "project", "team"),
    "zero_optimization": _ZERO,
    "zero_optimization.leaf_module": ("classes", "name_suffixes", "names"),
    "zero_optimization.offload_optimizer": ("pin_memory",),
    "zero_optimization.offload_param": (
        "buffer_count", "buffer_size", "max_in_cpu", "nvme_path", "pin_memory",
    ),
}  # fmt: skip
"""Keys by section that are in no other table."""


def _names(section: str, others: tuple[str, ...]) -> frozenset[str]:
    """Return the keys of a section: those of the tables above, and `others`."""
    inside = f"{section}." if section else ""
    listed = (*OWNED, *OBJECTS, *FOREIGN, *SECTIONS, *WITHOUT_EFFECT)
    return frozenset(
        (
            *others,
            *(
                path.removeprefix(inside).split(".")[0]
                for path in listed
                if path.startswith(inside)
            ),
        )
    )


KNOWN: Mapping[str, frozenset[str]] = {
    section: _names(section, others) for section, others in _INSIDE.items()
}
"""Keys of DeepSpeed 0.19.8 and older versions by section; DeepSpeed ignores an unknown section."""


def defaults(settings: Mapping[str, Any], *, fp16: bool) -> dict[str, Any]:
    """Return DeepSpeed's defaults, by dotted path, for the keys that `settings` can leave out.

    Only sections that are used count: a scheduler or optimizer with a type, and `fp16` if `fp16`.
    """
    found: dict[str, Any] = {}
    scheduler, optimizer = settings.get("scheduler") or {}, settings.get("optimizer") or {}
    if kind := scheduler.get("type"):
        found["scheduler.params.warmup_type"] = "log"
        found["scheduler.params.warmup_num_steps"] = 1000
        if kind == "WarmupDecayLR":
            found["scheduler.params.warmup_max_lr"] = 0.001
        if kind == "WarmupCosineLR":
            found["scheduler.params.cos_min_ratio"] = 0.0001
    if optimizer.get("type"):
        is_torch = (optimizer.get("params") or {}).get("torch_adam", False)
        found["optimizer.params.lr"] = 0.001
        found["optimizer.params.weight_decay"] = 0.01 if is_torch else 0
    if fp16 and settings.get("fp16"):
        found["fp16.loss_scale_window"] = 1000
        found["fp16.hysteresis"] = 2
        found["fp16.min_loss_scale"] = 1
    return found
