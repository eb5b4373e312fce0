"""Every strategy trains as ddp does, resumes exactly, moves to another number of workers, and exports."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import transformers
from config.test_deepspeed_json import COURSE, MEANT
from config.test_deepspeed_json import config as read_json
from safetensors.torch import load_file
from support.lifted import lift_guards
from support.ranks import Attempt, run_ranks
from support.runs_locally import weights_hash

from trainyard.config import Precision, TrainConfig
from trainyard.errors import UserError
from trainyard.models.build import build_tokenizer
from trainyard.storage.folder import RunFolder, open_run
from trainyard.training.driver.export import export_model
from trainyard.training.driver.fit import check_packages, fit
from trainyard.training.driver.restarts import _trainer
from trainyard.training.outcome import failed
from trainyard.training.worker.weights import stored_moments, whole_weights

LAST_STEP = 6
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"strategy": "fsdp"},
    "fsdp-offload": {"strategy": "fsdp", "fsdp_offload": True},
    "zero2": {"strategy": "deepspeed"},
    "zero2-offload": {"strategy": "deepspeed", "zero_offload": "cpu"},
    "zero3": {"strategy": "deepspeed", "zero_stage": 3},
}
MIXED: list[tuple[str, Precision]] = [("ddp", "bf16"), ("fsdp", "bf16"), ("zero3", "bf16"),
         ("ddp", "fp16"), ("fsdp", "fp16"), ("zero2", "fp16")]  # fmt: skip
QUICK = {
    ("ddp", "no"),
    ("fsdp", "no"),
    ("zero2", "no"),
    ("zero3", "no"),
    ("ddp", "bf16"),
    ("ddp", "fp16"),
}
"""Strategies and precisions of `make test`; the others take as long again."""


def marked(*cases: tuple[str, Precision]) -> list[Any]:
    """Make parameters (strategy, precision); those that are not quick are marked long."""
    return [pytest.param(*case, marks=() if case in QUICK else pytest.mark.long) for case in cases]


PLAIN = marked(*((kind, "no") for kind in KINDS))


class Runs:
    """Folders of finished runs, by name."""

    def __init__(self, storage: str, last_step: int = LAST_STEP) -> None:
        self.storage, self.last_step = storage, last_step

    def __call__(self, name: str) -> RunFolder:
        folder = open_run(self.storage, name)
        ended = json.loads((folder.path / "outcome.json").read_text())
        assert (ended["status"], ended["step"]) == ("finished", self.last_step), ended
        return folder

    def losses(self, name: str) -> list[float]:
        return [line["loss"] for line in self(name).metrics() if "loss" in line]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        folder = self(name).checkpoints / f"step-{self.last_step:08d}"
        return whole_weights(folder)


@pytest.fixture(scope="module")
def runs(
    small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Runs:
    """Whole runs; runs that are cut off and resumed, by two processes and by one."""
    here = [item for item in request.session.items if item.path == request.path]
    long = any(item.get_closest_marker("long") for item in here)
    root = tmp_path_factory.mktemp("strategies")
    base = replace(
        small_run, storage_path=str(root / "runs"), max_steps=LAST_STEP, save_steps=2, eval_steps=3,
        num_workers=2, weight_decay=0.5, ledger=False,
    )  # fmt: skip
    pair, alone = [], []
    with pytest.MonkeyPatch.context() as patch:
        lift_guards(patch)
        plain: list[tuple[str, Precision]] = [(kind, "no") for kind in KINDS]
        for kind, precision in [*plain, *MIXED]:
            if not long and (kind, precision) not in QUICK:
                continue
            name = f"{kind}-{precision}"
            whole = replace(base, run_name=name, mixed_precision=precision, **KINDS[kind])
            cut, moved = (replace(whole, run_name=f"{name}-{way}") for way in ("cut", "moved"))
            pair += [Attempt(whole), Attempt(cut, cut_at=3), Attempt(cut)]
            if precision == "no":
                tokens = replace(whole, run_name=f"{name}-tokens", per_device_train_tokens=64)
                pair += [Attempt(tokens), Attempt(moved, cut_at=3)]
                alone.append(Attempt(replace(moved, num_workers=1)))
            if (kind, precision) == ("ddp", "fp16"):
                alone.append(Attempt(replace(whole, run_name=f"{name}-alone", num_workers=1)))
                trainer = replace(whole, run_name=f"{name}-trainer", loop="trainer")
                pair.append(Attempt(trainer))
                alone.append(Attempt(replace(trainer, run_name=f"{name}-lone", num_workers=1)))
    run_ranks(2, pair, root / "pair")
    run_ranks(1, alone, root / "alone")
    return Runs(base.storage_path)


@pytest.mark.parametrize(("kind", "precision"), PLAIN)
def test_a_strategy_trains_as_ddp_does(runs: Runs, kind: str, precision: str) -> None:
    assert precision == "no"
    assert runs.losses(f"{kind}-no") == pytest.approx(runs.losses("ddp-no"), abs=1e-6)
    expected = runs.weights("ddp-no")
    for name, tensor in runs.weights(f"{kind}-no").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "precision"), PLAIN)
def test_a_strategy_trains_steps_of_different_numbers_of_micro_batches(
    runs: Runs, kind: str, precision: str
) -> None:
    """A token budget cuts some of the steps into twice as many."""
    losses = runs.losses(f"{kind}-{precision}-tokens")
    assert losses == pytest.approx(runs.losses("ddp-no-tokens"), abs=1e-6)
    assert losses != runs.losses(f"{kind}-{precision}")


@pytest.mark.parametrize(("kind", "precision"), marked(*MIXED))
def test_mixed_precision_is_autocast_over_fp32_weights(
    runs: Runs, kind: str, precision: str
) -> None:
    name = f"{kind}-{precision}"
    assert runs.losses(name) == pytest.approx(runs.losses(f"ddp-{precision}"), abs=1e-4)
    assert runs.losses(name) != runs.losses(f"{kind}-no")
    assert {tensor.dtype for tensor in runs.weights(name).values()} == {torch.float32}


@pytest.mark.parametrize(("kind", "precision"), [*PLAIN, *marked(*MIXED)])
def test_cut_off_and_resumed_it_ends_with_the_same_bits(
    runs: Runs, kind: str, precision: str
) -> None:
    name = f"{kind}-{precision}"
    assert weights_hash(runs(f"{name}-cut"), LAST_STEP) == weights_hash(runs(name), LAST_STEP)
    assert runs(f"{name}-cut").metrics() == runs(name).metrics()


@pytest.mark.parametrize(
    ("kind", "precision"), marked(("ddp", "fp16"), ("fsdp", "fp16"), ("zero2", "fp16"))
)
def test_fp16_skips_steps_and_says_so(runs: Runs, kind: str, precision: str) -> None:
    lines = [line for line in runs(f"{kind}-{precision}").metrics() if "loss" in line]
    scales = [line["loss_scale"] for line in lines]
    assert scales[0] == 2.0**23  # the first step overflowed
    assert lines[-1]["skipped_steps"] >= 2
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [1e-3 * (1 - step / LAST_STEP) for step in range(1, LAST_STEP + 1)]
    )
    expected = [line["loss_scale"] for line in runs("ddp-fp16").metrics() if "loss" in line]
    assert scales == expected


@pytest.mark.long
def test_saving_before_the_first_step_that_fp16_takes_changes_nothing(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimizer without moments would get some from torch, by a step that counts."""
    lift_guards(monkeypatch)
    base = replace(
        small_run, storage_path=str(tmp_path / "runs"), strategy="fsdp", mixed_precision="fp16",
        max_steps=LAST_STEP, eval_steps=LAST_STEP, num_workers=2, ledger=False,
    )  # fmt: skip
    often, once = replace(base, run_name="often", save_steps=1), replace(base, run_name="once")
    run_ranks(2, [Attempt(often), Attempt(once)], tmp_path / "ranks")
    runs = Runs(base.storage_path)
    skipped = [line["skipped_steps"] for line in runs("often").metrics() if "loss" in line]
    assert skipped[0] == 1  # so the first checkpoint is made before a step was taken
    assert skipped[-1] < LAST_STEP
    for name in ("often", "once"):
        moments = stored_moments(runs(name).store().path(LAST_STEP))["state"]
        steps = {float(parts["step"]) for parts in moments.values()}
        assert steps == {LAST_STEP - skipped[-1]}
    assert weights_hash(runs("often"), LAST_STEP) == weights_hash(runs("once"), LAST_STEP)
    assert runs("often").metrics() == runs("once").metrics()


