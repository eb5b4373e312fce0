"""Values that Python programs give: what the flag parser refuses is refused here, too."""

from typing import Any

import pytest

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.evaluation import EvalConfig
from trainyard.serving import ServeConfig


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'; it must be no, bf16 or fp16"),
        ({"strategy": "dpp"}, "strategy is 'dpp'; it must be ddp, fsdp or deepspeed; did you mean 'ddp'"),
        ({"lr_scheduler_type": "constant_warmup"}, "or inverse_sqrt; did you mean 'constant_with_warmup'?"),
        ({"class_weights": "balance"}, "class_weights is 'balance'; it must be balanced or a mapping "
         "from names to numbers; did you mean 'balanced'?"),
        ({"class_weights": {"spam": "2"}}, "class_weights is {'spam': '2'}; it must be balanced or a"),
        ({"learning_rate": "3e-4"}, "learning_rate is '3e-4'; it must be a number, not a text"),
        ({"seed": "1"}, "seed is '1'; it must be an integer, not a text"),
        ({"seed": None}, "seed is None; it must be an integer"),
        ({"num_train_epochs": 3.0}, "num_train_epochs is 3.0; it must be an integer"),
        ({"use_gpu": "no"}, "use_gpu is 'no'; it must be True or False, not a text"),
        ({"metrics": "roc_auc"}, "metrics is 'roc_auc'; it must be a list, such as ['roc_auc']"),
        ({"report_to": ["wandbb"]}, "report_to is ['wandbb']; it must be a list of tensorboard, mlflow, "
         "wandb or none; did you mean 'wandb'?"),
        ({"zero_stage": 1}, "zero_stage is 1; it must be 2 or 3"),
        ({"resources_per_worker": {"CPU": "2"}}, "it must be a mapping from names to numbers"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        TrainConfig(**given)
    assert sentence in str(refused.value)


def test_other_jobs_check_their_values() -> None:
    dtype: Any = "float31"
    with pytest.raises(UserError, match=r"dtype is 'float31'; .* did you mean 'float32'"):
        ServeConfig(model_name_or_path="m", dtype=dtype)
    splits: Any = "test"
    with pytest.raises(UserError, match=r"splits is 'test'; it must be a list, such as \['test'\]"):
        EvalConfig(model_name_or_path="m", task="mrpc", splits=splits)


def test_values_of_json_and_numpy_are_values() -> None:
    np = pytest.importorskip("numpy")
    stored: dict[str, Any] = {"report_to": ["none"], "metrics": ["log_loss"], "learning_rate": 1}
    with pytest.raises(UserError, match="it must lie between 0 and 1"):  # the next check
        TrainConfig(**stored)
    TrainConfig(learning_rate=np.float32(0.5), weight_decay=0, class_weights={"spam": 2})
