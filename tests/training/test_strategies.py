"""Every strategy trains as ddp does, resumes exactly, moves to another number of workers, and exports."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from config.test_deepspeed_json import COURSE, MEANT
from config.test_deepspeed_json import config as read_json
from safetensors.torch import load_file
from support.lifted import lift_guards
from support.ranks import Attempt, run_ranks
from support.runs_locally import weights_hash
from support.strategy_runs import CUT_AT, KINDS, LAST_STEP, PRECISIONS, Row, Runs, two_workers

from trainyard.config import Precision, TrainConfig
from trainyard.errors import UserError
from trainyard.models.build import build_tokenizer
from trainyard.storage.folder import RunFolder, open_run
from trainyard.training.driver.export import export_model
from trainyard.training.driver.fit import fit
from trainyard.training.driver.restarts import _trainer
from trainyard.training.outcome import failed
from trainyard.training.worker import zero
from trainyard.training.worker.weights import stored_moments

QUICK = {
    *((kind, "no") for kind in KINDS if kind != "fsdp-offload"),
    ("ddp", "bf16"),
    ("fsdp", "bf16"),
    ("ddp", "fp16"),
    ("zero2", "fp16"),
}
"""Strategies and precisions of `make test`; the others take three times as long."""


def marks(kind: str, precision: Precision) -> Any:
    """Mark a case long if it is not quick."""
    return () if (kind, precision) in QUICK else pytest.mark.long


def marked(kinds: Sequence[str], *precisions: Precision) -> list[Any]:
    """Make parameters (strategy, precision); those that are not quick are marked long."""
    cases = [(kind, precision) for kind in kinds for precision in precisions]
    return [pytest.param(*case, marks=marks(*case)) for case in cases]


ALL = list(KINDS)
SHARDED = [kind for kind in KINDS if kind != "ddp"]


@pytest.fixture(scope="module")
def runs(
    small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Runs:
    """Whole runs; runs that are cut off and resumed, by two processes and by one or four."""
    here = [item for item in request.session.items if item.path == request.path]
    long = any(item.get_closest_marker("long") for item in here)
    root = tmp_path_factory.mktemp("strategies")
    base = two_workers(small_run, root / "runs")
    with pytest.MonkeyPatch.context() as patch:
        lift_guards(patch)
        first = replace(base, run_name="first", mixed_precision="bf16")
        fp16 = replace(base, mixed_precision="fp16")
        trainer = replace(fp16, run_name="trainer", loop="trainer")
        alone, lone = replace(fp16, run_name="alone"), replace(trainer, run_name="trainer-alone")
        made: dict[int, list[Attempt]] = {
            2: [Attempt(first), Attempt(trainer)],
            # First, since strategies that shard leave a process group of one behind.
            1: [Attempt(replace(config, num_workers=1)) for config in (alone, lone)],
            4: [],
        }
        for precision in PRECISIONS:
            for kind in KINDS:
                if not long and (kind, precision) not in QUICK:
                    continue
                worlds = (1, 4) if long else (1,) if precision == "no" else ()
                for world, attempts in Row(kind, precision, worlds).attempts(base).items():
                    made[world] += attempts
            if precision == "no":
                made[2] += [
                    Attempt(replace(base, run_name="unclipped", max_grad_norm=0.0)),
                    *(
                        Attempt(
                            replace(
                                base,
                                run_name=f"{kind}-tokens",
                                per_device_train_tokens=64,
                                max_grad_norm=0.0,
                                **KINDS[kind],
                            )
                        )
                        for kind in KINDS
                        if long or (kind, precision) in QUICK
                    ),
                ]
        made[2] += course(base, tmp_path_factory.mktemp("course"))
    for world, attempts in made.items():
        if attempts:
            run_ranks(world, attempts, root / f"ranks-{world}")
    return Runs(base.storage_path)


def course(base: TrainConfig, folder: Path) -> list[Attempt]:
    """Train by the course's JSON and its flags, and by the same flags with ddp."""
    given = read_json(folder, COURSE, *MEANT)
    ddp = replace(
        given, storage_path=base.storage_path, run_name="course-ddp", strategy="ddp",
        zero_offload="none", deepspeed_config=None, use_gpu=False, task=base.task,
        data_dir=base.data_dir, model_name_or_path=base.model_name_or_path,
        max_length=base.max_length, max_steps=LAST_STEP, logging_steps=1,
    )  # fmt: skip
    zero = replace(
        ddp, run_name="course", strategy="deepspeed", zero_offload=given.zero_offload,
        deepspeed_config=given.deepspeed_config,
    )  # fmt: skip
    assert zero.deepspeed_config is not None
    return [Attempt(zero), Attempt(ddp)]


