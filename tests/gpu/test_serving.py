"""Serving on a GPU: devices of replicas, answers as on a CPU, memory that comes back."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.serve_requests import BODY, ask
from support.serving_locally import load
from support.small_models import classifier, gpt2

from trainyard.serving.local import served

pytestmark = pytest.mark.gpu


def memory(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def answers(host: Any, bodies: list[bytes]) -> list[Any]:
    """Answers to requests that are sent at once."""

    async def ask_all() -> list[Any]:
        found = await asyncio.gather(*(host.answer(body, 60) for body in bodies))
        assert {answer.status for answer in found} == {200}, found
        return [json.loads(answer.body) for answer in found]

    return asyncio.run(ask_all())


BODIES = [json.dumps({"inputs": " ".join(["bana cola"] * n)}).encode() for n in range(1, 8)]


@pytest.mark.parametrize(
    ("dtype", "limit"), [("float32", 1e-3), ("bfloat16", 5e-2), ("float16", 1e-2)]
)
def test_answers_are_those_of_a_cpu(dtype: str, limit: float, device: str, tmp_path: Path) -> None:
    folder = classifier(tmp_path)
    scores = []
    for options in ({"device": "cpu"}, {"device": device, "dtype": dtype}):
        host = load(folder, **options)
        assert host.about["device"] == options["device"]
        found = answers(host, BODIES)
        scores.append([{one["label"]: one["score"] for one in answer[0]} for answer in found])
        host.close()
    for expected, found in zip(*scores, strict=True):
        assert found == pytest.approx(expected, abs=limit)


def test_a_generated_text_is_that_of_a_cpu(device: str, tmp_path: Path) -> None:
    body = [json.dumps({"inputs": "ba", "parameters": {"max_new_tokens": 12}}).encode()] * 16
    texts = []
    for place in ("cpu", device):
        host = load(gpt2(tmp_path / place), device=place)
        texts.append(answers(host, body))
        host.close()
    assert texts[0] == texts[1]


def test_sixteen_streams_are_those_of_a_cpu(device: str, tmp_path: Path) -> None:
    body = {"inputs": "ba", "stream": True, "parameters": {"max_new_tokens": 12}}

    async def read(host: Any) -> str:
        *events, end = [part async for part in host.stream(json.dumps(body).encode(), 60)]
        assert end == b"data: [DONE]\n\n"
        text: str = json.loads(events[-1].removeprefix(b"data:"))["generated_text"]
        return text

    async def read_all(host: Any) -> list[str]:
        return await asyncio.gather(*(read(host) for _ in range(16)))

    texts = []
    for place in ("cpu", device):
        host = load(gpt2(tmp_path / place), device=place)
        texts.append(asyncio.run(read_all(host)))
        host.close()
    assert texts[0] == texts[1]
    assert all(texts[0])


def test_fifty_versions_leave_no_memory_behind(device: str, tmp_path: Path) -> None:
    folder = classifier(tmp_path)
    held = []
    for _ in range(50 if device == "cuda" else 3):
        host = load(folder, device=device)
        answers(host, BODIES)
        host.close()
        del host
        held.append(memory(device))
    assert held[-1] <= held[2]


def test_a_batch_that_does_not_fit_is_split_and_its_memory_comes_back(
    device: str, tmp_path: Path
) -> None:
    host = load(classifier(tmp_path), device=device, batch_tokens=10**6)
    before, forward, failures = memory(device), host.predictor.forward, []

    def starved(rows: Any) -> Any:
        """Take what is left of the memory while many rows are computed."""
        if len(rows) > 4:
            failures.append(len(rows))
            if device == "cpu":
                raise MemoryError
            torch.empty(
                torch.cuda.get_device_properties(0).total_memory, device=device, dtype=torch.uint8
            )
        return forward(rows)

    host.predictor.forward = starved  # type: ignore[method-assign]
    texts = json.dumps({"inputs": ["bana cola"] * 30}).encode()
    assert len(answers(host, [texts])[0]) == 30
    assert failures
    assert memory(device) <= before + 2**20
    host.close()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("gpus", [0, 1])
def test_a_replica_uses_the_gpu_that_it_reserved_and_no_other(
    gpus: int, device: str, tmp_path: Path
) -> None:
    if gpus and device == "cpu":
        pytest.skip("no GPU to reserve")
    with served(str(classifier(tmp_path / "m")), threads=1, num_cpus=0.1, num_gpus=gpus) as url:
        assert ask(url, BODY)[0] == 200
        assert ask(url)[1]["device"] == ("cuda" if gpus else "cpu")
