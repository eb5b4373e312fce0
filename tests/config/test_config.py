from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trainyard
from trainyard.config import TrainConfig, added
from trainyard.doctor import DataDoctorConfig
from trainyard.evaluation import EvalConfig
from trainyard.inference import PredictConfig
from trainyard.tuning import SweepConfig


@dataclass(frozen=True, kw_only=True)
class Longer(TrainConfig):
    """A config of a later version: two fields that 29a2e37 did not have."""

    toy: str = added("new", before="old")
    bits: int | None = added(None, before=None)


def test_a_field_added_later_enters_the_identity_only_when_it_changes_something() -> None:
    old = TrainConfig(task="mrpc", seed=3)
    assert Longer(task="mrpc", seed=3, toy="old").identity() == old.identity()
    # The default of today may differ from what 29a2e37 did, and then it counts.
    changed = [
        Longer(task="mrpc", seed=3).identity(),
        Longer(task="mrpc", seed=3, toy="old", bits=4).identity(),
        Longer(task="mrpc", seed=3, bits=4).identity(),
    ]
    assert len({old.identity(), *changed}) == 4


def test_a_record_that_is_too_old_for_a_field_counts_as_its_version_acted() -> None:
    recorded = asdict(TrainConfig(task="mrpc"))
    assert not Longer(task="mrpc", toy="old").changed_since(recorded)
    assert Longer(task="mrpc").changed_since(recorded) == ["toy old -> new"]
    assert Longer(task="mrpc", toy="old", bits=4).changed_since(recorded) == ["bits None -> 4"]


def test_a_tuple_is_no_change_to_the_list_that_json_gives_back() -> None:
    sweep = SweepConfig(set=(("weight_decay=0.01",),))
    recorded = {**asdict(sweep), "set": [["weight_decay=0.01"]]}
    assert not sweep.changed_since(recorded)
    assert SweepConfig().changed_since(recorded) == ["set [['weight_decay=0.01']] -> ()"]


def test_names_and_identities_of_the_other_jobs_are_those_of_29a2e37(tmp_path: Path) -> None:
    evaluation = EvalConfig(
        model_name_or_path="m", task="mrpc", data_dir="glue", splits=("validation", "test"),
        against="n", slice_columns=("idx",), max_length=64, num_workers=2,
    )  # fmt: skip
    assert evaluation.resolved_run_name("mrpc") == "eval-mrpc-3d57266f30"
    doctor = DataDoctorConfig(task="mrpc", data_dir="glue", seed=7, num_examples=3)
    assert doctor.resolved_run_name == "doctor-mrpc-5d506df9aa"
    own = DataDoctorConfig(
        train_file="a.csv", problem_type="regression", text_pair_column="b", verbose=True
    )
    assert own.resolved_run_name == "doctor-own-775cdfee13"
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "rows.csv").write_text("text\nbonjour\n")
    fields: dict[str, Any] = {
        "input_file": str(tmp_path / "rows.csv"),
        "model_name_or_path": str(model),
    }
    predictions = PredictConfig(output_file="o.jsonl", **fields)
    assert (
        predictions.identity()
        == PredictConfig(output_file="p.jsonl", num_workers=3, **fields).identity()
    )
    # The order of the fields is part of this hash.
    assert list(predictions.identity_fields()) == [
        "model_name_or_path", "revision", "input_file", "model_task", "text_column",
        "text_pair_column", "parameters", "truncation", "threshold", "batch_tokens", "engine",
        "dtype",
    ]  # fmt: skip


def test_packages_below_training_take_the_narrow_groups() -> None:
    package = Path(trainyard.__file__).parent
    files = [
        path
        for part in (
            "storage",
            "cluster",
            "models",
            "data",
            "inference",
            "evaluation",
            "doctor/data",
        )
        for path in (package / part).rglob("*.py")
    ]
    assert len(files) > 50
    assert not [path for path in files if "TrainConfig" in path.read_text()]
