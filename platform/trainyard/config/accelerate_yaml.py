"""Translation of `accelerate config` files, as given to --config, into Trainyard flags."""

from collections.abc import Mapping
from typing import Any

from trainyard.config.aliases import COMPILE, SHARING, Alias, meaning
from trainyard.config.deepspeed_json import leaves
from trainyard.errors import UserError

OFF: Mapping[str, tuple[str, ...]] = {"no": (), "none": (), "false": ()}
PRECISION = "use --mixed-precision no, bf16 or fp16"
ELSEWHERE = "`trainyard` runs on Ray's cluster; leave this key out"
WHOLE = "--strategy fsdp always shards weights, gradients and optimizer state; leave this key out"

KEYS: dict[str, Alias] = {
    "compute_environment": Alias(ELSEWHERE, values={"local_machine": ()}),
    "distributed_type": Alias(
        SHARING,
        values={
            # One process: on the GPU, unless use_cpu says otherwise. YAML reads a bare NO as false.
            "no": ("--use-gpu",), "false": ("--use-gpu",),
            "multi_cpu": ("--no-use-gpu",), "multi_gpu": ("--use-gpu",),
            "fsdp": ("--use-gpu", "--strategy", "fsdp"),
            "deepspeed": ("--use-gpu", "--strategy", "deepspeed"),
        },
    ),
    "use_cpu": Alias(values={"true": ("--no-use-gpu",), "false": ()}),
    "num_processes": Alias(same_as="--num-workers"),
    "fp16": Alias(PRECISION, values={"true": ("--mixed-precision", "fp16"), "false": ()}),
    "mixed_precision": Alias(
        PRECISION,
        values={"false": (), **{name: ("--mixed-precision", name) for name in ("no", "bf16", "fp16")}},
    ),
    "gpu_ids": Alias("set CUDA_VISIBLE_DEVICES where Ray starts", values={"all": ()}),
    "downcast_bf16": Alias(ELSEWHERE, values=OFF),
    "tpu_use_cluster": Alias(ELSEWHERE, values=OFF),
    "tpu_use_sudo": Alias(ELSEWHERE, values=OFF),
    "dynamo_backend": Alias(COMPILE, values=OFF),
    "dynamo_config.dynamo_backend": Alias(COMPILE, values=OFF),
    "deepspeed_config.deepspeed_config_file": Alias(same_as="--deepspeed-config"),
    "deepspeed_config.zero_stage": Alias(
        "use --zero-stage 2 or 3", values={stage: ("--zero-stage", stage) for stage in ("2", "3")}
    ),
    "deepspeed_config.offload_optimizer_device": Alias(
        "use --zero-offload none or cpu", values={**OFF, "cpu": ("--zero-offload", "cpu")}
    ),
    "deepspeed_config.offload_param_device": Alias("use --strategy fsdp --fsdp-offload", values=OFF),
    "deepspeed_config.gradient_clipping": Alias(same_as="--max-grad-norm"),
    "deepspeed_config.gradient_accumulation_steps": Alias(
        "a batch here is global; use --train-batch-size, of which --per-device-train-batch-size is one "
        "forward pass", values={"1": ()},
    ),
    "fsdp_config.fsdp_offload_params": Alias(values={"true": ("--fsdp-offload",), "false": ()}),
    "fsdp_config.fsdp_activation_checkpointing": Alias(
        values={"true": ("--gradient-checkpointing",), "false": ()}
    ),
    "fsdp_config.fsdp_sharding_strategy": Alias(WHOLE, values={"full_shard": (), "1": ()}),
    "fsdp_config.fsdp_reshard_after_forward": Alias(WHOLE, values={"true": (), "full_shard": ()}),
}  # fmt: skip
"""Translations by dotted key path, in the order of the resulting flags: later flags win."""
LAYOUT = {
    "debug", "enable_cpu_affinity", "machine_rank", "main_process_ip", "main_process_port",
    "main_training_function", "num_machines", "rdzv_backend", "same_network",
    "deepspeed_config.deepspeed_multinode_launcher", "deepspeed_config.deepspeed_hostfile",
    "deepspeed_config.zero3_init_flag", "deepspeed_config.zero3_save_16bit_model",
    "fsdp_config.fsdp_version", "fsdp_config.fsdp_auto_wrap_policy",
    "fsdp_config.fsdp_transformer_layer_cls_to_wrap", "fsdp_config.fsdp_min_num_params",
    "fsdp_config.fsdp_backward_prefetch", "fsdp_config.fsdp_forward_prefetch",
    "fsdp_config.fsdp_state_dict_type", "fsdp_config.fsdp_use_orig_params",
    "fsdp_config.fsdp_cpu_ram_efficient_loading", "fsdp_config.fsdp_sync_module_states",
}  # fmt: skip
"""Ignored keys about process launch, memory layout and checkpoint layout.

Ray and the strategy decide these, and no result depends on the keys.
"""


MARKS = {
    "compute_environment", "distributed_type", "downcast_bf16", "dynamo_config",
    "enable_cpu_affinity", "fp8_config", "machine_rank", "main_process_ip", "main_process_port",
    "main_training_function", "megatron_lm_config", "mpirun_config", "num_machines", "rdzv_backend",
    "same_network", "tpu_use_cluster", "tpu_use_sudo",
}  # fmt: skip
"""Keys that occur in files of `accelerate config` only."""


def is_accelerate(fields: Any) -> bool:
    """Return whether `fields`, the content of a --config file, are from `accelerate config`."""
    return isinstance(fields, Mapping) and not MARKS.isdisjoint(fields)


def accelerate_flags(fields: Mapping[str, Any]) -> list[str]:
    """Translate the content of an `accelerate config` file into flags.

    Empty values are skipped, and those of DeepSpeed that are `auto`: the flags decide.

    Raises:
        UserError: `distributed_type` is missing, a key is unknown, or its value has no equivalent
            flag.
    """
    if "distributed_type" not in fields:
        mark = min(MARKS & fields.keys())
        raise UserError(
            f"{mark} is a key of `accelerate config`, whose files hold distributed_type too; add it (NO, "
            f"MULTI_CPU, MULTI_GPU, FSDP or DEEPSPEED), or leave {mark} out"
        )
    found = {path: value for path, value in leaves(fields) if value not in (None, [], "")}
    if odd := sorted(found.keys() - KEYS.keys() - LAYOUT):
        raise UserError(
            f"{', '.join(odd)} of `accelerate config` has no counterpart here; leave the key out"
        )
    flags: list[str] = []
    for path, alias in KEYS.items():
        is_auto = path.startswith("deepspeed_config.") and found.get(path) == "auto"
        if path in found and not is_auto:
            flags += meaning(path, alias, str(found[path]), source="`accelerate config`")
    return flags