@pytest.mark.long
def test_the_json_of_the_course_trains_as_its_flags_say(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lift_guards(monkeypatch)
    given = read_json(tmp_path, COURSE, *MEANT)
    ddp = replace(
        given, storage_path=str(tmp_path / "runs"), run_name="ddp", strategy="ddp",
        zero_offload="none", deepspeed_config=None, use_gpu=False, task=small_run.task,
        data_dir=small_run.data_dir, model_name_or_path=small_run.model_name_or_path,
        max_length=small_run.max_length, max_steps=LAST_STEP, logging_steps=1,
    )  # fmt: skip
    zero = replace(
        ddp, run_name="zero", strategy="deepspeed", zero_offload=given.zero_offload,
        deepspeed_config=given.deepspeed_config,
    )  # fmt: skip
    assert zero.deepspeed_config is not None
    run_ranks(2, [Attempt(zero), Attempt(ddp)], tmp_path / "ranks")
    runs = Runs(ddp.storage_path)
    lines = [line for line in runs("zero").metrics() if "loss" in line]
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([3e-5 * step / 100 for step in range(1, LAST_STEP + 1)])
    assert 0 < lines[-1]["skipped_steps"] < LAST_STEP
    expected = [line for line in runs("ddp").metrics() if "loss" in line]
    for name in ("loss_scale", "skipped_steps"):
        assert [line[name] for line in lines] == [line[name] for line in expected]
    assert runs.losses("zero") == pytest.approx(runs.losses("ddp"), abs=1e-4)


def test_the_record_of_a_run_names_the_defaults_of_deepspeed_that_it_does_not_use(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BegunError(Exception):
        """Raised where the workers would start."""

    def begin(*_: Any) -> NoReturn:
        raise BegunError

    module = "trainyard.training.driver.fit"
    monkeypatch.setattr(f"{module}.ray_session", lambda *_: nullcontext())
    monkeypatch.setattr(f"{module}.worker_resources", lambda _: {"CPU": 1.0})
    monkeypatch.setattr(f"{module}.preflight", lambda _: None)
    monkeypatch.setattr(f"{module}._supervise", begin)
    given = read_json(tmp_path, COURSE, *MEANT)
    config = replace(
        given, storage_path=str(tmp_path / "runs"), run_name="zero", task=small_run.task,
        data_dir=small_run.data_dir, model_name_or_path=small_run.model_name_or_path,
        max_length=small_run.max_length,
    )  # fmt: skip
    with pytest.raises(BegunError):
        fit(config)
    (warning,) = (
        found for found in open_run(config.storage_path, "zero").read()["warnings"]
        if "--deepspeed-config" in found
    )  # fmt: skip
    assert "scheduler.params.warmup_type (log there, linear here)" in warning


def test_fp16_skips_the_same_steps_at_any_number_of_workers(runs: Runs) -> None:
    ours, alone = (
        [line for line in runs(name).metrics() if "loss" in line]
        for name in ("ddp-fp16", "ddp-fp16-alone")
    )
    for name in ("loss", "loss_scale", "skipped_steps"):
        assert [line[name] for line in alone] == pytest.approx(
            [line[name] for line in ours], abs=1e-6
        )
    expected = runs.weights("ddp-fp16")
    for name, tensor in runs.weights("ddp-fp16-alone").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("workers", ["lone", "trainer"])
def test_transformers_trainer_skips_and_schedules_alike(runs: Runs, workers: str) -> None:
    ours, theirs = (
        [line for line in runs(name).metrics() if "loss" in line]
        for name in ("ddp-fp16", f"ddp-fp16-{workers}")
    )
    for name in ("loss", "learning_rate", "loss_scale", "skipped_steps"):
        assert [line[name] for line in theirs] == pytest.approx(
            [line[name] for line in ours], abs=1e-6
        )
    assert 0 < ours[-1]["skipped_steps"] < LAST_STEP


@pytest.mark.parametrize(("kind", "precision"), PLAIN)
def test_resumed_by_another_number_of_workers_it_ends_alike(
    runs: Runs, kind: str, precision: str
) -> None:
    assert runs.losses(f"{kind}-{precision}-moved") == pytest.approx(
        runs.losses("ddp-no"), abs=1e-6
    )


@pytest.mark.parametrize(("kind", "precision"), PLAIN)
def test_plain_transformers_loads_what_a_strategy_saved(
    runs: Runs, kind: str, precision: str
) -> None:
    folder = runs(f"{kind}-{precision}").checkpoints / f"step-{LAST_STEP:08d}"
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert type(model).__name__ == "BertForSequenceClassification"
    assert not report["missing_keys"] | report["unexpected_keys"]
    ids: Any = torch.arange(2, 10)[None]
    expected = runs.weights("ddp-no")
    with torch.no_grad():
        logits = model.eval()(ids).logits
        model.load_state_dict(expected)
        assert torch.allclose(model(ids).logits, logits, atol=1e-6)


PARTS = "trainyard.training.worker.saving"
STORE = "trainyard.storage.checkpoints"


@pytest.mark.parametrize(
    ("rank", "place", "kept"),
    [
        pytest.param(1, f"{PARTS}:write_part", 2, marks=pytest.mark.long),
        pytest.param(1, f"{PARTS}:sync_file", 2, marks=pytest.mark.long),
        pytest.param(0, f"{PARTS}:write_index", 2, marks=pytest.mark.long),
        pytest.param(0, f"{STORE}:hashes_of", 2, marks=pytest.mark.long),
        pytest.param(0, f"{STORE}:sync_tree", 2, marks=pytest.mark.long),
        pytest.param(0, f"{STORE}:CheckpointStore.keep", 3, marks=pytest.mark.long),
    ],
)
def test_killed_at_any_phase_of_a_checkpoint_of_parts_it_ends_with_the_same_bits(
    runs: Runs, small_run: TrainConfig, tmp_path: Path, rank: int, place: str, kept: int
) -> None:
    """Killed during the second checkpoint: of step 3, after that of step 2."""
    config = replace(
        small_run, storage_path=str(tmp_path / "runs"), run_name="killed", strategy="fsdp",
        max_steps=LAST_STEP, save_steps=2, eval_steps=3, num_workers=2, weight_decay=0.5,
        ledger=False,
    )  # fmt: skip
    count = 4 if place.endswith("sync_file") else 2  # of two files each
    run_ranks(2, [Attempt(config, killed=(rank, f"{place}:{count}"))], tmp_path / "killed")
    folder = open_run(config.storage_path, "killed")
    found = folder.store().newest()
    assert found is not None
    assert found[0] == kept
    run_ranks(2, [Attempt(config)], tmp_path / "again")
    ended = Runs(config.storage_path)
    assert weights_hash(ended("killed"), LAST_STEP) == weights_hash(runs("fsdp-no"), LAST_STEP)
    assert not list(folder.checkpoints.glob(".inprogress*"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        # The others wait for rank 0's folder; the next losses tell them.
        ({"full_disk": (0, "trainyard.training.worker.saving:write_config:2")},
         "No space left on device"),
        # Rank 1 sends the error of its disk, where safetensors raises one without an errno.
        ({"small_disk": (1, "trainyard.training.worker.weights:save_file:3")},  # of two files each
         "File too large"),
    ],
)  # fmt: skip
def test_a_full_disk_of_one_worker_ends_all_in_one_sentence(
    fault: dict[str, Any], sentence: str, small_run: TrainConfig, tmp_path: Path
) -> None:
    config = replace(
        small_run, storage_path=str(tmp_path / "runs"), run_name="full", strategy="fsdp",
        max_steps=LAST_STEP, save_steps=2, num_workers=2, ledger=False,
    )  # fmt: skip
    run_ranks(2, [Attempt(config, **fault)], tmp_path / "full")
    folder = open_run(config.storage_path, "full")
    ended = json.loads((folder.path / "outcome.json").read_text())
    assert ended["status"] == "failed"
    assert "checkpoint of step 4 could not be written" in ended["error"]
    assert sentence in ended["error"]
    assert folder.store().steps() == [2]


def test_each_worker_writes_a_part_of_a_checkpoint(runs: Runs) -> None:
    for kind in ("fsdp", "zero2", "zero3"):
        folder = runs(f"{kind}-no").checkpoints / f"step-{LAST_STEP:08d}"
        names = {path.name for path in folder.iterdir() if "-of-" in path.name}
        assert names == {
            f"{name}-0000{part}-of-00002.safetensors"
            for name in ("model", "optimizer")
            for part in (1, 2)
        }
        parts = [load_file(folder / f"model-0000{part}-of-00002.safetensors") for part in (1, 2)]
        sizes = [sum(tensor.nbytes for tensor in part.values()) for part in parts]
        assert max(sizes) < 0.6 * sum(sizes)
        assert not parts[0].keys() & parts[1].keys()
        manifest = json.loads((folder / "MANIFEST.json").read_text())["files"]
        assert names < manifest.keys()


def test_parts_are_exported_as_one_file_that_all_can_read(
    runs: Runs, small_run: TrainConfig
) -> None:
    folder = runs("fsdp-no")
    checkpoint = folder.checkpoints / f"step-{LAST_STEP:08d}"
    tokenizer = build_tokenizer(small_run)
    export_model(folder, checkpoint, tokenizer, "card", {}, ("no", "yes"))
    exported = load_file(folder.model / "model.safetensors")
    expected = runs.weights("fsdp-no")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)
    modes = {path.stat().st_mode for path in folder.model.glob("*.*")}
    assert len(modes) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_ray_makes_a_process_group_that_reduces_what_a_strategy_offloads(
    kind: str, tmp_path: Path
) -> None:
    """NCCL cannot reduce gradients in the host's memory. The reduction itself needs a GPU."""
    config = TrainConfig(use_gpu=True, num_workers=2, **KINDS[kind])
    trainer = _trainer(config, lambda: failed(UserError("")), RunFolder(tmp_path), {"GPU": 1}, 2)
    expected = "cpu:gloo,cuda:nccl" if kind == "fsdp-offload" else "nccl"
    assert trainer.backend_config.backend == expected


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(strategy="deepspeed", use_gpu=True)
    check_packages(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="--strategy deepspeed needs the package deepspeed, which"):
        check_packages(config)
