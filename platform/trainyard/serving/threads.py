"""How many threads a forward pass on the CPU uses."""

import threading


class Threads(threading.local):
    """Those of one forward pass, which torch keeps for each thread that runs one."""

    def __init__(self, most: int) -> None:
        self.most, self._now = most, 0

    def share(self, passes: int) -> None:
        """Of all threads, take what one of so many passes may have."""
        import torch

        if (wanted := max(1, self.most // passes)) != self._now:
            torch.set_num_threads(wanted)
            self._now = wanted
