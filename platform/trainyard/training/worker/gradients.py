"""Sum of a step's gradients, in an order that does not depend on the number of workers.

Floating-point addition is not associative. If the order of a sum depended on the number of workers,
so would its last bits. A few hundred steps later, the models would differ. So the micro-batches of
a step are the leaves of a binary tree, whose sum has the same order for every number of workers:

    ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))

This is pairwise summation (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section
4.2). Worker r of N computes the r-th of N equal ranges of leaves. If N and the number of
micro-batches are powers of two, each range is a subtree, and the sum on CPUs is bit-exact.
Otherwise, or with NCCL on more than two GPUs, the last bits may differ.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist


def tree_sum(parts: Sequence[Any]) -> Any:
    """Return the sum of one or more `parts` of equal shape, adding neighbors pairwise."""
    while len(parts) > 1:
        odd = parts[len(parts) & ~1 :]
        parts = [*(a + b for a, b in zip(parts[::2], parts[1::2], strict=False)), *odd]
    return parts[0]


class Gradients:
    """Sum of a step's gradients over micro-batches and workers, and the optimizer step."""

    def __init__(self, accelerator: Any, model: Any) -> None:
        self._accelerator, self._model = accelerator, model

    @contextmanager
    def add(self, turn: int, turns: int) -> Iterator[None]:
        """Wrap forward and backward of micro-batch `turn` (from 0) of this process's `turns`."""
        with nullcontext() if turn + 1 == turns else self._accelerator.no_sync(self._model):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Backpropagate the weighted loss of one micro-batch, a scalar; call it inside `add`."""
        self._accelerator.backward(loss)

    def step(self, optimizer: Any, max_norm: float) -> bool:
        """Clip the gradients, take the optimizer's step, and clear the gradients.

        Args:
            optimizer: Optimizer that Accelerate has prepared.
            max_norm: Maximum L2 norm of all gradients together; 0 for no clipping.

        Returns:
            False if the gradients are known not to be finite, and there is no loss scale to reduce.
            Then no process has taken the step.
        """
        if max_norm:
            self._accelerator.clip_grad_norm_(self._model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
        return True


class TouchedRows:
    """Gradient tree for the weight of a word embedding, of which a step uses few rows.

    Autograd would allocate a dense gradient, mostly zeros, for each micro-batch. This class keeps
    only the used rows of each micro-batch, and reuses one dense gradient for every step. Gradients
    of one row are added in token order, as in autograd. A sparse tensor's `coalesce` may add them
    in another order, because its sort is not stable.
    """

    def __init__(self, embedding: torch.nn.Embedding) -> None:
        embedding.sparse = True  # autograd then returns ids and rows in token order
        self._weight = embedding.weight
        self._gradient = torch.zeros_like(self._weight)
        self._touched = torch.empty(0, dtype=torch.int64)
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def put_aside(self, turn: int) -> None:
        """Remove the gradient of micro-batch `turn` from the weight, and keep its used rows.

        Sums of subtrees that this micro-batch completes are added. `turn` counts from 0 in each
        step.
        """
        gradient = self._weight.grad
        if gradient.is_sparse:
            done = _sum_by_id(gradient._indices()[0], gradient._values())
        else:  # an undetected use of the whole weight made it dense
            done = torch.arange(len(gradient)), gradient
        self._weight.grad = None
        while turn % 2:
            done, turn = _joined(self._waiting.pop(), done), turn // 2
        self._waiting.append(done)

    def put_back(self) -> None:
        """Set the weight's dense gradient to the sum over the micro-batches of the step."""
        total = self._waiting.pop()
        while self._waiting:
            total = _joined(self._waiting.pop(), total)
        if self._gradient.view(-1)[0].isnan():  # clipping by a non-finite norm made it NaN
            self._gradient.zero_()
        self._gradient.index_fill_(0, self._touched, 0.0)
        self._touched, rows = total
        self._weight.grad = self._gradient.index_copy_(0, self._touched, rows)


