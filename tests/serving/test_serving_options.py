"""Configuration: misspelt keys are named, names cannot be paths, hostile models are not loaded."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainyard.errors import UserError
from trainyard.serving.app import default_name
from trainyard.serving.check import check_config, main
from trainyard.serving.gateway.keys import KeyRing
from trainyard.serving.options import (
    NAME,
    SUFFIXES,
    ModelOptions,
    SharedOptions,
    SharedVersions,
    Version,
    check_name,
)
from trainyard.serving.replica.model_source import locate, task_of

ROOT = Path(__file__).parents[2]


def config() -> Any:
    return yaml.safe_load((ROOT / "serve/config.yaml").read_text())


def test_our_own_configuration_is_valid() -> None:
    check_config(config(), "serve/config.yaml")


@pytest.mark.parametrize(
    ("path", "key", "sentence"),
    [
        ((), "http_optionz", "unknown key 'http_optionz'; did you mean 'http_options'?"),
        (("http_options",), "prot", "unknown key 'prot'; did you mean 'port'?"),
        (("applications", 1), "arg", "unknown key 'arg'; did you mean 'args'?"),
        (("applications", 0, "args"), "key_file", "did you mean 'keys_file'?"),
        (("applications", 1, "args"), "batch_token", "did you mean 'batch_tokens'?"),
        (("applications", 1, "deployments", 0), "num_replica", "did you mean 'num_replicas'?"),
        (("applications", 1, "deployments", 0, "user_config"), "sorce", "did you mean 'source'?"),
        (("applications", 1, "args", "autoscaling"), "max_replica", "did you mean 'max_replicas'?"),
        (
            ("applications", 1, "args", "autoscaling", "policy"),
            "policy_funktion",
            "'policy_function'?",
        ),
    ],
)
def test_a_misspelt_key_is_named(path: tuple[Any, ...], key: str, sentence: str) -> None:
    broken = config()
    place = broken
    for part in path:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    place[key] = 1
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        check_config(broken, "serve/config.yaml")


def model(name: str, **args: Any) -> dict[str, Any]:
    deployments = [{"name": "Model", "user_config": {"source": "x"}}]
    return {
        "name": name, "import_path": "serve.app:model", "args": args, "deployments": deployments,
    }  # fmt: skip


def shared(name: str, *models: str) -> dict[str, Any]:
    versions = {model: {"source": "x"} for model in models}
    deployments = [{"name": "SharedModels", "user_config": {"models": versions}}]
    return {"name": name, "import_path": "serve.app:shared", "deployments": deployments}


@pytest.mark.parametrize(
    ("applications", "sentence"),
    [
        (
            [model("a", num_replicas=2, autoscaling={"max_replicas": 3})],
            "'autoscaling': it sets the number of replicas, and so does num_replicas; give one",
        ),
        (
            [model("a"), shared("rare", "b", "a")],
            "the model 'a' is in application 'a' and in application 'rare'",
        ),
        (
            [shared("rare", "b"), shared("rarer", "b")],
            "the model 'b' is in application 'rare' and in application 'rarer'",
        ),
        (
            [{**model("a"), "deployments": ["Model"]}],
            "deployments must be a list of entries with a name",
        ),
        ([{**model("a"), "deployments": None}], "deployments must hold `name: Model`"),
        (None, "'applications': "),
        (
            [{**model("a"), "deployments": [*model("a")["deployments"], {"name": "Modle"}]}],
            "there is no deployment 'Modle'; its name is 'Model'",
        ),
        (
            [
                {
                    "name": "g",
                    "import_path": "serve.app:gateway",
                    "deployments": [{"name": "gateway"}],
                }
            ],
            "there is no deployment 'gateway'; its name is 'Gateway'",
        ),
    ],
)
def test_what_contradicts_itself_is_told(applications: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_config({"applications": applications}, "serve/config.yaml")


def test_a_name_with_a_slash_is_one_of_args() -> None:
    """Serve names files after applications."""
    model: dict[str, Any] = {"import_path": "serve.app:model", "route_prefix": None}
    model["deployments"] = [{"name": "Model", "user_config": {"source": "x"}}]
    named = {**model, "name": "mail", "args": {"name": "org/mail"}}
    check_config({"applications": [named]}, "FILE")
    for other, sentence in (
        ({**model, "name": "org/mail"}, "set `name: org/mail` in args"),
        ({**model, "name": "other", "args": {"name": "org/mail"}}, "the model 'org/mail' is in"),
        ({**model, "name": "other", "args": {"name": "org/info"}}, "is not a model name"),
    ):
        with pytest.raises(UserError, match=sentence):
            check_config({"applications": [named, other]}, "FILE")
    with pytest.raises(UserError, match="shared models have their names in `user_config`"):
        SharedOptions.parse({"name": "x"}, "args")


def test_a_wrong_value_is_shown() -> None:
    sentences = {
        "dtype": ("fp32", "'dtype' is 'fp32'; it must be float32, bfloat16 or float16"),
        "engine": ("onnx", "'engine' is 'onnx'; it must be auto, torch, compile or openvino"),
    }
    for key, (value, sentence) in sentences.items():
        with pytest.raises(UserError, match=f"^args: {sentence}$"):
            ModelOptions.parse({key: value}, "args")
    with pytest.raises(UserError, match=r"compile or openvino; did you mean 'openvino'\?$"):
        ModelOptions.parse({"engine": "opnvino"}, "args")
    with pytest.raises(UserError, match=r"'models': '\.\./up' is not a model name") as error:
        SharedVersions.parse({"models": {"../up": {"source": "x"}}}, "user_config")
    assert "\n" not in str(error.value)


@given(st.text(max_size=100))
def test_no_name_is_a_path(name: str) -> None:
    if NAME.fullmatch(name):
        assert "\\" not in name
        organization, _, last = name.rpartition("/")
        assert last not in (".", "..")
        assert Path("/root", name).resolve().parent == Path("/root", organization)
        assert check_name(name) == name or last in SUFFIXES
    else:
        with pytest.raises(ValueError, match="is not a model name"):
            check_name(name)


@pytest.mark.parametrize(
    ("source", "name"),
    [("runs/sst2/model", "sst2"), ("runs/sst2", "sst2"), ("org/some-model", "some-model"),
     ("package:gt_all/model", "gt_all"), ("/", "model")],
)  # fmt: skip
def test_a_model_is_called_after_its_run(source: str, name: str) -> None:
    assert default_name(source) == name


def safetensors(tensors: dict[str, list[int]]) -> bytes:
    """A file whose numbers are a byte each."""
    size, header = 0, {}
    for name, shape in tensors.items():
        header[name] = {
            "dtype": "U8",
            "shape": shape,
            "data_offsets": [size, size := size + math.prod(shape)],
        }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


CONFIG: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 32,
    "vocab_size": 100,
}

BOMBS: list[dict[str, Any]] = [
    {"max_position_embeddings": 2 * 10**8},
    {"type_vocab_size": 2 * 10**8},
    {"num_labels": 10**6},
    {"num_hidden_layers": 1, "intermediate_size": 2 * 10**8},
    {"num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 2 * 10**8},
    {"decoder_layers": 10**6},
    {"text_config": {"model_type": "bert", "max_position_embeddings": 2 * 10**8}},
    {"encoder": {"parts": {"d_model": 10**5, "vocab_size": 10**5}}},
]
"""Sizes that transformers would allocate before it looks at the weights."""


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "holds no config.json"),
        ({"config.json": b"{"}, "config.json is missing or not valid JSON"),
        ({"config.json": CONFIG, "pytorch_model.bin": b"x"}, "holds more than tensors"),
        ({"config.json": CONFIG, "model.safetensors": b"x"}, "is not a valid safetensors file"),
        ({"config.json": CONFIG, "model.safetensors": struct.pack("<Q", 2**62)}, "header too large"),
        (
            {"config.json": CONFIG, "model.safetensors": safetensors({"a": [10, 5], "b": [2**20]})},
            r"has 1\.05e\+06 parameters, at most 1e\+06",
        ),
        (
            {"config.json": {**CONFIG, "hidden_size": 9000, "num_hidden_layers": 40},
             "model.safetensors": safetensors({"a": [10]})},
            "these files do not belong together",
        ),
        *(
            (
                {"config.json": CONFIG | bomb, "model.safetensors": safetensors({"a": [3300]})},
                "these files do not belong together",
            )
            for bomb in BOMBS
        ),
    ],
)  # fmt: skip
def test_a_model_is_checked_before_anything_is_built(
    tmp_path: Path, files: dict[str, Any], sentence: str
) -> None:
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=sentence):
        locate(Version(source=str(tmp_path)), 1e6 if "at most 1e" in sentence else 2e10)


def test_lineage_comes_from_the_run(tmp_path: Path) -> None:
    model = tmp_path / "r1" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / "model.safetensors").write_bytes(safetensors({"a": [100]}))
    (model / "metrics.json").write_text('{"validation": 1}')
    record = {"name": "r1", "data_fingerprint": "f", "examples": [{"text": "a", "label": "b"}]}
    (tmp_path / "r1" / "run.json").write_text(json.dumps(record))
    for source in (model, tmp_path / "r1"):
        folder, about = locate(Version(source=str(source)), 1e9)
        assert folder == model
        assert about["run"]["data_fingerprint"] == "f"
        assert about["metrics"] == {"validation": 1}
        assert about["examples"] == record["examples"]
    assert task_of(model) == "text-classification"


def test_a_keys_file_that_is_wrong_is_not_repeated_in_the_error(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    wrong = ("- name: a\n  sha256: my-secret-in-the-clear\n", "- name: 2024-13-45\n", "[" * 1_000)
    for content in wrong:
        file.write_text(content)
        with pytest.raises(UserError, match="is not a valid list of keys") as error:
            KeyRing(str(file))
        assert "my-secret" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        KeyRing(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("content", ["applications: 2024-13-45", "[" * 1_000])
def test_yaml_that_its_library_cannot_build_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(SystemExit):
        main(["check", str(file)])
    assert f"error: {file} cannot be read: " in capsys.readouterr().err


def test_honest_configs_pass(tmp_path: Path) -> None:
    """All positions, layers and labels of a small model; rotary positions are no parameters."""
    honest: dict[str, Any] = {
        "num_hidden_layers": 2, "intermediate_size": 128, "max_position_embeddings": 512,
        "type_vocab_size": 2, "num_attention_heads": 2, "num_labels": 3, "id2label": {"0": "a"},
    }  # fmt: skip
    for index, more in enumerate((honest, {**honest, "max_position_embeddings": 131_072})):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**CONFIG, **more}))
        (folder / "model.safetensors").write_bytes(safetensors({"a": [45_000]}))
        assert locate(Version(source=str(folder)), 2e10)[0] == folder


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a configuration."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield from places(inner, (*path, key))


@pytest.mark.parametrize("wrong", [5, True, "x", [1], [[1]], {"a": [1]}, {5: 5}, None], ids=str)
def test_a_value_of_any_type_at_any_place_is_valid_or_a_sentence(wrong: Any) -> None:
    sentences = []
    for path in places(config()):
        broken: Any = {"": config()}
        *above, last = ("", *path)
        place = broken
        for part in above:
            place = place[part]
        place[last] = wrong
        try:
            check_config(broken[""], "serve/config.yaml")
        except UserError as error:
            sentences.append(str(error))
    assert sentences
    assert not any("\n" in sentence for sentence in sentences)


@pytest.mark.parametrize("argv", [["new-key", "--help"], ["check", "-h"], ["example", "--help"]])
def test_help_makes_no_key_and_reads_no_file(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(argv)
    assert capsys.readouterr() == (
        "use `check FILE.yaml`, `new-key NAME [MODEL …]` or `example`\n", "",
    )  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        main(["new-key", "--models", "mail"])
    assert "new-key has no flag --models; use" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [[], ["check"], ["check", "a.yaml", "b.yaml"], ["new-key"], ["example", "a"], ["start", "a"]],
)
def test_a_wrong_number_of_arguments_is_a_sentence(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert capsys.readouterr().err.startswith("error: use `check FILE.yaml`, `new-key NAME")
