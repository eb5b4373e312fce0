"""Default training loop (--loop accelerate), independent of Ray.

Every process calls `train` with the same arguments. The plan assigns the rows to micro-batches. A
process runs its share of the micro-batches of a step. Gradients are summed in a fixed order, see
`gradients`.
"""

from collections.abc import Callable

from trainyard.batch_plan import micro_batch_seed
from trainyard.config import TrainConfig
from trainyard.data import PreparedData
from trainyard.models import seed_generator
from trainyard.storage import RunFolder
from trainyard.tasks import Task
from trainyard.training.outcome import Outcome
from trainyard.training.worker.gradients import tree_sum
from trainyard.training.worker.objective import Objective
from trainyard.training.worker.optimizer import build_scheduler
from trainyard.training.worker.session import Session
from trainyard.training.worker.strategies import STRATEGIES, training_accelerator
from trainyard.training.worker.zero import process_restored


def train(
    config: TrainConfig,
    task: Task,
    data: PreparedData,
    folder: RunFolder,
    on_evaluation: Callable[[], bool] | None = None,
) -> Outcome:
    """Train from the newest valid checkpoint to the last step, with evaluations and checkpoints.

    Args:
        config: Flags of the run.
        task: Task of the run.
        data: Tokenized splits on this node.
        folder: Folder of the run on this node.
        on_evaluation: Called after each evaluation but the last, in runs of one process. False
            stops the run.

    Returns:
        Outcome of the attempt. Divergence and failed checkpoints are its `error`.

    Raises:
        UserError: The model cannot train on rows of these lengths, or does not fit the checkpoint.
        SupersededError: Another driver has taken over the run.
    """
    accelerator = training_accelerator(config)
    with (
        process_restored(),
        Session(config, task, data, folder, accelerator, on_evaluation) as session,
    ):
        strategy = STRATEGIES[config.strategy]
        model, optimizer = strategy.prepare(config, accelerator, session.build_model())
        scheduler = build_scheduler(config, optimizer, session.last_step)
        gradients = strategy.gradients(accelerator, model)
        objective = Objective(config, task, data.table("train").labels)
        session.resume(model, optimizer, scheduler)
        model.train()

        for batches in session.batches():
            losses = []
            for turn, batch in enumerate(batches.mine):
                inputs = {
                    name: tensor.to(accelerator.device, non_blocking=True)
                    for name, tensor in batch.inputs.items()
                }
                seed = micro_batch_seed(config.seed, batches.epoch, batches.step, batch.index)
                seed_generator(accelerator.device, seed)
                with gradients.add(turn, len(batches.mine)):
                    loss = objective(model, inputs) * batch.weight
                    gradients.backward(loss)
                losses.append(loss.detach())
                if batch.weight:
                    session.journal.record_micro_batch(
                        batches.step, batches.epoch, batch.index, batch.rows, loss
                    )
            loss = tree_sum(losses)
            if not gradients.step(optimizer, config.max_grad_norm):
                session.end_diverged(batches.step + 1, loss)
                break
            scheduler.step()  # also after steps that fp16 skips for an overflow
            if not session.finish_step(batches.step + 1, loss, batches.rows):
                break

        return session.outcome()