@pytest.mark.parametrize(("kind", "precision"), marked(SHARDED, "no"))
def test_a_strategy_trains_as_ddp_does(runs: Runs, kind: str, precision: str) -> None:
    name, ddp = f"{kind}-{precision}", f"ddp-{precision}"
    assert runs.loss_difference(name, ddp) <= 1e-6
    assert runs.weight_difference(name, ddp) <= 1e-6
    assert runs.moment_difference(name, ddp) <= 1e-6


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=marks(kind, "no")) for kind in KINDS])
def test_a_strategy_trains_steps_of_different_numbers_of_micro_batches(
    runs: Runs, kind: str
) -> None:
    """A token budget cuts some of the steps into twice as many. These runs do not clip gradients."""
    losses = runs.losses(f"{kind}-tokens")
    assert losses == pytest.approx(runs.losses("ddp-tokens"), abs=1e-6)
    assert losses != runs.losses("unclipped")
    assert runs.weight_difference(f"{kind}-tokens", "ddp-tokens") <= 1e-6


@pytest.mark.parametrize(("kind", "precision"), marked(ALL, "bf16", "fp16"))
def test_mixed_precision_is_autocast_over_fp32_weights(
    runs: Runs, kind: str, precision: str
) -> None:
    name, ddp = f"{kind}-{precision}", f"ddp-{precision}"
    assert runs.loss_difference(name, ddp) <= 1e-4
    assert runs.losses(name)[0] != runs.losses("ddp-no")[0]  # of the same weights and rows
    assert {tensor.dtype for tensor in runs.weights(name).values()} == {torch.float32}


@pytest.mark.parametrize(("kind", "precision"), marked(ALL, *PRECISIONS))
def test_cut_off_and_resumed_it_ends_with_the_same_bits(
    runs: Runs, kind: str, precision: str
) -> None:
    name = f"{kind}-{precision}"
    assert runs.same_bits(f"{name}-cut", name)


def test_the_norm_of_the_other_runs_clips_their_gradients(runs: Runs) -> None:
    assert runs.weight_difference("unclipped", "ddp-no") > 1e-4


def test_earlier_runs_of_a_process_change_no_bit(runs: Runs) -> None:
    """ZeRO-3 replaces torch's linear function, and runs before those in bf16."""
    assert runs.same_bits("first", "ddp-bf16")


@pytest.mark.parametrize(("kind", "precision"), marked(ALL, "fp16"))
def test_fp16_skips_steps_and_says_so(runs: Runs, kind: str, precision: str) -> None:
    lines = runs.steps(f"{kind}-{precision}")
    scales = [line["loss_scale"] for line in lines]
    assert scales[0] == 2.0**23  # the first step overflowed
    assert 2 <= lines[-1]["skipped_steps"] <= LAST_STEP / 2  # the others change the weights
    assert lines[CUT_AT]["skipped_steps"] < lines[-1]["skipped_steps"]  # also after the cut
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [1e-3 * (1 - step / LAST_STEP) for step in range(1, LAST_STEP + 1)]
    )
    assert scales == [line["loss_scale"] for line in runs.steps("ddp-fp16")]


