"""Trainyard: from a text data set to a fine-tuned, tuned and served Hugging Face model, by Ray.

    from trainyard import TrainConfig, fit, serve
    result = fit(TrainConfig(train_file="mail.csv"))
    result.predict(["where is my order?"])
    with serve(result.model) as server:
        print(server.url)

Every package loads its public names on first use, so importing one costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
