"""Work between the steps of a run: reading losses, evaluating, saving, stopping.

Both loops, ours and transformers' Trainer, train inside a `Session`. They differ only in how they
take a step.
"""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray

from trainyard.batch_plan import Plan, Rows, TokenBudget, padding_efficiency
from trainyard.config import TrainConfig
from trainyard.data import PreparedData, is_test
from trainyard.errors import Diverged, UserError
from trainyard.evaluation import not_finite, predict, score
from trainyard.metrics import (
    THRESHOLDS_KEY,
    as_thresholds,
    cross_fitted_cuts,
    fit_cuts,
    get_metric,
)
from trainyard.models import RIGHT, build_model, machine, peak_flops, training_flops
from trainyard.storage import RunFolder, Stopwatch
from trainyard.tasks import Task
from trainyard.training.outcome import Outcome, TrainState
from trainyard.training.worker.batches import Gatherer, StepBatches
from trainyard.training.worker.dropout import fast_masks
from trainyard.training.worker.gradients import tree_sum
from trainyard.training.worker.journal import Journal
from trainyard.training.worker.probe import probe
from trainyard.training.worker.saving import CheckpointWriter, diverged
from trainyard.training.worker.state import broadcast, load_checkpoint, restore_predictions
from trainyard.training.worker.trackers import tracker_folders

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SKIPS_IN_A_ROW = 20
"""Number of consecutive fp16 steps with overflowing gradients at which a run counts as diverged."""


