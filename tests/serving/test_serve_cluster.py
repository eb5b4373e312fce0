"""The applications on a real Ray Serve: found, swapped, refused, killed, shared."""

import asyncio
import contextlib
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.serve_requests import BODY, JSON, Load, ask, refusal, wait_until
from support.serving_locally import free_port
from support.small_models import classifier, encoder_decoder, gpt2

from trainyard.errors import UserError
from trainyard.serving.local import served


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models whose answers differ by their labels, two that generate, one that is broken."""
    root = tmp_path_factory.mktemp("models")
    found = {
        name: classifier(root / name, labels=(f"{name}-1", f"{name}-2")) for name in ("a", "b", "c")
    }
    found["g"] = gpt2(root / "g")
    found["t"] = encoder_decoder(root / "t", "T5")
    found["broken"] = root / "broken"
    found["broken"].mkdir()
    (found["broken"] / "config.json").write_text('{"architectures": ["BertModel"]}')
    return found


def config(models: dict[str, Path], version: Path, *, limits: Any = None) -> dict[str, Any]:
    """A gateway, a model of two replicas and one that shares."""
    return {
        "applications": [
            {
                "name": "gateway", "route_prefix": "/", "import_path": "serve.app:gateway",
                "args": limits or {},
            },
            {
                "name": "mail", "route_prefix": None, "import_path": "serve.app:model",
                "args": {"num_replicas": 2, "num_cpus": 0.1, "threads": 1},
                "deployments": [{"name": "Model", "user_config": {"source": str(version)}}],
            },
            {
                "name": "rare", "route_prefix": None, "import_path": "serve.app:shared",
                "args": {"max_loaded": 1, "num_cpus": 0.1, "threads": 1, "num_replicas": 2},
                "deployments": [
                    {
                        "name": "SharedModels",
                        "user_config": {
                            "models": {
                                name: {"source": str(models[name[-1]])}
                                for name in ("b", "c", "g", "org/c", "t")
                            }
                        },
                    }
                ],
            },
        ]
    }  # fmt: skip


def deploy(config: dict[str, Any], *, checked: bool = True) -> None:
    """What `serve run FILE` does with a file."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from trainyard.serving.check import check_config

    if checked:
        check_config(config, "test")
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)


def test_one_model_at_once_and_a_broken_one_refused(cluster: Any, models: dict[str, Path]) -> None:
    del cluster
    with served(str(models["c"]), threads=1, num_cpus=0.1) as url:
        assert url.endswith("/models/c")
        assert ask(url, BODY)[1][0][0]["label"].startswith("c-")
    with pytest.raises(UserError, match="no weights in safetensors"), served(str(models["broken"])):
        pass
    with pytest.raises(UserError, match=r"listens on 0\.0\.0\.0 and there are no API keys"):  # noqa: SIM117
        with served(str(models["c"]), host="0.0.0.0", threads=1, num_cpus=0.1):
            pass


@pytest.fixture(scope="module")
def url(cluster: Any, models: dict[str, Path]) -> Iterator[str]:
    del cluster
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        deploy(config(models, models["a"]))
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _ready(url), 120)
        yield url
    finally:  # else its replicas hold the CPUs that other tests wait for
        serve.shutdown()


def _ready(url: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        names = [model["name"] for model in ask(f"{url}/models")[1]]
        return ask(f"{url}/ready")[0] == 200 and names == ["b", "c", "g", "mail", "org/c", "t"]
    return False


def copy_that_hangs(model: Path, folder: Path) -> Path:
    """Copy a model; reading the copy waits at a pipe for ever."""
    shutil.copytree(model, folder)
    os.mkfifo(folder / "metrics.json")
    return folder


def replicas(of: str = "mail#Model") -> set[str]:
    from ray.util import list_named_actors

    named = list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in named if f"::{of}#" in actor["name"]}


def running(application: str, deployment: str) -> int:
    from ray import serve

    found = serve.status().applications[application].deployments[deployment]
    return int(found.replica_states.get("RUNNING", 0))