@pytest.mark.long
def test_saving_before_the_first_step_that_fp16_takes_changes_nothing(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimizer without moments would get some from torch, by a step that counts."""
    lift_guards(monkeypatch)
    base = replace(
        two_workers(small_run, tmp_path / "runs"), strategy="fsdp", mixed_precision="fp16",
        save_steps=None, eval_steps=LAST_STEP,
    )  # fmt: skip
    often, once = replace(base, run_name="often", save_steps=1), replace(base, run_name="once")
    run_ranks(2, [Attempt(often), Attempt(once)], tmp_path / "ranks")
    runs = Runs(base.storage_path)
    skipped = [line["skipped_steps"] for line in runs.steps("often")]
    assert skipped[0] == 1  # so the first checkpoint is made before a step was taken
    assert skipped[-1] < LAST_STEP
    for name in ("often", "once"):
        moments = stored_moments(runs.checkpoint(name))["state"]
        steps = {float(parts["step"]) for parts in moments.values()}
        assert steps == {LAST_STEP - skipped[-1]}
    assert runs.same_bits("often", "once")


def test_the_json_of_the_course_trains_as_its_flags_say(runs: Runs) -> None:
    lines, expected = runs.steps("course"), runs.steps("course-ddp")
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([3e-5 * step / 100 for step in range(1, LAST_STEP + 1)])
    assert 0 < lines[-1]["skipped_steps"] <= LAST_STEP / 2
    for name in ("loss_scale", "skipped_steps"):
        assert [line[name] for line in lines] == [line[name] for line in expected]
    assert runs.loss_difference("course", "course-ddp") <= 1e-4


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
    ours, alone = runs.steps("ddp-fp16"), runs.steps("alone")
    for name in ("loss_scale", "skipped_steps"):
        assert [line[name] for line in alone] == [line[name] for line in ours]
    assert runs.loss_difference("alone", "ddp-fp16") <= 1e-6
    assert runs.weight_difference("alone", "ddp-fp16") <= 1e-6


@pytest.mark.parametrize("name", ["trainer-alone", "trainer"])
def test_transformers_trainer_skips_and_schedules_alike(runs: Runs, name: str) -> None:
    ours, theirs = runs.steps("ddp-fp16"), runs.steps(name)
    for field in ("learning_rate", "loss_scale", "skipped_steps"):
        assert [line[field] for line in theirs] == pytest.approx([line[field] for line in ours])
    assert runs.loss_difference(name, "ddp-fp16") <= 1e-5
    assert 0 < ours[-1]["skipped_steps"] <= LAST_STEP / 2


@pytest.mark.parametrize(
    ("kind", "precision", "workers"),
    [
        *(pytest.param(kind, "no", 1, marks=marks(kind, "no")) for kind in KINDS),
        *(
            pytest.param(kind, precision, workers, marks=pytest.mark.long)
            for kind in KINDS
            for precision in PRECISIONS
            for workers in (1, 4)
            if (precision, workers) != ("no", 1)
        ),
    ],
)
def test_resumed_by_another_number_of_workers_it_ends_alike(
    runs: Runs, kind: str, precision: str, workers: int
) -> None:
    limit = 1e-6 if precision == "no" else 1e-4
    name = f"{kind}-{precision}"
    assert runs.loss_difference(f"{name}-{workers}", name) <= limit


@pytest.mark.parametrize(("kind", "precision"), marked(ALL, *PRECISIONS))
def test_plain_transformers_loads_what_a_strategy_saved(
    runs: Runs, kind: str, precision: str
) -> None:
    name = f"{kind}-{precision}"
    model = runs.load(name)
    assert type(model).__name__ == "BertForSequenceClassification"
    ids: Any = torch.arange(2, 10)[None]
    with torch.no_grad():
        logits = model.eval()(ids).logits
        model.load_state_dict(runs.weights(f"ddp-{precision}"))
        limit = 1e-6 if precision == "no" else 1e-3
        assert torch.allclose(model(ids).logits, logits, atol=limit)


PARTS = "trainyard.training.worker.saving"
STORE = "trainyard.storage.checkpoints"


@pytest.mark.parametrize(
    ("rank", "place", "kept"),
    [
        pytest.param(1, f"{PARTS}:write_part", 4, marks=pytest.mark.long),
        pytest.param(1, f"{STORE}:sync_file", 4, marks=pytest.mark.long),
        pytest.param(0, f"{PARTS}:write_index", 4, marks=pytest.mark.long),
        pytest.param(0, f"{STORE}:hashes_of", 4, marks=pytest.mark.long),
        pytest.param(0, f"{STORE}:sync_tree", 4, marks=pytest.mark.long),
        pytest.param(0, f"{STORE}:CheckpointStore.keep", 8, marks=pytest.mark.long),
    ],
)
def test_killed_at_any_phase_of_a_checkpoint_of_parts_it_ends_with_the_same_bits(
    runs: Runs, small_run: TrainConfig, tmp_path: Path, rank: int, place: str, kept: int
) -> None:
    """Killed during the second checkpoint: of step 8, after that of step 4."""
    base = two_workers(small_run, tmp_path / "runs")
    config = replace(base, run_name="killed", strategy="fsdp")
    count = 4 if place.endswith("sync_file") else 2  # of two files each
    run_ranks(2, [Attempt(config, killed=(rank, f"{place}:{count}"))], tmp_path / "killed")
    folder = open_run(config.storage_path, "killed")
    found = folder.store().newest()
    assert found is not None
    assert found[0] == kept
    run_ranks(2, [Attempt(config)], tmp_path / "again")
    ended = Runs(config.storage_path)("killed")
    assert weights_hash(ended, LAST_STEP) == weights_hash(runs("fsdp-no"), LAST_STEP)
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
    base = two_workers(small_run, tmp_path / "runs")
    config = replace(base, run_name="full", strategy="fsdp")
    run_ranks(2, [Attempt(config, **fault)], tmp_path / "full")
    folder = open_run(config.storage_path, "full")
    ended = json.loads((folder.path / "outcome.json").read_text())
    assert ended["status"] == "failed"
    assert "checkpoint of step 8 could not be written" in ended["error"]
    assert sentence in ended["error"]
    assert folder.store().steps() == [4]


def test_each_worker_writes_a_part_of_a_checkpoint(runs: Runs) -> None:
    for kind in ("fsdp", "zero2", "zero3"):
        folder = runs.checkpoint(f"{kind}-no")
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
    tokenizer = build_tokenizer(small_run)
    export_model(folder, runs.checkpoint("fsdp-no"), tokenizer, "card", {}, 32, ("no", "yes"))
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


def test_a_weight_may_have_fewer_elements_than_zero_3_has_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The classifier's bias has one for each label."""
    flat, parameter = torch.zeros(1), SimpleNamespace(ds_id=0, ds_numel=2)
    engine = SimpleNamespace(
        grad_position={0: (0, 0, 1)}, get_param_id=lambda _: 0, fp32_partitioned_groups_flat=[flat]
    )
    optimizer = SimpleNamespace(state={flat: {"exp_avg": torch.ones(1)}})
    parts = []
    for rank in range(4):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        part, start = zero._part(engine, optimizer, parameter, "exp_avg")
        whole = torch.zeros(2)
        whole.narrow(0, start, len(part)).copy_(part)
        parts.append(whole.tolist())
    assert parts == [[1, 0], [0, 1], [0, 0], [0, 0]]
