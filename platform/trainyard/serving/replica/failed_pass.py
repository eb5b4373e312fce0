"""Errors of forward passes: recognize a lack of memory, free it, build the error of a request."""

import sys

from trainyard.serving.errors import RequestError


def out_of_memory(error: Exception) -> bool:
    """Return whether `error` means out of memory; torch's own exception class covers GPUs only."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def release_memory(error: Exception) -> None:
    """Free the memory of a failed pass before a smaller one.

    The frames of the traceback hold its tensors. Freed GPU memory stays in torch's cache, which is
    emptied after an out-of-memory error.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__context__
    torch = sys.modules.get("torch")
    if torch is not None and out_of_memory(error) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def as_request_error(error: Exception, length: int) -> RequestError:
    """Build the error of a row of `length` tokens that fails even alone."""
    if out_of_memory(error):
        return RequestError(
            "failed", f"an input of {length} tokens does not fit into memory; shorten it"
        )
    failure = RequestError(
        "failed", "the model failed on this input; its replica's log has the reason"
    )
    failure.__cause__ = error
    return failure