def test_models_are_found_and_answer(url: str) -> None:
    assert ask(f"{url}/models/mail", BODY)[1][0][0]["label"].startswith("a-")
    status, about = ask(f"{url}/models/mail")
    assert (status, about["task"], about["labels"]) == (200, "text-classification", ["a-1", "a-2"])
    wait_until(lambda: ask(f"{url}/models/mail")[1]["connections"]["open"] == 1, 10)
    with Load(f"{url}/models/mail") as load:
        load.wait_for((200, "a"))
        wait_until(lambda: ask(f"{url}/models/mail")[1]["connections"]["requests"] > 0, 10)
    status, answer = ask(f"{url}/models/mai", BODY)
    assert (status, answer["error"]) == (
        404,
        "no model named 'mai'; available: b, c, g, mail, org/c, t",
    )


def test_a_new_version_takes_over_without_restart_and_without_a_failed_request(
    url: str, models: dict[str, Path]
) -> None:
    before = replicas()
    with Load(f"{url}/models/mail") as load:
        load.wait_for((200, "a"))
        deploy(config(models, models["b"]))
        load.wait_for((200, "b"), 100)
        deploy(config(models, models["a"]))
        load.wait_for((200, "a"), 100)
    assert {status for status, _ in load.found} == {200}, load.found
    assert replicas() == before


def test_a_broken_version_is_refused_while_the_old_one_serves(
    url: str, models: dict[str, Path]
) -> None:
    with Load(f"{url}/models/mail") as load:
        deploy(config(models, models["broken"]))
        error = refusal(f"{url}/models/mail")
    assert set(load.found) == {(200, "a")}
    assert "no weights in safetensors" in error
    deploy(config(models, models["a"]))


@pytest.mark.long
def test_a_replica_that_is_lost_while_a_version_is_refused_comes_back_with_the_old_one(
    url: str, models: dict[str, Path]
) -> None:
    """Also when the application is built again, after it could not be built."""
    import ray
    from ray import serve

    def deployed(threads: int, status: str) -> None:
        wanted = config(models, models["broken"])
        wanted["applications"][1]["args"]["threads"] = threads
        deploy(wanted, checked=False)
        wait_until(lambda: serve.status().applications["mail"].status == status, 60)

    deployed(1, "RUNNING")
    deployed(0, "DEPLOY_FAILED")
    deployed(1, "RUNNING")
    name = sorted(replicas())[0]
    with Load(f"{url}/models/mail") as load:
        ray.kill(ray.get_actor(name, namespace="serve"))
        wait_until(lambda: min(len(replicas() - {name}), running("mail", "Model")) >= 2, 90)
        load.wait_for((200, "a"), 60)  # also from the new one
    assert set(load.found) == {(200, "a")}
    assert "no weights in safetensors" in refusal(f"{url}/models/mail")
    deploy(config(models, models["a"]))


