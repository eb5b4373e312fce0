"""The demo from training to an answer over HTTP."""

import json
import sys
from typing import Any
from urllib.request import Request, urlopen

from trainyard.config import TrainConfig


def quickstart(config: TrainConfig) -> dict[str, Any]:
    """Train the generated demo, serve the model, and send it sentences that it never saw."""
    from trainyard.data import EXAMPLES
    from trainyard.serving import served
    from trainyard.training import fit

    result = fit(config)
    with served(result.model) as url:
        print(f"POST {url}", file=sys.stderr)  # noqa: T201
        for first, second, label in EXAMPLES:
            body = json.dumps({"inputs": {"text": first, "text_pair": second}}).encode()
            request = Request(url, body, {"content-type": "application/json"})
            answer = json.load(urlopen(request, timeout=60))[0][0]
            right = "equivalent" if label else "not_equivalent"
            mark = "right" if answer["label"] == right else f"wrong, it is {right}"
            print(  # noqa: T201
                f"{first}\n{second}\n  {answer['label']} {answer['score']:.2f} ({mark})",
                file=sys.stderr,
            )
    return result.as_json()
