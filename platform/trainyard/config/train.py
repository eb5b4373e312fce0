"""Config of a training run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trainyard.config.deepspeed_json import check_deepspeed_json, read_deepspeed_json
from trainyard.config.flags import (
    DataFlags,
    RunFlags,
    ScoringFlags,
    WorkerFlags,
    added,
    check_precision,
    flag,
    recorded,
    sha256_of,
)
from trainyard.errors import UserError
from trainyard.tasks import Task

GPU_STRATEGIES = ("deepspeed",)
"""Strategies that need GPUs."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunFlags, WorkerFlags, ScoringFlags, DataFlags):
    """Fine-tune a pretrained encoder on a GLUE task or on your own files.

    Every field is a flag (`learning_rate` is --learning-rate). --config FILE.yaml reads a file as
    more flags; later flags win. The same config and data give the same losses on 1, 2, 4 or 8 CPU
    workers, interrupted or not. The docs' page "How it works" has the conditions.
    """

    max_train_samples: int | None = None
    """Train on the first N rows. The task `demo` generates N rows."""
    test_file: str | None = added(None, before=None)
    """Own data: rows that take no part in early stopping or in the choice of the best epoch. They are
    scored once, at the best epoch, as split `test`."""
    test_share: float = added(0.0, before=0.0)
    """Share of each evaluation split that is set aside like --test-file, as split NAME_test. The rest
    chooses the epoch. The choice of rows depends only on the data."""

    init: Literal["pretrained", "random"] = added("pretrained", before="pretrained")
    """Initial weights: those of the model, or random ones of its architecture (--seed)."""

    metrics: tuple[str, ...] = added((), before=())
    """Further metrics by name, such as roc_auc, log_loss or balanced_accuracy."""
    metric_for_best_model: str | None = added(None, before=None)
    """Metric for the best epoch and for early stopping. Default: the task's headline metric."""
    class_weights: Literal["balanced"] | Mapping[str, float] | None = added(None, before=None)
    """Weights of the classes in the loss: `balanced`, or as in --class-weights spam 2 ham 0.5. With one
    label a row, they are scaled to mean 1 over the training rows."""
    dropout: float | None = added(None, before=None)
    """Dropout probability of every dropout layer in training. 0 suits runs of a few epochs. Default: as
    in the model's config."""
    dropout_version: Literal[1, 2] | None = recorded(before=1, now=2)
    """Random generator of the dropout masks on CPUs: PyTorch's (1) or a faster one (2). Default: the
    one that the run started with; 2 for a new run."""
    label_smoothing_factor: float = added(0.0, before=0.0)
    """Share of each target that is spread over all labels, in training only."""

    label_thresholds: Literal["0.5", "fitted"] = added("0.5", before="0.5")
    """Multi-label: minimum probability for a label to apply: 0.5, or fitted to maximize each label's F1
    on the evaluation rows. Their own score is then cross-fitted. Predictions and serving use the
    thresholds too."""

    learning_rate: float = 5e-5
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay, not applied to biases and norms."""
    num_train_epochs: int = 3
    """Passes over the training rows."""
    max_steps: int | None = None
    """Optimizer steps, instead of --num-train-epochs; the schedule ends there too."""
    train_batch_size: int = 8
    """Rows per optimizer step, over all workers."""
    per_device_train_batch_size: int = 4
    """Rows per forward pass, a micro-batch. The number of micro-batches per optimizer step must be a
    multiple of the number of workers."""
    per_device_train_tokens: int | None = added(None, before=None)
    """Maximum tokens per forward pass, padding included. A step whose micro-batches have more is cut
    into 2, 4, 8 … times as many. Default: no limit, only --per-device-train-batch-size rows."""
    warmup_steps: float = 0.0
    """Steps of linear warm-up; below 1, a fraction of all steps."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
        "constant_with_warmup", "inverse_sqrt",
    ] = "linear"  # fmt: skip
    """Schedule of the learning rate after warm-up (transformers' names)."""
    max_grad_norm: float = 1.0
    """Maximum norm of the gradients, which are clipped to it; 0 switches clipping off."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """Distribution of the model over workers: copies, or shards (FSDP2, DeepSpeed ZeRO)."""
    zero_stage: Literal[2, 3] = 2
    """ZeRO stage with --strategy deepspeed."""
    zero_offload: Literal["none", "cpu"] = added("none", before="none")
    """With --strategy deepspeed, keep the optimizer's state and step on the GPU (none) or on the CPU
    (cpu)."""
    fsdp_offload: bool = added(False, before=False)
    """With --strategy fsdp, keep weights, gradients and optimizer state in the host's memory."""
    deepspeed_config: str | None = added(None, before=None)
    """DeepSpeed JSON file, merged over the generated config; it must agree with the flags. A run's
    name depends on its content."""
    deterministic: bool = added(True, before=True)
    """On GPUs, make runs of the same command bit-identical, at some cost in speed. CPU runs always are."""
    pad_to_multiple_of: int | None = None
    """Pad a micro-batch to its longest row, rounded up to a multiple of this. Default: 8 with mixed
    precision, else 1."""
    pad_to_max_length: bool = False
    """Pad every micro-batch to --max-length, for accelerators that need a fixed shape."""
    resize_embeddings: bool = added(False, before=False)
    """Enlarge the token embeddings when the tokenizer has more tokens than the model."""
    seed: int = 42
    """Seed of the classifier's initial weights, the order of rows and dropout."""
    data_seed: int | None = None
    """Own data without --validation-file: seed of the held-out rows. Default: --seed."""

    eval_steps: int | None = None
    """Evaluate every N steps. Default: after every epoch."""
    save_steps: int | None = None
    """Checkpoint every N steps, in addition to those at every evaluation."""
    early_stopping_patience: int | None = None
    """Stop after N evaluations without a better score."""
    logging_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    loop: Literal["accelerate", "trainer"] = "accelerate"
    """`trainer` runs the same plan through transformers' Trainer."""
    ledger: bool = False
    """Write the rows that each worker trained on, and the exact losses, to ledger/."""

    report_to: tuple[Literal["tensorboard", "mlflow", "wandb", "none"], ...] = added(
        ("tensorboard",), before=("tensorboard",)
    )
    """Trackers that receive losses and metrics: tensorboard, mlflow, wandb, none."""
    push_to_hub: str | None = added(None, before=None)
    """Hub repository, OWNER/NAME, to which model/ is uploaded at the end. A new repository is private."""

    storage_path: str = "runs"
    """Folder of all runs; on a cluster, every node must see it. Or s3://… or gs://… (training only)."""
    run_name: str | None = None
    """Folder of this run. Default: task and hash of the config, so the same command resumes."""
    fresh: bool = False
    """Delete an earlier run of this name and start over."""
    keep_optimizer_state: bool = False
    """Keep the optimizer's state in the checkpoints of a finished run. It takes twice the weights'
    space, and nothing but a comparison of runs needs it."""
    num_workers: int | str = 1
    """Training processes: a number, or MIN:MAX to continue with fewer nodes and grow with more."""
    label_selector: dict[str, str] | None = None
    """Run workers on nodes with these labels only, as in --label-selector ray.io/market-type spot."""
    max_failures: int = 3
    """Restarts after a lost worker or node; each new checkpoint resets the count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.learning_rate < 1:
            raise UserError(
                f"--learning-rate is {self.learning_rate}; it must lie between 0 and 1 (5e-5 is usual)"
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"--dropout is {self.dropout:g}; it must be from 0 to below 1")
        if not 0 <= self.label_smoothing_factor < 1:
            raise UserError(
                f"--label-smoothing-factor is {self.label_smoothing_factor:g}; it must be from 0 to below 1"
            )
        self._check_batches()
        self._check_token_budget()
        self._check_test_rows()
        if self.push_to_hub is not None and self.push_to_hub.count("/") != 1:
            raise UserError(
                f"--push-to-hub is {self.push_to_hub!r}; it must name a repository of the Hub, OWNER/NAME"
            )
        check_precision(self.mixed_precision, use_gpu=self.use_gpu)
        self._check_strategy()
        if self.loop == "trainer" and self.strategy != "ddp":
            raise UserError(
                f"--loop trainer runs with --strategy ddp only, not {self.strategy}; drop one of the two"
            )

    def check_new(self) -> None:
        """Check a config that no run or sweep has begun with; earlier versions accepted it.

        Raises:
            UserError: --zero-stage has no effect on the strategy.
        """
        if self.zero_stage != TrainConfig.zero_stage:
            self._check_flag_of("zero_stage", "deepspeed")

    def _check_flag_of(self, name: str, strategy: str) -> None:
        if self.strategy != strategy:
            raise UserError(
                f"{flag(name)} is for --strategy {strategy}, not {self.strategy}; change one of the two"
            )

    def _check_strategy(self) -> None:
        if self.strategy in GPU_STRATEGIES and not self.use_gpu:
            raise UserError(
                f"--strategy {self.strategy} needs GPUs: add --use-gpu, or use --strategy fsdp"
            )
        for name, strategy in (
            ("fsdp_offload", "fsdp"), ("zero_offload", "deepspeed"), ("deepspeed_config", "deepspeed"),
        ):  # fmt: skip
            if getattr(self, name) != getattr(TrainConfig, name):
                self._check_flag_of(name, strategy)
        if self.deepspeed_config is not None:
            # Stores the content: workers may not see the file, and it may change.
            object.__setattr__(self, "deepspeed_config", read_deepspeed_json(self.deepspeed_config))
            check_deepspeed_json(self)

    def _check_batches(self) -> None:
        batch, size = self.train_batch_size, self.per_device_train_batch_size
        if self.worker_counts and size <= batch and batch % size == 0:
            return
        low, high = self.worker_range()
        fitting = [
            size
            for size in range(1, batch + 1)
            if batch % size == 0 and _divisors(batch // size, low, high)
        ]
        remedy = (
            f"use --per-device-train-batch-size {_either(fitting)}"
            if fitting
            else f"use a --train-batch-size that is a multiple of {low}"
        )
        raise UserError(
            f"--train-batch-size {batch} in micro-batches of --per-device-train-batch-size {size} does "
            f"not share out evenly over --num-workers {self.num_workers}: {remedy}"
        )

    def _check_token_budget(self) -> None:
        tokens = self.per_device_train_tokens
        if tokens is None:
            return
        if tokens < self.max_length:
            raise UserError(
                f"--per-device-train-tokens {tokens} is less than a row of --max-length "
                f"{self.max_length} tokens; use at least {self.max_length}, or a smaller --max-length"
            )
        if self.loop == "trainer":
            raise UserError(
                "--loop trainer runs the same number of micro-batches in every step, which "
                "--per-device-train-tokens varies; drop one of the two"
            )

    def _check_test_rows(self) -> None:
        if self.test_file and not self.is_own:
            raise UserError(
                "--test-file describes your own data, but there is no --train-file; add it"
            )
        if not 0 <= self.test_share < 1:
            raise UserError(f"--test-share is {self.test_share:g}; it must be from 0 to below 1")
        if self.test_file and self.test_share:
            raise UserError(
                "--test-file and --test-share both set test rows aside; give one of them"
            )

    @property
    def worker_counts(self) -> list[int]:
        """Allowed numbers of workers that divide a step's micro-batches evenly, ascending."""
        return _divisors(self.micro_batches_per_step, *self.worker_range())

    @property
    def node_labels(self) -> Mapping[str, str]:
        return self.label_selector or {}

    @property
    def micro_batches_per_step(self) -> int:
        """Number of micro-batches in an optimizer step, over all workers.

        With `per_device_train_tokens` it is the smallest number, which divides all others.
        """
        return self.train_batch_size // self.per_device_train_batch_size

    @property
    def held_out_seed(self) -> int:
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def training_rows(self) -> int | None:
        """Value of `max_train_samples`, see `DataFlags.training_rows`."""
        return self.max_train_samples

    @property
    def test_rows(self) -> tuple[str | None, float]:
        return self.test_file, self.test_share

    @property
    def further_metrics(self) -> tuple[tuple[str, ...], str | None]:
        return self.metrics, self.metric_for_best_model

    def check_loss(self, task: Task) -> None:
        """Check that class weights, label smoothing and label thresholds fit the task.

        Raises:
            UserError: Thresholds are fitted for a task that is not multi-label. Or class weights or
                smoothing are set for a regression. Or a class weight names an unknown label, or is
                not positive and finite.
        """
        if self.label_thresholds != "0.5" and task.problem_type != "multi_label_classification":
            raise UserError(
                f"--label-thresholds {self.label_thresholds} is for rows with several labels, but the task "
                f"is a {task.problem_type}; leave it out"
            )
        if task.problem_type == "regression" and (
            self.class_weights or self.label_smoothing_factor
        ):
            raise UserError(
                "--class-weights and --label-smoothing-factor are for classes, but the task is a "
                "regression; leave them out"
            )
        if isinstance(self.class_weights, Mapping):
            for name, weight in self.class_weights.items():
                if name not in task.labels:
                    raise UserError(
                        f"--class-weights names the label '{name}', but the labels are "
                        f"{', '.join(task.labels[:10])}; correct it"
                    )
                if not 0 < weight < float("inf"):
                    raise UserError(f"--class-weights {name} {weight:g}: give a number above 0")

    @property
    def padding_multiple(self) -> int:
        return self.pad_to_multiple_of or super().padding_multiple

    @property
    def grows_vocabulary(self) -> bool:
        """Value of `resize_embeddings`, see `ModelFlags.grows_vocabulary`."""
        return self.resize_embeddings

    @property
    def fixed_length(self) -> bool:
        """Value of `pad_to_max_length`, see `ScoringFlags.fixed_length`."""
        return self.pad_to_max_length

    def identity(self) -> str:
        """Return the SHA-256 of `identity_fields` and the batch plan's version, in hexadecimal."""
        from trainyard.batch_plan import PLAN_VERSION  # imports numpy, which --help does not need

        return sha256_of({**self.identity_fields(), "plan_version": PLAN_VERSION})

    @property
    def resolved_run_name(self) -> str:
        return self.name_after(self.source)


def _divisors(number: int, low: int, high: int) -> list[int]:
    return [count for count in range(low, min(high, number) + 1) if number % count == 0]


def _either(values: Sequence[int]) -> str:
    shown = [str(value) for value in values[-6:]]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)
