"""Versions of one model in one replica: what cannot be loaded is refused, what serves stays."""

import asyncio
import json
import shutil
import struct
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.replicas_locally import Loads, Store, settled, unwatched, wanted
from support.small_models import classifier

from trainyard.errors import UserError
from trainyard.serving.options import ModelOptions, Version
from trainyard.serving.replica import versioned_model as module
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.metrics import ReplicaMetrics
from trainyard.serving.replica.model_source import locate, weight_files
from trainyard.serving.replica.version_records import KEPT, Build
from trainyard.serving.replica.versioned_model import VersionedModel

TASK = "text-classification"
DEEP = "[" * 100_000
RUNAWAY = {"__metadata__": {}, "a": {"shape": [float("inf")]}}


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    unwatched(monkeypatch)
    return Store(monkeypatch)


def replica(run: str = "1", args: str = "some", **options: Any) -> VersionedModel:
    build = Build(args, run)
    return VersionedModel("mail", ModelOptions(threads=1, **options), "app", build)


def source(name: str) -> dict[str, str]:
    return {"source": name}


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory\nTried"),
        KeyError("type"),
        RecursionError(),
        UserError("no"),
    ],
)
def test_whatever_a_version_raises_the_one_that_serves_stays(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    loads = Loads(monkeypatch, {"a": TASK, "broken": error, "b": TASK})

    async def run() -> None:
        model = replica()
        await wanted(model, source("a"))
        for bad in (source("broken"), {"sorce": "a"}, 7):
            await wanted(model, bad)
            about = model.describe()
            assert about["source"] == "a"
            assert about["refused"]["version"] == bad
            assert "\n" not in about["refused"]["error"]
        await wanted(model, source("b"))
        assert model.describe() == {"source": "b"}
        assert loads.open() == ["b"]

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory\nTried"), KeyError("type"), RecursionError()]
)
def test_a_first_version_that_fails_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Loads(monkeypatch, {"broken": error})
    with pytest.raises(
        UserError, match=f"broken cannot be loaded .{type(error).__name__}"
    ) as found:
        asyncio.run(replica().want(source("broken")))
    assert "\n" not in str(found.value)


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("task", "file", "content"),
    [
        (TASK, "config.json", DEEP),
        (TASK, "config.json", {"hidden_size": 10**400}),
        (TASK, "config.json", {"id2label": {"0": "a", "5": "b", "7": "c"}}),
        ("zero-shot-classification", "config.json", {"id2label": {"0": "a", "5": "b", "7": "c"}}),
        (TASK, "model.safetensors", header(DEEP)),
        (TASK, "model.safetensors", header(json.dumps(RUNAWAY))),
        (TASK, "model.safetensors", header(json.dumps({"a": {"shape": [10**400]}}))),
        ("feature-extraction", "modules.json", "[{}]"),
        ("feature-extraction", "modules.json", "{"),
        ("feature-extraction", "1_Pooling/config.json", "{"),
    ],
)
def test_a_broken_folder_is_refused_in_one_sentence(
    tmp_path: Path, task: str, file: str, content: Any
) -> None:
    good, bad = classifier(tmp_path / "good"), tmp_path / "bad"
    if task == "feature-extraction":
        (good / "1_Pooling").mkdir()
        (good / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
        modules = [
            {"type": "x.Transformer", "path": ""},
            {"type": "x.Pooling", "path": "1_Pooling"},
        ]
        (good / "modules.json").write_text(json.dumps(modules))
    shutil.copytree(good, bad)
    if isinstance(content, dict):
        content = json.dumps(json.loads((bad / file).read_text()) | content)
    (bad / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    async def run() -> None:
        with pytest.raises(UserError) as first:
            await replica(task=task).want(source(str(bad)))
        model = replica("2", task=task)
        await wanted(model, source(str(good)))
        await wanted(model, source(str(bad)))
        about = model.describe()
        assert about["source"] == str(good)
        assert about["refused"]["error"] == str(first.value)
        assert "\n" not in str(first.value)
        model.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.json", DEEP.encode(), "config.json is missing or not valid JSON"),
        (
            "config.json",
            json.dumps({"hidden_size": 10**400, "n_layer": 1}).encode(),
            "parameters, at most",
        ),
        ("model.safetensors", header(DEEP), "is not a valid safetensors file"),
        ("model.safetensors", header(json.dumps(RUNAWAY)), "is not a valid safetensors file"),
        (
            "model.safetensors",
            header(json.dumps({"a": {"shape": [10**400]}})),
            "is not a valid safetensors file",
        ),
    ],
)
def test_what_nobody_saved_is_a_sentence_before_anything_is_built(
    tmp_path: Path, file: str, content: bytes, sentence: str
) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    (tmp_path / "model.safetensors").write_bytes(header("{}"))
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        locate(Version(source=str(tmp_path)), 2e10)


def test_a_version_for_another_task_is_refused_everywhere(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch, {"a": TASK, "other": "fill-mask"})

    async def run() -> None:
        model = replica()
        await wanted(model, source("a"))
        for one in (model, replica()):  # also a replica that has not seen the old one
            await wanted(one, source("other"))
            about = one.describe()
            assert about["source"] == "a"
            assert (
                "other is for fill-mask and 'mail' answers text-classification"
                in (about["refused"]["error"])
            )
        assert loads.open() == ["a", "a"]
        store.running = 1
        deployed_with_other_args = replica("2", "others")
        await deployed_with_other_args.want(source("other"))
        assert deployed_with_other_args.describe() == {"source": "other"}

    asyncio.run(run())


