"""Builders of `trainyard.serving.app`, for configs of a checkout that import `serve.app:…`.

python serve/app.py check serve/config.yaml      # as `trainyard serve check`
python serve/app.py new-key reporting sentiment  # as `trainyard serve new-key`
"""

import sys

from trainyard.serving import app, main

build, gateway, model, shared = app.build, app.gateway, app.model, app.shared

if __name__ == "__main__":
    main(sys.argv[1:])
