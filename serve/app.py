"""Builders of Serve applications, for `serve run` and serve/config.yaml; commands to check a configuration.

serve run serve.app:build model=runs/x/model     # one model, without a configuration
python serve/app.py check serve/config.yaml      # finds misspelled keys, which Serve ignores
serve run serve/config.yaml
python serve/app.py new-key reporting sentiment  # an API key for one model
"""

import sys
from typing import Any

from trainyard.serving import app as application


def build(args: dict[str, Any]) -> Any:
    """Build a gateway and one model."""
    return application.host_application(args)


def gateway(args: dict[str, Any]) -> Any:
    """Build the HTTP application in front of all models."""
    return application.gateway_application(args)


def model(args: dict[str, Any]) -> Any:
    """Build one model with its own replicas."""
    return application.model_application(args)


def shared(args: dict[str, Any]) -> Any:
    """Build replicas that rarely used models share."""
    return application.shared_application(args)


if __name__ == "__main__":
    from trainyard.serving import main

    main(sys.argv[1:])