def test_a_new_replica_starts_from_what_was_good_in_its_deployment(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch, {"a": TASK, "b": TASK, "broken": UserError("it is broken")})

    async def run() -> None:
        for good in "ab":
            await wanted(replica(), source(good))
        again = replica()
        await wanted(again, source("broken"))
        assert again.describe()["source"] == "b"
        assert again.describe()["refused"]["error"] == "it is broken"
        loads.table["b"] = UserError("it is not on this node")
        elsewhere = replica()
        await wanted(elsewhere, source("b"))
        assert elsewhere.describe()["source"] == "a"
        with pytest.raises(UserError, match="it is broken"):
            await replica("another build").want(source("broken"))
        store.broken = True
        with pytest.raises(UserError, match="it is broken"):
            await replica().want(source("broken"))
        loads.table["b"] = TASK
        await replica().want(source("b"))

    asyncio.run(run())
    assert KEPT == 2


def test_a_build_after_one_that_failed_knows_what_its_replicas_serve(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve builds an application with the same args again, and its replicas stay what they are."""
    broken = UserError("it is broken")
    Loads(monkeypatch, {"a": TASK, "broken": broken, "other": "fill-mask"})

    async def run() -> None:
        await replica("the first").want(source("a"))
        for store.status, store.running in (("RUNNING", 0), ("UNHEALTHY", 0), ("DEPLOYING", 1)):
            for name in ("broken", "other"):
                lost_and_replaced = replica(f"{store.status} {name}")
                await wanted(lost_and_replaced, source(name))
                assert lost_and_replaced.describe()["source"] == "a"
        for store.running, args in (
            (0, "some"),
            (1, "others"),
        ):  # it was deleted, or told otherwise
            with pytest.raises(UserError, match="it is broken"):
                await replica("the last", args).want(source("broken"))

    asyncio.run(run())


def test_a_refused_version_is_tried_again_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch, {"a": TASK, "copied": UserError("not there yet")})
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def run() -> None:
        model = replica()
        await wanted(model, source("a"))
        await wanted(model, source("copied"))
        waits = []
        for _ in range(8):
            asked = len(loads.asked)
            await model.check_health()
            await settled(model)
            assert len(loads.asked) == asked, "too early"
            waits.append(model._retry_at - now[0])
            now[0] = model._retry_at
            await model.check_health()
            await settled(model)
        assert waits == [30, 60, 120, 240, 480, 900, 900, 900]
        assert model.describe()["refused"]["tries"] == 9
        loads.table["copied"] = TASK
        now[0] = model._retry_at
        await model.check_health()
        await settled(model)
        assert model.describe() == {"source": "copied"}
        assert loads.open() == ["copied"]
        asked = len(loads.asked)
        now[0] += 10_000
        await model.check_health()
        await asyncio.sleep(0)
        assert len(loads.asked) == asked

    asyncio.run(run())
    assert module.LONGEST_RETRY_SECONDS == 900


def test_a_version_is_still_refused_after_ten_days_of_retries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Loads(monkeypatch, {"a": TASK, "broken": UserError("it is broken")})

    async def run() -> None:
        model = replica()
        await model.want(source("a"))
        await wanted(model, source("broken"))
        model._tries = 1024  # 2.0**1024 is no float
        before = time.monotonic()
        model._refuse(UserError("it is broken"))
        assert model._retry_at >= before + module.LONGEST_RETRY_SECONDS
        assert model.describe()["refused"]["tries"] == 1025

    asyncio.run(run())


def test_weights_that_a_folder_holds_twice_are_counted_once(tmp_path: Path) -> None:
    """As a whole file, as shards with an index, and as another program's copy."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForSequenceClassification

    whole = classifier(tmp_path / "whole")
    stored = sum(
        p.numel() for p in AutoModelForSequenceClassification.from_pretrained(whole).parameters()
    )
    both, sharded = tmp_path / "both", tmp_path / "sharded"
    AutoModelForSequenceClassification.from_pretrained(whole).save_pretrained(
        sharded, max_shard_size="20KB"
    )
    shards = sorted(file.name for file in sharded.glob("*.safetensors"))
    assert len(shards) > 1
    shutil.copytree(whole, both)
    for file in sharded.glob("model*.safetensors*"):
        shutil.copy(file, both)
    for folder in (whole, both, sharded):
        save_file({"copy": torch.zeros(100_000)}, folder / "consolidated.safetensors")
        files = ["model.safetensors"] if folder != sharded else shards
        assert [file.name for file in weight_files(folder)] == files
        locate(Version(source=str(folder)), stored)
        with pytest.raises(UserError, match="parameters, at most"):
            locate(Version(source=str(folder)), stored - 1)


def test_a_model_larger_than_the_free_memory_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = classifier(tmp_path)
    monkeypatch.setattr("ray._private.utils.estimate_available_memory", lambda: 10_000)
    with pytest.raises(UserError, match=r"needs about 0\.\d GB in float32 and 0\.0 GB are free"):
        Host.load(Version(source=str(folder)), ModelOptions(threads=1), ReplicaMetrics())


def test_what_serves_is_not_loaded_again_when_serve_repeats_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = Loads(monkeypatch, {"a": TASK, "broken": UserError("no")})

    async def run() -> None:
        model = replica()
        for name in ("a", "a", "broken", "broken"):
            await wanted(model, source(name))
        assert loads.asked == ["a", "broken"]

    asyncio.run(run())


def test_a_version_that_comes_after_the_end_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch, {"a": TASK, "b": TASK})

    async def run() -> None:
        model = replica()
        await wanted(model, source("a"))
        model.close()
        await wanted(model, source("b"))
        assert loads.open() == []

    asyncio.run(run())
