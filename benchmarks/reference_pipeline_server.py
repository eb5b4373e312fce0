"""Reference server with FastAPI and transformers' pipeline, one thread per request.

python benchmarks/reference_pipeline_server.py MODEL PORT
"""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from transformers import pipeline

app = FastAPI()
classify = pipeline("text-classification", model=sys.argv[1], top_k=None)


@app.post("/models/reference")
def predict(request: dict[str, Any]) -> Any:
    """Answer a request. FastAPI runs a `def` in its thread pool, as its documentation advises."""
    return classify(request["inputs"], truncation=True)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