def test_a_version_that_ends_its_process_ends_one_and_is_refused(
    url: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """Its loading hangs at a pipe, until the process that tries it first is killed."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

    deadly = copy_that_hangs(models["a"], tmp_path / "deadly")
    before = replicas()
    with Load(f"{url}/models/mail") as load:
        load.wait_for((200, "a"))
        deploy(config(models, deadly))
        prefix = "attempt/mail:mail:"
        wait_until(lambda: bool(_internal_kv_list(prefix, namespace="trainyard")), 60)
        (attempt,) = _internal_kv_list(prefix, namespace="trainyard")
        owner = json.loads(_internal_kv_get(attempt, namespace="trainyard"))["owner"]["actor"]
        assert owner in before
        ray.kill(ray.get_actor(owner, namespace="serve"))
        assert "ended the process of the replica" in refusal(f"{url}/models/mail")
        wait_until(lambda: running("mail", "Model") == 2 and len(replicas()) == 2, 90)
        load.wait_for((200, "a"), 40)
    assert set(load.found) == {(200, "a")}
    assert before - replicas() == {owner}
    deploy(config(models, models["a"]))


@pytest.mark.long
def test_a_version_that_hangs_costs_neither_the_model_nor_the_next_version(
    url: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """Not even when each replica is killed meanwhile: new ones first load what served."""
    import ray
    from ray import serve
    from ray.experimental.internal_kv import _internal_kv_list

    hanging = copy_that_hangs(models["a"], tmp_path / "hanging")
    with Load(f"{url}/models/mail") as load:
        load.wait_for((200, "a"))
        deploy(config(models, hanging))
        prefix = "attempt/mail:mail:"
        wait_until(lambda: bool(_internal_kv_list(prefix, namespace="trainyard")), 60)
        for name in sorted(replicas()):
            wait_until(lambda: serve.status().applications["mail"].status == "RUNNING", 30)
            assert ask(f"{url}/ready")[0] == 200
            ray.kill(ray.get_actor(name, namespace="serve"))
            wait_until(lambda: name not in replicas() and running("mail", "Model") == 2, 90)  # noqa: B023
            load.wait_for((200, "a"), 40)
        deploy(config(models, models["b"]))
        load.wait_for((200, "b"), 150)
        deploy(config(models, models["a"]))
        load.wait_for((200, "a"), 150)
    assert {status for status, _ in load.found} == {200}, load.found


def test_killed_replicas_cost_no_request(url: str) -> None:
    import ray

    with Load(f"{url}/models/mail") as load:
        for _ in range(2):
            name = sorted(replicas())[0]
            load.wait_for((200, "a"))
            ray.kill(ray.get_actor(name, namespace="serve"))
            load.wait_for((200, "a"), 60)
    assert set(load.found) == {(200, "a")}


def test_a_single_gateway_is_replaced_without_a_failed_request(
    url: str, models: dict[str, Path]
) -> None:
    before = replicas("gateway#Gateway")
    with Load(f"{url}/models/mail") as load:
        load.wait_for((200, "a"))
        deploy(config(models, models["a"], limits={"concurrent_requests": 500}))
        deadline = time.monotonic() + 90
        while before & (now := replicas("gateway#Gateway")) or not now:
            assert time.monotonic() < deadline
            with contextlib.suppress(KeyError):  # its application is being built
                assert running("gateway", "Gateway") > 0  # else requests wait
            time.sleep(0.1)
        load.wait_for((200, "a"))
    assert set(load.found) == {(200, "a")}


def test_rare_models_share_a_replica_and_give_way(url: str) -> None:
    for name in ("b", "c", "b", "org/c"):
        label = ask(f"{url}/models/{name}", BODY)[1][0][0]["label"]
        assert label.startswith(f"{name[-1]}-")


def test_requests_go_to_the_replica_that_has_their_model(url: str) -> None:
    """Of two replicas with room for one model each."""
    wait_until(lambda: running("rare", "SharedModels") >= 2, 60)
    assert ask(f"{url}/models/b", BODY)[0] == 200
    time.sleep(2)  # until the router was told
    found = [ask(f"{url}/models/b")[1].get("status") for _ in range(12)]
    assert found == [None] * 12  # else half of them would come from one that has not loaded it


def test_tokens_are_streamed_through_both_hops(url: str) -> None:
    body = json.dumps({"inputs": "the", "parameters": {"max_new_tokens": 5}, "stream": True})
    request = urllib.request.Request(f"{url}/models/g", body.encode(), JSON)
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert len(response.headers.get_all("x-request-id")) == 1
        events = [line[5:] for line in response.read().decode().splitlines() if line]
    assert events[-1] == " [DONE]"
    tokens = [json.loads(event) for event in events[:-1]]
    assert "".join(t["token"]["text"] for t in tokens) == tokens[-1]["generated_text"]
    status, answer = ask(f"{url}/models/b", b'{"inputs": "x", "stream": true}')
    assert (status, answer["error"]) == (422, "text-classification does not support streaming")


def test_a_client_that_leaves_takes_its_rows_along(url: str) -> None:
    """What they want holds the model for many seconds: the next answer comes in time only without."""
    wanted = {"max_new_tokens": 4000, "min_new_tokens": 4000}
    body = json.dumps({"inputs": "bab", "parameters": wanted}).encode()

    async def leave() -> None:
        host, port = url.removeprefix("http://").split(":")
        writers = []
        for _ in range(10):
            _, writer = await asyncio.open_connection(host, int(port))
            head = b"POST /models/t HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(body) + body)
            await writer.drain()
            writers.append(writer)
            await asyncio.sleep(0.1)
        for writer in writers:
            writer.close()

    short = json.dumps({"inputs": "bab", "parameters": {"max_new_tokens": 2}}).encode()
    assert ask(f"{url}/models/t", short)[0] == 200  # it is loaded now
    asyncio.run(leave())
    began = time.monotonic()
    assert ask(f"{url}/models/t", short)[0] == 200
    assert time.monotonic() - began < 4
    assert ask(f"{url}/models/t")[1]["waiting_rows"] == 0
