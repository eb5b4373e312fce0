"""`trainyard quickstart`: train a demo model, serve it, and classify sentence pairs over HTTP."""

import json
from typing import Any
from urllib.request import Request, urlopen

from trainyard.config import TrainConfig
from trainyard.terminal import say, stage


def quickstart(config: TrainConfig) -> dict[str, Any]:
    """Train on generated data, serve the model, and print its answers to unseen sentence pairs.

    Returns:
        The JSON result of `fit`, and `open`: URL of the start page once `trainyard serve` runs.
    """
    from trainyard.data import EXAMPLES
    from trainyard.serving import served
    from trainyard.training import fit

    result = fit(config)
    stage("serving the model")
    with served(result.model) as url:
        say(f"POST {url}, with pairs of sentences that the model never saw:")
        for first, second, label in EXAMPLES:
            body = json.dumps({"inputs": {"text": first, "text_pair": second}}).encode()
            request = Request(url, body, {"content-type": "application/json"})
            answer = json.load(urlopen(request, timeout=60))[0][0]
            right = "equivalent" if label else "not_equivalent"
            mark = "right" if answer["label"] == right else f"wrong, it is {right}"
            say(f"  {first}\n  {second}\n    {answer['label']} {answer['score']:.2f} ({mark})")
    return {**result.as_json(), "open": "http://127.0.0.1:8000/"}
