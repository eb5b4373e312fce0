import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from trainyard.command import parse
from trainyard.config import TrainConfig
from trainyard.config.aliases import find_alias
from trainyard.doctor import DataDoctorConfig
from trainyard.errors import UserError
from trainyard.evaluation import EvalConfig


def test_every_setting_of_training_arguments_is_known() -> None:
    """As of the pinned transformers; a new one of the next version is a decision."""
    ours = {field.name for field in dataclasses.fields(TrainConfig)}
    special = {"gradient_accumulation_steps"}
    unknown = [
        field.name
        for field in dataclasses.fields(TrainingArguments)
        if field.name not in ours | special and find_alias(field.name) is None
    ]
    assert not unknown


def test_no_alias_hides_a_flag() -> None:
    assert not [f.name for f in dataclasses.fields(TrainConfig) if find_alias(f.name)]


@pytest.mark.parametrize(
    ("argv", "fields"),
    [
        (["--bf16"], {"mixed_precision": "bf16"}),
        (["--bf16", "True"], {"mixed_precision": "bf16"}),
        (["--bf16=true", "--mixed-precision", "no"], {}),
        (["--no-bf16", "--fp16", "False"], {}),
        (["--optim", "adamw_torch", "--max_steps", "3"], {"max_steps": 3}),
        (["--warmup_ratio", "0.1"], {"warmup_steps": 0.1}),
        (["--task_name", "mrpc", "--max_seq_length=64"], {"task": "mrpc", "max_length": 64}),
        (["--do_train", "--report_to", "none", "--seed", "3"], {"seed": 3, "report_to": ("none",)}),
        (["--dataset-name", "a/b", "--dataset-config", "c"],
         {"dataset_name": "a/b", "dataset_config_name": "c"}),
        (["--eval_strategy", "epoch"], {}),
        (["--evaluation_strategy", "steps", "--eval_steps", "5"], {"eval_steps": 5}),
        (["--load_best_model_at_end", "--dataloader_num_workers", "None"], {}),
        (["--gradient_accumulation_steps", "4"], {"train_batch_size": 16}),
        (["--gradient-accumulation-steps=3", "--per_device_train_batch_size", "2"],
         {"train_batch_size": 6, "per_device_train_batch_size": 2}),
    ],
)  # fmt: skip
def test_names_of_training_arguments_are_flags(argv: list[str], fields: dict[str, object]) -> None:
    assert parse(TrainConfig, argv) == TrainConfig(**fields)  # type: ignore[arg-type]


def test_a_job_that_does_not_train_accepts_other_names_of_its_flags_only() -> None:
    found = parse(DataDoctorConfig, ["--dataset-name", "a/b", "--dataset-config", "c"])
    assert (found.dataset_name, found.dataset_config_name) == ("a/b", "c")
    by_keyword: dict[str, Any] = {"dataset_name": "a/b", "dataset_config": "c"}
    assert DataDoctorConfig(**by_keyword) == found
    by_keyword = {"warmup_ratio": 0.1}
    with pytest.raises(TypeError, match="DataDoctorConfig has no field 'warmup_ratio'"):
        DataDoctorConfig(**by_keyword)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--fp16"], "--mixed-precision fp16 needs a GPU"),
        (["--bf16", "maybe"], "--bf16 maybe is a setting of TrainingArguments: give it true or false"),
        (["--optim", "adafactor"], "--optim adafactor is a setting of TrainingArguments: the optimizer"),
        (["--output_dir", "out"], "--storage-path is the folder of all runs, and --run-name"),
        (["--eval_strategy", "steps"], "a run evaluates after every epoch, or every --eval-steps"),
        (["--dataloader_num_workers", "4"], "without data loaders"),
        (["--deepspeed", "ds.json"],
         "--deepspeed ds.json is a setting of TrainingArguments: use --use-gpu --strategy deepspeed "
         "--deepspeed-config ds.json"),
        (["--neftune_noise_alpha", "5"], "it has no counterpart here"),
        (["--gradient_accumulation_steps", "0"], "--gradient-accumulation-steps is 0; it must be at least"),
        (["--gradient_accumulation_steps", "2", "--train-batch-size", "32"],
         "--gradient-accumulation-steps 2 and --train-batch-size 32 both set the rows of a step"),
        (["--gradient_accumulation_steps", "2", "--num_workers", "2"],
         "a batch here is global, so that it does not change with the workers; give --train-batch-size"),
    ],
)  # fmt: skip
def test_other_settings_name_the_flag_to_use(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(TrainConfig, argv)
    assert sentence in str(refused.value)


def test_a_file_of_training_arguments_is_read(tmp_path: Path) -> None:
    preset = tmp_path / "arguments.yaml"
    preset.write_text(
        "bf16: true\nfp16: false\nlearning_rate: 3e-5\nsave_total_limit: null\n"
        "gradient_accumulation_steps: 2\nper_device_train_batch_size: 8\n"
    )
    assert parse(TrainConfig, ["--config", str(preset)]) == TrainConfig(
        mixed_precision="bf16",
        learning_rate=3e-5,
        train_batch_size=16,
        per_device_train_batch_size=8,
    )


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"bf16": True, "warmup_ratio": 0.1}, {"mixed_precision": "bf16", "warmup_steps": 0.1}),
        ({"no_cuda": True, "max_seq_length": 64}, {"use_gpu": False, "max_length": 64}),
        ({"gradient_accumulation_steps": 4}, {"train_batch_size": 16}),
        ({"fp16": False, "seed": 3}, {"seed": 3}),
        ({"save_strategy": "steps", "save_steps": 5}, {"save_steps": 5}),
    ],
)
def test_python_takes_the_same_names(given: dict[str, Any], fields: dict[str, Any]) -> None:
    assert TrainConfig(**given) == TrainConfig(**fields)


def test_a_misspelled_keyword_gets_a_hint() -> None:
    misspelled: dict[str, Any] = {"learning_rat": 1e-4}
    with pytest.raises(
        UserError, match=r"has no field 'learning_rat'; did you mean 'learning_rate'"
    ):
        TrainConfig(**misspelled)
    with pytest.raises(TypeError):
        TrainConfig(**misspelled)
    optimizer: dict[str, Any] = {"optim": "adafactor"}
    with pytest.raises(UserError, match="--optim adafactor is a setting of TrainingArguments"):
        TrainConfig(**optimizer)


def test_help_of_a_config_explains_its_fields() -> None:
    text = str(TrainConfig.__doc__)
    assert text.startswith("Fine-tune a pretrained")
    assert "  learning_rate: Peak learning rate of AdamW. (default: 5e-05)" in text
    assert "  label_column: Own data: column of the label. (default: 'label')" in text


def test_a_job_that_does_not_train_keeps_its_own_answer() -> None:
    with pytest.raises(UserError, match="there is no flag --output-dir; "):
        parse(EvalConfig, ["--model-name-or-path", "m", "--output-dir", "x"])
