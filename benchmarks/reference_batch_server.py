"""Reference server as in Ray's documentation: a FastAPI ingress with `@serve.batch`.

Model, tokenizer, thread pool and access-log setting equal ours. Batches have up to 32 rows and wait
5 ms, which suits 32 and more clients. Run it with `serve run`, like ours:

    serve run benchmarks.reference_batch_server:build model=FOLDER
"""

import asyncio
from typing import Any

from fastapi import FastAPI
from ray import serve

app = FastAPI()


@serve.deployment(max_ongoing_requests=1000, logging_config={"enable_access_log": False})
@serve.ingress(app)
class Classifier:
    """Tokenize and classify batches of requests, off the event loop."""

    def __init__(self, model: str, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(
            model, dtype=torch.float32
        ).eval()

    def forward(self, texts: list[str]) -> list[Any]:
        """Run one padded forward pass."""
        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with self.torch.inference_mode():
            scores = self.model(**batch).logits.softmax(-1).tolist()
        names = self.model.config.id2label
        return [
            [sorted(
                ({"label": names[i], "score": score} for i, score in enumerate(row)),
                key=lambda entry: -entry["score"],
            )]
            for row in scores
        ]  # fmt: skip

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=32, batch_wait_timeout_s=0.005
    )
    async def batched(self, texts: list[str]) -> list[Any]:
        """Classify a batch that Serve has collected."""
        return await asyncio.to_thread(self.forward, texts)

    @app.post("/models/reference")
    async def predict(self, request: dict[str, Any]) -> Any:
        """Answer a request of one text."""
        return await self.batched(request["inputs"])


def build(args: dict[str, str]) -> Any:
    """Build the application for `serve run`."""
    deployment: Any = Classifier
    return deployment.bind(args["model"], int(args.get("threads", "2")))
