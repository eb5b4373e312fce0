"""Find the rows of a batch that fail."""

from collections.abc import Callable, Sequence

from trainyard.batching import Item, Result


def isolated(
    forward: Callable[[list[Item]], Sequence[Result]], batch: list[Item]
) -> list[Result | Exception]:
    """Run `forward` on a batch; after a failure, retry each half, down to the item at fault.

    Returns:
        A result for each item, or the exception of `forward` on this item alone.
    """
    try:
        return list(forward(batch))
    except Exception as error:
        if len(batch) == 1:
            return [error.with_traceback(None)]  # its frames would keep the tensors
    middle = len(batch) // 2
    return [*isolated(forward, batch[:middle]), *isolated(forward, batch[middle:])]