def _sum_by_id(ids: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    distinct, index = torch.unique(ids, return_inverse=True)
    return distinct, torch.ops.aten.embedding_dense_backward(rows, index, len(distinct), -1, False)


def _joined(left: tuple[Any, Any], right: tuple[Any, Any]) -> tuple[Any, Any]:
    return _sum_by_id(torch.cat((left[0], right[0])), torch.cat((left[1], right[1])))


class GradientTree(Gradients):
    """Gradient sum in tree order, for models that each worker holds whole (one worker, or DDP)."""

    def __init__(self, accelerator: Any, model: Any) -> None:
        super().__init__(accelerator, model)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._waiting: list[dict[Any, Any]] = []
        """Sums of finished subtrees before this micro-batch, by parameter, largest first."""
        self._words: TouchedRows | None = None
        if accelerator.num_processes > 1:
            self._replace_all_reduce()
        elif accelerator.device.type == "cpu" and (words := _word_embedding(model)) is not None:
            self._words = TouchedRows(words)

    @contextmanager
    def add(self, turn: int, turns: int) -> Iterator[None]:
        """Wrap forward and backward of micro-batch `turn` (from 0) of this process's `turns`.

        Autograd adds the gradients of the second micro-batch of a pair to those of the first.
        """
        with super().add(turn, turns):
            yield
        if self._words is not None:
            self._words.put_aside(turn)
        if turn + 1 == turns:
            if self._accelerator.num_processes == 1:
                self._add_waiting(self._parameters, [p.grad for p in self._parameters])
            self._waiting.clear()
            if self._words is not None:
                self._words.put_back()
        elif turn % 2:
            self._put_aside(turn // 2)

    def _put_aside(self, pair: int) -> None:
        """Remove the gradients from the model, and add the subtrees that pair `pair` completes.

        As in a binary counter, the number of additions is the number of trailing ones of `pair`.
        """
        done = {p: p.grad for p in self._parameters if p.grad is not None}
        for parameter in done:
            parameter.grad = None
        while pair % 2:
            left = self._waiting.pop()
            torch._foreach_add_([left[p] for p in done], list(done.values()))
            done, pair = left, pair // 2
        self._waiting.append(done)

    def _add_waiting(self, parameters: Sequence[Any], gradients: Sequence[Any]) -> None:
        """Add the waiting sums to `gradients` in place, smallest subtree first."""
        for left in reversed(self._waiting):
            pairs = [(g, left[p]) for p, g in zip(parameters, gradients, strict=True) if p in left]
            torch._foreach_add_([g for g, _ in pairs], [other for _, other in pairs])

    def _replace_all_reduce(self) -> None:
        """Make DDP sum gradients in tree order.

        DDP calls the hook for each bucket of gradients that the last micro-batch has completed.
        """
        world, on_cpu = self._accelerator.num_processes, self._accelerator.device.type == "cpu"
        # One thread: gloo matches messages by order, which must be the same in all workers.
        in_order = ThreadPoolExecutor(1)

        def exchange(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            self._add_waiting(bucket.parameters(), bucket.gradients())
            buffer = bucket.buffer()
            if world == 2 or not on_cpu:  # a + b is b + a; NCCL chooses the order
                work = dist.all_reduce(buffer, async_op=True)
                return work.get_future().then(lambda done: done.value()[0])
            future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            in_order.submit(_all_reduce_as_tree, buffer, world, future)
            return future

        self._model.register_comm_hook(None, exchange)


def _word_embedding(model: Any) -> Any:
    """Return the model's word embedding if its weight has no other use than look-ups, else None."""
    try:
        words = getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:  # CANINE hashes characters
        return None
    if not isinstance(words, torch.nn.Embedding) or not words.weight.requires_grad:
        return None
    owners = [m for m in model.modules() if any(p is words.weight for p in m._parameters.values())]
    plain = words.max_norm is None and not words.scale_grad_by_freq
    return words if plain and len(owners) == 1 else None


def _all_reduce_as_tree(buffer: Any, world: int, future: Any) -> None:
    """Sum `buffer` over `world` workers in place, in tree order; complete `future` with the sum.

    Each worker sums one part for all workers. The traffic equals that of a ring all-reduce.
    """
    try:
        part = -(-buffer.numel() // world)
        mine = torch.nn.functional.pad(buffer, (0, part * world - buffer.numel()))
        theirs = torch.empty_like(mine)
        dist.all_to_all_single(theirs, mine)
        dist.all_gather_single(mine, tree_sum(theirs.chunk(world)))
        buffer.copy_(mine[: buffer.numel()])
        future.set_result(buffer)
    except Exception as error:  # a lost worker; DDP raises it while waiting
        future.set_exception(error)
