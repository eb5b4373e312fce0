"""Train the embedded demo, serve the model, and send it new sentences over HTTP."""

import json
import sys
from typing import Any
from urllib.request import Request, urlopen

from trainyard.cli import run_job
from trainyard.config import TrainConfig


def quickstart(config: TrainConfig) -> dict[str, Any]:
    """Train as `jobs/train.py` does, then send requests to Ray Serve as any client does."""
    from trainyard.data import EXAMPLES
    from trainyard.serving import served
    from trainyard.training import fit

    result = fit(config)
    with served(result.model) as url:
        print(f"POST {url}", file=sys.stderr)
        for first, second, label in EXAMPLES:
            body = json.dumps({"inputs": {"text": first, "text_pair": second}}).encode()
            request = Request(url, body, {"content-type": "application/json"})
            answer = json.load(urlopen(request, timeout=60))[0][0]
            right = "equivalent" if label else "not_equivalent"
            mark = "right" if answer["label"] == right else f"wrong, it is {right}"
            print(
                f"{first}\n{second}\n  {answer['label']} {answer['score']:.2f} ({mark})",
                file=sys.stderr,
            )
    return result.as_json()


if __name__ == "__main__":
    run_job(TrainConfig, quickstart)
