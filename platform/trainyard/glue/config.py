"""Flags of `trainyard glue`, and the config of the run of each (task, seed)."""

from dataclasses import dataclass
from pathlib import Path

from trainyard.config import DEFAULT_MODEL, ClusterFlags, Precision, RunFlags, TrainConfig
from trainyard.errors import UserError
from trainyard.glue.recipes import RECIPES, get_recipe
from trainyard.storage import storage_folder

_OVERRIDES = (
    "learning_rate", "num_train_epochs", "train_batch_size", "per_device_train_batch_size",
    "max_steps", "max_train_samples",
)  # fmt: skip
"""Flags that replace a field of every task's recipe."""


@dataclass(frozen=True, kw_only=True)
class SuiteConfig(RunFlags, ClusterFlags):
    """Fine-tune one model on every GLUE task with several seeds, and write one table.

    Each (task, seed) is an ordinary run of `trainyard train` in <storage-path>/<run-name>/. The same
    command resumes interrupted runs, skips finished ones, and trains failed ones again.
    """

    tasks: tuple[str, ...] = tuple(RECIPES)
    """Tasks of the table. Default: all nine, in GLUE's order."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds; each task is trained once with each of them."""
    data_dir: str | None = None
    """Folder with <task>/<split>.parquet in the Hub's schema. Default: the data set on the Hub."""
    model_name_or_path: str = DEFAULT_MODEL
    """Hub id, local folder, or package:NAME/FOLDER inside an installed Python package."""
    warm_start: bool = False
    """Start RTE, MRPC and STS-B from the MNLI model of the same seed."""
    submission: bool = False
    """Predict the test splits with each task's best seed and write submission.zip."""
    check_submission: str | None = None
    """Only check whether the leaderboard would accept a submission zip."""

    learning_rate: float | None = None
    """Peak learning rate of all tasks. Default: the task's recipe."""
    num_train_epochs: int | None = None
    """Epochs of all tasks. Default: the task's recipe."""
    train_batch_size: int | None = None
    """Rows per optimizer step of all tasks. Default: the task's recipe."""
    per_device_train_batch_size: int | None = None
    """Rows per micro-batch of all tasks. Default: the task's recipe."""
    max_steps: int | None = None
    """Optimizer steps of each run, instead of epochs."""
    max_train_samples: int | None = None
    """Train each run on the first N rows only."""
    max_length: int = 128
    """Tokens per row."""
    mixed_precision: Precision = "no"
    """Precision of the forward pass."""
    per_device_eval_batch_size: int = 64
    """Rows per forward pass in evaluation."""

    run_name: str = "glue"
    """Folder of this suite."""
    max_parallel_workers: int | None = None
    """Maximum training processes at a time, over all runs. Default: one for each CPU, or each GPU."""
    use_gpu: bool = False
    """One GPU for each worker."""
    resources_per_worker: dict[str, float] | None = None
    """Ray resources of a worker. Default: one CPU, or one GPU and its share of the CPUs."""
    max_failures: int = 3
    """Restarts of a run after a lost worker; each new checkpoint resets the count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("--tasks", self.tasks), ("--seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                shown = " ".join(map(str, values)) or "empty"
                raise UserError(f"{name} is {shown}; name each once, and at least one")
        for task in self.tasks:
            get_recipe(task)
        if self.check_submission and self.submission:
            raise UserError(
                "--submission writes a zip and --check-submission only looks at one; give one of them"
            )
        if self.warm_start:
            self._check_warm_start()
        for task in self.tasks:
            for seed in self.seeds:
                self.run_config(task, seed)

    def _check_warm_start(self) -> None:
        sources = {task: source for task in self.tasks if (source := get_recipe(task).warm_start)}
        if not sources:
            able = [task for task, recipe in RECIPES.items() if recipe.warm_start]
            raise UserError(
                f"--warm-start is for {', '.join(able)}, of which none is among --tasks; add one, or "
                "leave it out"
            )
        for task, source in sources.items():
            if source not in self.tasks:
                raise UserError(
                    f"--warm-start starts {task} from {source}, which is not among --tasks; add it"
                )

    @property
    def folder(self) -> Path:
        """Folder `<storage_path>/<run_name>`, which holds the runs and the table."""
        return storage_folder(self.storage_path) / self.run_name

    def source_of(self, task: str) -> str | None:
        """Return the task from whose model `task` starts, or None with no warm start."""
        return get_recipe(task).warm_start if self.warm_start else None

    def run_config(self, task: str, seed: int) -> TrainConfig:
        """Return the config of one task and seed: its recipe, and the flags that override it.

        Paths are absolute, because the processes of the runs have other working directories.

        Raises:
            UserError: The task has no recipe, or flags do not fit together.
        """
        recipe, source = get_recipe(task), self.source_of(task)
        given = {name: getattr(self, name) for name in _OVERRIDES}
        fields = {**recipe.fields, **{k: v for k, v in given.items() if v is not None}}
        model, name = self.model_name_or_path, f"{task}-seed-{seed}"
        if Path(model).exists():  # else a Hub id, or a folder in a package
            model = str(Path(model).absolute())
        if source:
            model, name = (
                str(self.folder / f"{source}-seed-{seed}" / "model"),
                f"{name}-from-{source}",
            )
        return TrainConfig(
            task=task,
            seed=seed,
            data_dir=str(Path(self.data_dir).absolute()) if self.data_dir else None,
            model_name_or_path=model,
            max_length=self.max_length,
            mixed_precision=self.mixed_precision,
            per_device_eval_batch_size=self.per_device_eval_batch_size,
            storage_path=str(self.folder),
            run_name=name,
            use_gpu=self.use_gpu,
            resources_per_worker=self.resources_per_worker,
            max_failures=self.max_failures,
            address=self.address,
            verbose=self.verbose,
            tags=self.tags,
            **fields,
        )
