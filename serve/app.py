"""What `serve run` and serve/config.yaml import: builders of Serve applications, and a check.

serve run serve.app:build model=runs/x/model     # one model at once
python serve/app.py check serve/config.yaml      # finds misspelt keys, which Serve itself ignores
serve run serve/config.yaml
python serve/app.py new-key reporting sentiment  # an API key for one model
"""

import sys
from typing import Any

from trainyard.serving import app as application


def build(args: dict[str, Any]) -> Any:
    """A gateway and one model."""
    return application.host_application(args)


def gateway(args: dict[str, Any]) -> Any:
    """The HTTP application in front of all models."""
    return application.gateway_application(args)


def model(args: dict[str, Any]) -> Any:
    """One model with replicas of its own."""
    return application.model_application(args)


def shared(args: dict[str, Any]) -> Any:
    """Rarely used models that share replicas."""
    return application.shared_application(args)


if __name__ == "__main__":
    from trainyard.serving import main

    main(sys.argv[1:])