class Session:
    """One process's part in an attempt at a run; all processes must make the same calls.

    On exit, a checkpoint that is being written is finished, also after an error.
    """

    journal: Journal
    state: TrainState
    padding = RIGHT
    """Padding of the model, see `probe`."""
    wants_stop = False
    """True to make the run save and stop; setting it in one process suffices."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        data: PreparedData,
        folder: RunFolder,
        accelerator: Any,
        on_evaluation: Callable[[], bool] | None = None,
    ) -> None:
        self.stopwatch = Stopwatch()
        self._on_evaluation = on_evaluation
        self.config, self.task, self.data, self.folder = config, task, data, folder
        self.accelerator = accelerator
        self._table = data.table("train")
        self._lengths = self._table.lengths
        self.plan = Plan(
            self._lengths,
            config.train_batch_size,
            config.per_device_train_batch_size,
            config.seed,
            _token_budget(config),
        )
        self.last_step = config.max_steps or config.num_train_epochs * self.plan.steps_per_epoch
        self._store = folder.store()
        self._writer = CheckpointWriter(config, accelerator, self._store)
        self._ending = ExitStack()
        self._notes: list[str] = []
        self._status: Literal["finished", "stopped", "failed"] = "finished"
        self._error: UserError | None = None
        self._best_predictions: dict[str, NDArray[Any]] = {}
        # Reading a loss makes the host wait for the device, which costs nothing on CPUs.
        self._read_every = 1 if accelerator.device.type == "cpu" else config.logging_steps
        self._unread: list[torch.Tensor] = []
        self._unread_scales: list[torch.Tensor] = []
        self._rows, self._seconds = 0, 0.0
        self._steps, self._waited = 0, 0.0
        self._flops = 0.0

    def __enter__(self) -> Self:
        # Each is called, whatever the others raise.
        self._ending.callback(self.folder.end_exchange)
        self._ending.callback(self._writer.close)
        if self.config.dropout_version != 1 and self.accelerator.device.type == "cpu":
            self._ending.enter_context(fast_masks())
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def build_model(self) -> "PreTrainedModel":
        """Build the initial model, equal in all processes, unsharded and on the CPU."""
        model = build_model(
            self.data.model,
            self.task,
            self.data.model_revision,
            seed=self.config.seed,
            init=self.config.init,
            gradient_checkpointing=self.config.gradient_checkpointing,
            vocabulary=self.data.vocabulary,
            dropout=self.config.dropout,
        )
        self.padding = probe(model, self.config, self.data)
        self._flops = training_flops(model, self._lengths)
        return model

    def resume(self, model: Any, optimizer: Any, scheduler: Any) -> None:
        """Resume the run from its newest valid checkpoint, or start at step 0."""
        self.use(model, optimizer, scheduler)
        self.state = load_checkpoint(self.config, self.accelerator, self._store, *self._live)
        if self.accelerator.is_main_process:
            self.folder.begin_exchange()
        self._compare_with_checkpoint()
        if (scaler := self.accelerator.scaler) is not None and self.state.loss_scale is None:
            self.state.loss_scale = scaler.get_scale()
        warning = restore_predictions(
            self.accelerator, self._store, self.folder, self.state.best_step
        )
        self._notes += [warning] if warning else []
        self.journal = Journal(
            self.config,
            self.folder,
            rank=self.accelerator.process_index,
            first_step=self.state.step,
            last_step=self.last_step,
        )
        self._clock = time.perf_counter()
        self.stopwatch.lap("start_up")

    def use(self, model: Any, optimizer: Any, scheduler: Any) -> None:
        """Set the objects to evaluate and to save from now on."""
        self._live = (model, optimizer, scheduler)

    def steps(self) -> Iterator[tuple[int, int, list[Rows]]]:
        """Return the remaining steps as (step, epoch, micro-batches); steps count from 0."""
        return self.plan.steps(self.state.step, 0 if self.state.stopped_early else self.last_step)

    def batches(self) -> Iterator[StepBatches]:
        """Yield this process's batches of each remaining step."""
        gatherer = Gatherer(self.config, self._table, self.accelerator, self.padding)
        return gatherer.gathered(self.steps(), self.stopwatch)

    def finish_step(self, done: int, loss: Any, rows: int) -> bool:
        """Read, evaluate and save after optimizer step `done` (from 1); return whether to continue.

        `loss` is this process's share of the step's loss, on its device. It is read, logged and
        checked together with the losses of earlier steps, when a read is due.
        """
        config = self.config
        self.stopwatch.lap("compute")
        self._unread.append(loss)
        if (scaler := self.accelerator.scaler) is not None:
            self._unread_scales.append(scaler._get_scale_async().clone())
        self._rows += rows
        self._steps += 1
        every = config.eval_steps or self.plan.steps_per_epoch
        evaluate = done == self.last_step or done % every == 0
        save = evaluate or (config.save_steps is not None and done % config.save_steps == 0)
        if not (save or done % self._read_every == 0 or done % config.logging_steps == 0):
            return True

        if self.accelerator.is_main_process:
            self.folder.poll()  # if superseded during an outage, log nothing
            self._store.check_attempt()
        stop = self._read_losses()
        if self._error or ((save or stop) and not self._join_checkpoint()):
            return False
        self._seconds += time.perf_counter() - self._clock
        self._tell()
        if evaluate:
            self._evaluate()
            self.stopwatch.lap("evaluation")
            if self._error:
                return False
        if save or stop:
            predictions = self._best_predictions if self.state.is_best else None
            self._saved = copy.deepcopy(self.state)
            self._writer.begin(*self._live, self.state, predictions)
            self.stopwatch.lap("checkpoint")
            self._tell(at_once=True)
        going_on = done < self.last_step and not self.state.stopped_early
        if going_on and (stop or (evaluate and self._scheduler_stops())):
            self._status = "stopped"
        self._clock = time.perf_counter()
        done_here = self._error or self._status == "stopped" or self.state.stopped_early
        return not done_here

    def end_diverged(self, done: int, loss: Any) -> None:
        """End the attempt at optimizer step `done` (from 1), whose gradients were not finite.

        All processes call it instead of `finish_step`. The step was not taken, so nothing is saved.
        """
        self._unread.append(loss)
        self._read_losses()
        if self._error is None:
            self._diverge(diverged(f"the gradients of step {done} are not finite"))

    def _join_checkpoint(self) -> bool:
        """Wait for the checkpoint that is being written; return whether it, if any, is committed.

        If its weights are not finite, the run ends at its step: how many steps were done since then
        depends on the speed of the disk. metrics.jsonl loses these steps. Trackers, usage.jsonl and
        the ledger keep them, since they have no way back.
        """
        failure = self._writer.join()
        self.stopwatch.lap("checkpoint")
        if isinstance(failure, Diverged):
            self.state = self._saved
            if self.accelerator.is_main_process:
                self.folder.rewind_metrics(self.state.step)
        self._error = self._error or failure
        return failure is None

    def outcome(self) -> Outcome:
        """Finish the last checkpoint, close the records, and return the outcome of the attempt."""
        self._join_checkpoint()
        self.journal.close()
        self.accelerator.wait_for_everyone()
        self.stopwatch.lap("sync")
        self._tell(at_once=True)
        if self.accelerator.is_main_process:
            records = "metrics.jsonl", "progress.json", "usage.jsonl"
            self.folder.publish(*records, *tracker_folders(self.config))
        speed = self._rows / self._seconds if self._seconds else None
        peak = used = None
        if speed and self.accelerator.is_main_process:
            reached = self._flops * speed / self.accelerator.num_processes
            peak = peak_flops(
                self.accelerator.device,
                self.config.mixed_precision,
                reached=reached,
                keep=not self.folder.has_siblings,  # which may train now
            )
            used = reached / peak
        return Outcome(
            status="failed" if self._error else self._status,
            error=self._error,
            by_callback=self.wants_stop and self._status == "stopped",
            state=self.state,
            padding_note=self.padding.note,
            notes=[*self._store.skipped, *self._notes, *self.journal.notes],
            train_samples_per_second=speed,
            peak_flops=peak,
            mfu=used,
            padding_efficiency=padding_efficiency(
                self.plan,
                self.config.padding_multiple,
                self.config.max_length,
                fixed=self.config.pad_to_max_length,
            ),
        )

    def _compare_with_checkpoint(self) -> None:
        """Warn about changed kinds of workers, whose bits may differ; refuse a changed row order.

        Raises:
            UserError: The order differs, so rows would be trained on twice or never.
        """
        order = hashlib.sha256(self.plan.epoch(0).order.tobytes()).hexdigest()[:16]
        if self.state.row_order not in (None, order):
            raise UserError(
                f"the rows of run '{self.folder.path.name}' are in another order than before (hash "
                f"{order}, was {self.state.row_order}); install the packages that it began with, or use "
                "--fresh to start it anew"
            )
        device = self.accelerator.device
        gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
        workers = sorted(set(gather_object([f"{machine()}{gpu}"])))
        if self.state.workers not in ([], workers):
            self._notes.append(
                f"warning: the workers of step {self.state.step} and later are other machines "
                f"({'; '.join(workers)}) than before ({'; '.join(self.state.workers)}); the result need "
                "not be bit-identical to that of an undisturbed run"
            )
        self.state.row_order, self.state.workers = order, workers

    def _scheduler_stops(self) -> bool:
        """Return whether the scheduler ends the run; ask once the checkpoint is committed.

        Another trial may then continue from this checkpoint.
        """
        if self._on_evaluation is None or not self._join_checkpoint():
            return False
        stops = not self._on_evaluation()
        self.stopwatch.lap("verdict")
        return stops

    def _tell(self, *, at_once: bool = False) -> None:
        """Write the progress and the time ledger of the run.

        The wait for gradients is part of the backward pass. DDP measures the part that did not
        overlap with computation, in the first ten steps and then in every hundredth.
        """
        measured: dict[str, Any] = getattr(self._live[0], "_get_ddp_logging_data", dict)()
        exchange = measured.get("avg_backward_comm_time", 0)
        waited = (exchange - measured.get("avg_backward_compute_comm_overlap_time", 0)) / 1e9
        self.stopwatch.move("compute", "sync", waited * self._steps - self._waited)
        self._waited = max(waited * self._steps, self._waited)
        speed = self._rows / self._seconds if self._seconds else None
        self.journal.progress(self.state, speed, self.stopwatch.seconds, at_once=at_once)
        self.stopwatch.lap("records")

    def _read_losses(self) -> bool:
        """Sum the unread losses over the processes, check and log them; return whether to stop.

        The same message carries stop requests and failed checkpoints, so that all processes stop at
        the same step.
        """
        main = self.accelerator.is_main_process
        wishes = main and self.folder.wants_stop(), self.wants_stop, self._writer.has_failed
        message = torch.stack(
            [*self._unread, *(torch.full_like(self._unread[0], float(wish)) for wish in wishes)]
        )
        self._unread.clear()
        if self.accelerator.num_processes > 1:
            parts = [torch.empty_like(message) for _ in range(self.accelerator.num_processes)]
            torch.distributed.all_gather(parts, message)
            message = tree_sum(parts)
        *losses, requested, called, failed = message.tolist()
        self.wants_stop = bool(called)
        scales = torch.stack(self._unread_scales).tolist() if self._unread_scales else []
        self._unread_scales.clear()
        # On a GPU this waits for the device to finish its steps, on CPUs for the other processes.
        self.stopwatch.lap("sync" if self.accelerator.device.type == "cpu" else "compute")
        for loss, scale in zip_longest(losses, scales):
            self.state.step += 1
            if not math.isfinite(loss):
                self._diverge(diverged(f"the loss of step {self.state.step} is {loss}"))
                return True
            self.state.add_loss(loss)
            if scale is not None:
                self.state.add_loss_scale(scale)
            if self.state.skipped_in_a_row == SKIPS_IN_A_ROW:
                overflow = (
                    f"in fp16 the gradients of {SKIPS_IN_A_ROW} steps in a row overflowed, the last one at "
                    f"step {self.state.step} with a loss scale of {scale:g}; use --mixed-precision bf16 "
                    "or no, or lower --learning-rate"
                )
                self._diverge(Diverged(overflow))
                return True
            if self.state.step % self.config.logging_steps == 0:
                epoch = self.state.step / self.plan.steps_per_epoch
                self.journal.log_step(self.state, epoch, self._live[2].get_last_lr()[0])
        if failed:
            self._join_checkpoint()
        return bool(requested or called)

    def _diverge(self, error: Diverged) -> None:
        """End the run with `error`, unless the checkpoint of an earlier step has failed."""
        if self._join_checkpoint():
            self._error = error

    def _evaluate(self) -> None:
        """Score all evaluation splits; the headline score is their mean (MNLI has two).

        Test splits are scored only at a new best evaluation, and enter neither the headline score
        nor the journal.
        """
        splits = [name for name in self.data.folders if name != "train"]
        logits, found = self._scored([name for name in splits if not is_test(name)])
        if self._error:
            return
        headline = np.mean([split["metrics"][self.task.score] for split in found.values()])
        higher_is_better = get_metric(self.task.score).higher_is_better
        self.state.add_evaluation(float(headline), found, higher_is_better=higher_is_better)
        if self.state.is_best:
            test_logits, tests = self._scored(
                [name for name in splits if is_test(name)], chosen_on=logits
            )
            if self._error:
                return
            self.state.best_evaluation = {**found, **tests}
            if self.accelerator.is_main_process:
                self._best_predictions = logits | test_logits
                self.folder.write_predictions(self._best_predictions)
        patience = self.config.early_stopping_patience
        self.state.stopped_early = (
            patience is not None and self.state.evaluations_without_gain >= patience
        )
        self.journal.log_evaluation(self.state)

    def _scored(
        self, names: Sequence[str], chosen_on: Mapping[str, NDArray[Any]] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the logits and the scores of some splits; all processes predict, rank 0 scores.

        Fitted thresholds come from the logits `chosen_on`. Default: from these splits, which are then
        scored with thresholds fitted on other parts of their rows.
        """
        tables = {name: self.data.table(name) for name in names}
        logits = {
            name: predict(self.accelerator, self._live[0], table, self.config, self.padding)
            for name, table in tables.items()
        }
        if fault := not_finite(logits):  # every process has all logits, so all of them stop here
            self._diverge(diverged(f"after step {self.state.step} the model answers {fault}"))
            return logits, {}
        found = None
        if self.accelerator.is_main_process:
            cuts = dict.fromkeys(names, self.task.cuts)
            known: dict[str, Any] = {}
            if self.config.label_thresholds == "fitted":
                fitting = logits if chosen_on is None else chosen_on
                labels = [self.data.table(name).labels[:] for name in fitting]
                fitted = fit_cuts(np.concatenate([*fitting.values()]), np.concatenate(labels))
                known[THRESHOLDS_KEY] = as_thresholds(fitted, self.task.labels)
                for name in names:
                    cuts[name] = fitted
                    if chosen_on is None:
                        rows = logits[name], tables[name].labels[:]
                        cuts[name] = cross_fitted_cuts(*rows, seed=self.config.seed)
            found = {
                name: score(
                    replace(self.task, cuts=cuts[name]),
                    logits[name],
                    table.labels,
                    seed=self.config.seed,
                )
                | known
                for name, table in tables.items()
            }
        return logits, broadcast(self.accelerator, found)


def _token_budget(config: TrainConfig) -> TokenBudget | None:
    tokens = config.per_device_train_tokens
    if tokens is None:
        return None
    return TokenBudget(
        tokens, config.padding_multiple, config.max_length, fixed=config.pad_to_max_length
    )
