"""Errors of the functions for Python programs name settings as keywords."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from support.small_models import classifier

from trainyard import (
    EvalConfig,
    PredictConfig,
    SweepConfig,
    TrainConfig,
    UserError,
    evaluate,
    fit,
    predict,
    tune,
)
from trainyard.config import naming_flags
from trainyard.config.calls import as_keywords


@pytest.mark.parametrize(
    ("flags", "keywords"),
    [
        ("add --delimiter ';' --text-column comment --label-column mood",
         "add delimiter=';', text_column='comment', label_column='mood'"),
        (r"""add --delimiter $'\t' --text-column 'it'"'"'s a text', or""",
         r"""add delimiter='\t', text_column="it's a text", or"""),
        ("name another column with --text-column", "name another column with text_column"),
        ("--train-file or --validation-file; give", "train_file or validation_file; give"),
        ("--delimiter is '::'; it must", "delimiter is '::'; it must"),
        ("--use-gpu is 'no'; it must be True", "use_gpu is 'no'; it must be True"),
        ("--zero-stage 4 is unknown; use --zero-stage 3",
         "zero_stage=4 is unknown; use zero_stage=3"),
        ("--max-length 4096 is more; use at most 64", "max_length=4096 is more; use at most 64"),
        ("--num-workers 2:4 cannot", "num_workers 2:4 cannot"),
        ("use --fresh to train, --no-use-gpu or --gradient-checkpointing",
         "use fresh=True to train, use_gpu=False or gradient_checkpointing=True"),
        ("--loop trainer runs with --strategy ddp only", "loop='trainer' runs with strategy='ddp' only"),
        ("give --train-file FILE.csv with columns", "give train_file='FILE.csv' with columns"),
        ("--drop-labels -1 is unknown; --drop-labels spam",
         "drop_labels -1 is unknown; drop_labels=('spam',)"),
        ("--dataset-config-name needs --dataset-name; add it",
         "dataset_config_name needs dataset_name; add it"),
        ("`trainyard eval --task demo`; iconv -f A --to-code B",
         "`trainyard eval --task demo`; iconv -f A --to-code B"),
    ],
)  # fmt: skip
def test_flags_of_a_sentence_become_keywords(flags: str, keywords: str) -> None:
    assert as_keywords(flags, get_type_hints(TrainConfig)) == keywords


def test_a_flag_can_have_another_keyword() -> None:
    renamed = {"model_name_or_path": "source"}
    sentence = "check the name, or give --model-name-or-path a folder"
    kinds = {"source": str}
    assert as_keywords(sentence, kinds, renamed) == "check the name, or give source a folder"
    assert as_keywords(sentence, kinds) == sentence


@pytest.mark.parametrize("job", ["fit", "evaluate", "predict"])
def test_an_error_names_the_arguments_of_the_config(job: str, tmp_path: Path) -> None:
    source = f"{tmp_path}/mail.csv"
    rows = "".join(f"{row};so {row};x\n{row};na {row};y\n" for row in range(20))
    Path(source).write_text("id;comment;mood\n" + rows)
    place: dict[str, Any] = {"storage_path": str(tmp_path / "runs")}
    model: dict[str, Any] = {"model_name_or_path": str(classifier(tmp_path / "run/model"))}
    texts = "delimiter=';', text_column='comment'"
    jobs: dict[str, tuple[Callable[[Any], Any], Any, str]] = {
        "fit": (fit, TrainConfig(train_file=source, **place), texts + ", label_column='mood'"),
        "evaluate": (
            evaluate,
            EvalConfig(validation_file=source, **model, **place),
            texts + ", label_column='mood'",
        ),
        "predict": (
            predict,
            PredictConfig(input_file=source, output_file=f"{tmp_path}/out.csv", **model),
            texts,
        ),
    }
    function, config, keywords = jobs[job]
    with pytest.raises(UserError) as refused:
        function(config)
    assert str(refused.value).endswith(f"add {keywords}")
    with (
        naming_flags(),
        pytest.raises(UserError, match=r"add --delimiter ';' --text-column comment"),
    ):
        function(config)


def test_an_error_of_a_sweep_names_its_arguments(tmp_path: Path) -> None:
    config = SweepConfig(task="demo", space="huge", storage_path=str(tmp_path))
    with pytest.raises(UserError, match=r"^space huge is unknown"):
        tune(config)
    with naming_flags(), pytest.raises(UserError, match=r"^--space huge is unknown"):
        tune(config)


def test_what_is_no_config_is_refused_by_name() -> None:
    wrong: Any = TrainConfig(task="demo")
    with pytest.raises(
        UserError,
        match=r"^tune takes a SweepConfig, but got .*; call tune\(SweepConfig\(train_file=…\)",
    ):
        tune(config=wrong)
    wrong = "mail.csv"
    with pytest.raises(
        UserError, match=r"^fit takes a TrainConfig, but got 'mail.csv'; call fit\(T"
    ):
        fit(wrong)
    kind: Any = TrainConfig
    with pytest.raises(
        UserError, match=r"^TrainConfig takes keywords, such as .*=…\), but got 'mail"
    ):
        kind("mail.csv")
