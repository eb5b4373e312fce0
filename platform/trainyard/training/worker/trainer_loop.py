"""`--loop trainer`: the same plan, weights and seeds through transformers' `Trainer`.

This loop supports Trainer's callbacks, and tests the default loop, since both must agree. Trainer
takes optimizer steps, accumulates and clips gradients, and sets the precision. The plan sets the
order of rows, padding, dropout seeds and the weights of uneven micro-batches.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
import transformers

from trainyard.batch_plan import micro_batch_seed
from trainyard.config import TrainConfig
from trainyard.data import PreparedData
from trainyard.models import seed_generator
from trainyard.storage import RunFolder
from trainyard.tasks import Task
from trainyard.training.outcome import Outcome
from trainyard.training.worker.objective import Objective
from trainyard.training.worker.optimizer import build_optimizer, build_scheduler
from trainyard.training.worker.session import Session
from trainyard.training.worker.strategies import training_accelerator


def train_by_trainer(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    on_evaluation: Callable[[], bool] | None = None,
    callbacks: Sequence[transformers.TrainerCallback] = (),
) -> Outcome:
    """Train like `loop.train`, with `transformers.Trainer` and the user's callbacks.

    Arguments, result and errors are those of `loop.train`.
    """
    accelerator = training_accelerator(config)
    with Session(config, task, data, folder, accelerator, on_evaluation) as session:
        return _train(session, callbacks)


def _train(session: Session, callbacks: Sequence[transformers.TrainerCallback]) -> Outcome:
    config, accelerator = session.config, session.accelerator
    model = session.build_model()
    optimizer = build_optimizer(config, model)
    scheduler = build_scheduler(config, optimizer, session.last_step)
    session.resume(model, optimizer, scheduler)
    micro_batches = _MicroBatches(session)
    objective = Objective(config, session.task, session.data.table("train").labels)
    if not micro_batches:
        return session.outcome()

    class PlannedTrainer(transformers.Trainer):
        """Trainer that takes batches in planned order and weights losses by their rows."""

        loss_is_scaled_for_ga = True
        step_loss: Any = None

        def get_train_dataloader(self) -> Any:
            return micro_batches

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            step, epoch, micro_batch, rows, weight = inputs.pop("micro_batch")
            seed = micro_batch_seed(config.seed, epoch, step, micro_batch)
            seed_generator(accelerator.device, seed)
            loss = objective(model, inputs) * weight
            self.step_loss = loss.detach() + (0 if self.step_loss is None else self.step_loss)
            if weight:
                session.journal.record_micro_batch(step, epoch, micro_batch, rows, loss)
            return loss

    def take_wish(control: Any) -> None:
        session.wants_stop |= control.should_training_stop or control.should_epoch_stop
        control.should_training_stop = control.should_epoch_stop = False

    class AroundSteps(transformers.TrainerCallback):
        """Sum gradients over processes, and pass each finished step to the session."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            if accelerator.num_processes > 1:
                trainer.model_wrapped.register_comm_hook(None, _sum)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            done = micro_batches.first + state.global_step
            loss, trainer.step_loss = trainer.step_loss, None
            if trainer.lr_scheduler.last_epoch < done:
                trainer.lr_scheduler.step()  # also after steps that fp16 skips
            session.use(trainer.model_wrapped, trainer.optimizer, trainer.lr_scheduler)
            take_wish(control)  # Trainer itself sets the flag at the last step
            going_on = session.finish_step(done, loss, micro_batches.rows[done - 1])
            control.should_training_stop = not going_on

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            take_wish(control)  # else Trainer would leave in the middle of a step

    trainer = PlannedTrainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(session.folder.path / ".trainer"),
            max_steps=micro_batches.last - micro_batches.first,
            gradient_accumulation_steps=micro_batches.per_step,
            per_device_train_batch_size=config.per_device_train_batch_size,
            max_grad_norm=config.max_grad_norm,
            bf16=config.mixed_precision == "bf16",
            fp16=config.mixed_precision == "fp16",
            use_cpu=not config.use_gpu,
            ddp_broadcast_buffers=False,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=config.seed,
            report_to=[],
        ),
        train_dataset=micro_batches,
        optimizers=(optimizer, scheduler),
        callbacks=[*callbacks, AroundSteps()],  # the last one sees what the others decide
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.accelerator.scaler = accelerator.scaler  # the session saves and restores this one
    trainer.train()
    outcome = session.outcome()
    # Trainer makes the folder even when it saves nothing, and lists it once more after the last
    # step. `outcome` has waited for all processes, so none of them still does.
    with suppress(OSError):
        (session.folder.path / ".trainer").rmdir()
    return outcome


def _sum(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Sum a bucket of gradients over the processes, where DDP would average.

    Scaling the loss by the number of processes instead would overflow fp16 earlier.
    """
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


class _MicroBatches:
    """Micro-batches of this process in all remaining steps, as the batches of one long epoch."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.first: int = session.state.step
        self.last = self.first if session.state.stopped_early else session.last_step
        self.per_step: int = (
            session.plan.micro_batches_per_step // session.accelerator.num_processes
        )
        self.rows: dict[int, int] = {}

    def __len__(self) -> int:
        return (self.last - self.first) * self.per_step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batches in self._session.batches():
            self.rows[batches.step] = batches.rows
            for batch in batches.mine:
                named = (batches.step, batches.epoch, batch.index, batch.rows, batch.weight)
                yield {**batch.inputs, "micro_batch": named}
