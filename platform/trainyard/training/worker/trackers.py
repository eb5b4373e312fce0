"""Trackers of `--report-to`, one class each. Rank 0 reports a run's losses and metrics."""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from trainyard.config import TrainConfig
from trainyard.errors import UserError, one_line
from trainyard.storage import RunFolder

PROJECT = "trainyard"
"""Default of MLFLOW_EXPERIMENT_NAME (MLflow) and of WANDB_PROJECT (Weights & Biases)."""


class Tracker:
    """Connection of one attempt to a tracker. An attempt that resumes a run continues its curves.

    A step that is repeated after a kill has the same values, so a tracker may ignore the
    repetition.
    """

    folder: ClassVar[str | None] = None
    """Subfolder of the run folder for files, uploaded to a bucket; None for no files."""

    def __init__(self, config: TrainConfig, folder: RunFolder, first_step: int) -> None:
        """Open the tracker for the steps after `first_step`."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report the values of an optimizer step, by names such as train/loss."""
        raise NotImplementedError

    def close(self) -> None:
        """Send buffered values and end the connection."""


class TensorBoard(Tracker):
    """TensorBoard event files in the run's tensorboard/."""

    folder = "tensorboard"

    def __init__(self, config: TrainConfig, folder: RunFolder, first_step: int) -> None:
        del config
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if not any(name.startswith("train/") for name in values):  # an evaluation
            self._board.flush()

    def close(self) -> None:
        self._board.close()


class MLflow(Tracker):
    """MLflow run at MLFLOW_TRACKING_URI; default: the file store `<storage path>/mlruns`."""

    def __init__(self, config: TrainConfig, folder: RunFolder, first_step: int) -> None:
        del first_step  # the stored steps are queried instead
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # MLflow's own default is a database
            uri = (folder.path.parent / "mlruns").as_uri()
        self._client = MlflowClient(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        with contextlib.suppress(MlflowException):  # the experiment exists
            self._client.create_experiment(name)
        experiments = _experiments(self._client, name)
        tags = {"trainyard.run": _mark(folder)}
        known = self._client.search_runs(experiments, f"tags.`trainyard.run` = '{_mark(folder)}'")
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, "RUNNING")
        else:
            self._run = self._client.create_run(
                experiments[0], tags=tags, run_name=folder.path.name
            ).info.run_id
            for key, value in asdict(config).items():
                self._client.log_param(self._run, key, value)
        self._last = {
            key: max(point.step for point in self._client.get_metric_history(self._run, key))
            for key in (known[0].data.metrics if known else ())
        }

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        points = [
            Metric(name, value, now, step)
            for name, value in values.items()
            if step > self._last.get(name, -1)
        ]
        self._client.log_batch(self._run, points)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _experiments(client: Any, name: str) -> list[str]:
    """Return the ids of the experiments called `name`, the oldest first.

    A file store has several when runs that started together have each created one.
    """
    from mlflow.entities import ViewType

    quote = '"' if "'" in name else "'"
    found = client.search_experiments(
        view_type=ViewType.ALL, filter_string=f"name = {quote}{name}{quote}"
    )
    oldest_first = sorted(found, key=lambda one: (one.creation_time or 0, one.experiment_id))
    return [one.experiment_id for one in oldest_first]


class WeightsAndBiases(Tracker):
    """Weights & Biases run; without credentials and WANDB_MODE, offline in the run's wandb/."""

    folder = "wandb"

    def __init__(self, config: TrainConfig, folder: RunFolder, first_step: int) -> None:
        del first_step  # wandb ignores steps that it already has
        import wandb

        known = "WANDB_MODE" in os.environ or wandb.login(prompt=False)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=_mark(folder).replace(" ", "-").replace(":", ""),
            name=folder.path.name,
            dir=str(folder.path),
            config=asdict(config),
            tags=list(config.tags),
            resume="allow",
            mode=None if known else "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _mark(folder: RunFolder) -> str:
    """Identify a run by name and start time, since --fresh starts another run of the same name."""
    return f"{folder.path.name} {folder.read().get('started', '')}"


TRACKERS: Mapping[str, type[Tracker] | None] = {
    "tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases, "none": None,
}  # fmt: skip


def tracker_folders(config: TrainConfig) -> list[str]:
    """List the subfolders of the run folder that the trackers of a config write."""
    rows = (TRACKERS[name] for name in config.report_to)
    return [row.folder for row in rows if row and row.folder]


def open_trackers(config: TrainConfig, folder: RunFolder, first_step: int) -> dict[str, Tracker]:
    """Open the trackers of a config for the steps after `first_step`; return them by name.

    Raises:
        UserError: A tracker cannot be opened.
    """
    found: dict[str, Tracker] = {}
    for name in config.report_to:
        if (tracker := TRACKERS[name]) is None:
            continue
        try:
            found[name] = tracker(config, folder, first_step)
        except Exception as error:  # errors of trackers have no common base
            reason = one_line(error, 200)
            raise UserError(
                f"--report-to {name} cannot be used ({reason}); fix that, or leave it out: the same "
                "command resumes the run"
            ) from error
    return found
