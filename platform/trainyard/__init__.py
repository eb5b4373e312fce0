"""Trainyard: fine-tune, tune and serve Hugging Face models on text data sets, with Ray.

    from trainyard import TrainConfig, fit, serve
    result = fit(TrainConfig(train_file="mail.csv"))
    result.predict(["where is my order?"])
    with serve(result.model) as server:
        print(server.url)

Each package loads its public names on first use: `import trainyard` imports neither torch nor Ray.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
