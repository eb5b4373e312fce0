"""Sort texts with a served model: python client.py TEXT… (or one text a line on stdin)."""

import os
import sys

from huggingface_hub import InferenceClient

URL = os.environ.get("MODEL_URL", "http://localhost:8000/models/mail")


def main() -> None:
    """Print the label and the score of each text."""
    client = InferenceClient(URL, token=os.environ.get("MODEL_KEY"))
    texts = sys.argv[1:] or [line.strip() for line in sys.stdin if line.strip()]
    for text in texts:
        best = client.text_classification(text, top_k=1)[0]
        print(f"{best.label:10} {best.score:.3f}  {text}")


if __name__ == "__main__":
    main()
