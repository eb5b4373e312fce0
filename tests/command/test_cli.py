import errno
import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import trainyard
from trainyard.cluster.session import ray_session
from trainyard.command import JOBS, Job, main, parse
from trainyard.command.cli import run_job
from trainyard.command.jobs import completion, load
from trainyard.config import PLACE_FIELDS, TrainConfig
from trainyard.errors import UserError

ROOT = Path(__file__).parents[2]


def test_flags_files_and_their_order(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(
        "learning_rate: 3e-5\nledger: true\nresources_per_worker: {CPU: 2}\nmax_steps: null\n"
    )
    config = parse(TrainConfig, ["--task", "cola", "--config", str(preset), "--no-ledger"])
    assert config == TrainConfig(
        task="cola", learning_rate=3e-5, ledger=False, resources_per_worker={"CPU": 2.0}
    )
    assert (
        parse(TrainConfig, [f"--config={preset}", "--learning-rate", "1e-4"]).learning_rate == 1e-4
    )


@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "learning_rate": st.floats(1e-7, 0.5),
            "num_train_epochs": st.integers(1, 50),
            "max_steps": st.none() | st.integers(1, 10**6),
            "warmup_steps": st.floats(0, 1000),
            "gradient_checkpointing": st.booleans(),
            "lr_scheduler_type": st.sampled_from(["linear", "cosine", "constant"]),
            "run_name": st.none() | st.from_regex(r"[a-z][a-z0-9.-]{0,10}", fullmatch=True),
        },
    )
)
def test_a_config_survives_yaml_and_flags(tmp_path_factory: Any, chosen: dict[str, Any]) -> None:
    config = TrainConfig(**chosen)
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in asdict(config).items() if v is not None}))
    assert parse(TrainConfig, ["--config", str(path)]) == config


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--learning-rate", "0"], "--learning-rate is 0.0; it must lie between 0 and 1"),
        (["--learning-rate", "nan"], "--learning-rate is nan"),
        (["--num-train-epochs", "0"], "--num-train-epochs is 0; it must be at least 1"),
        (["--max-grad-norm", "-1"], "--max-grad-norm is -1.0; it must be at least 0"),
        (["--train-batch-size", "32", "--per-device-train-batch-size", "16", "--num-workers", "4"],
         "use --per-device-train-batch-size 1, 2, 4 or 8"),
        (["--train-batch-size", "7", "--per-device-train-batch-size", "7", "--num-workers", "2"],
         "use a --train-batch-size that is a multiple of 2"),
        (["--warmup-steps", "inf"], "--warmup-steps is inf; it must be a finite number, at least 0"),
        (["--seed", "4294967296"], "--seed is 4294967296; it must be between 0 and 4294967295"),
        (["--train-file", "a.csv", "--data-seed", "-1"], "--data-seed is -1; it must be between 0"),
        (["--resources-per-worker", "GPU", "1"],
         "--resources-per-worker GPU 1 and --no-use-gpu contradict each other"),
        (["--num-workers", "3:999999999999"], "over --num-workers 3:999999999999: use --per"),
        (["--mixed-precision", "fp16"], "fp16 needs a GPU: add --use-gpu, or use bf16"),
        (["--strategy", "deepspeed"], "--strategy deepspeed needs GPUs"),
        (["--strategy", "fsdp", "--zero-offload", "cpu"],
         "--zero-offload is for --strategy deepspeed, not fsdp; change one of the two"),
        (["--fsdp-offload"], "--fsdp-offload is for --strategy fsdp, not ddp; change one of the two"),
        (["--num-workers", "2", "--use-gpu", "--resources-per-worker", "GPU", "0.5"],
         "GPU 0.5 with --num-workers 2 lets workers share a GPU, on which NCCL cannot connect them"),
        (["--deepspeed-config", "absent.json", "--strategy", "deepspeed", "--use-gpu"],
         "--deepspeed-config absent.json cannot be read"),
        (["--run-name", "../up"], "--run-name is '../up'; it must be of letters"),
        (["--text-column", "x"], "--text-column describes your own data, but there is no --train"),
        (["--train-file", "a.csv", "--data-dir", "glue"], "name two sources of data"),
        (["--train-file", "a.csv", "--task", "mrpc"], "--train-file and --task name two sources of data"),
        (["--label-column", "x"], "--label-column describes your own data, but there is no --train"),
        (["--config", "absent.yaml"], "--config absent.yaml cannot be read"),
        (["--task", "cola", "--config"], "--config has no file name; give the path of a YAML file"),
        (["--config=", "--task"], "--config has no file name; give the path of a YAML file"),
    ],
)  # fmt: skip
def test_values_that_cannot_work_are_refused_in_one_sentence(
    argv: list[str], sentence: str
) -> None:
    with pytest.raises(UserError) as refused:
        parse(TrainConfig, argv)
    assert sentence in str(refused.value)


DAY, DEEP = "run_name: 2024-13-45", "[" * 1_000
"""YAML for which its library raises a ValueError and a RecursionError."""


@pytest.mark.parametrize(
    "content", ["just words", "word " * 9_999, "- a\n- b\n", "a: [1", "\x00", DAY, DEEP]
)
def test_a_config_file_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"--config .*bad\.yaml") as refused:
        parse(TrainConfig, ["--config", str(path)])
    assert len(str(refused.value)) < 400


def test_a_typo_gets_a_hint_from_the_command_line_and_from_a_file(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("learning_rat: 1e-5\n")
    for argv in (["--learning-rat", "1e-5"], ["--config", str(preset)]):
        with pytest.raises(UserError, match="no flag --learning-rat; did you mean --learning-rate"):
            parse(TrainConfig, argv)


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2,
         "error: No space left on device (/x/y); make room or fix the disk, then run the same command"
         " again\n"),
        (KeyboardInterrupt(), 130, "stopped: by Ctrl-C\n"),
    ],
)  # fmt: skip
def test_a_full_disk_and_ctrl_c_are_no_defects(
    raised: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def job(_: TrainConfig) -> dict[str, Any]:
        raise raised

    monkeypatch.setattr(sys, "argv", ["job"])
    with pytest.raises(SystemExit) as ended:
        run_job(TrainConfig, job)
    assert ended.value.code == status
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("words", "terminal", "printed"),
    [([], False, True), ([], True, False), (["--json"], True, True)],
)
def test_the_json_line_is_for_programs(
    words: list[str], terminal: bool, printed: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    result = {"job": "engine", "engine": "torch", "dtype": "float32", "speed": 1.0}
    run_job(TrainConfig, lambda _: result, words)
    out, err = capsys.readouterr()
    assert out == (json.dumps(result) + "\n" if printed else "")
    assert err.startswith("best engine here: torch in float32, 1.00 times torch;")


def test_help_shows_examples_first_and_flags_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(argv=["train", "--help"])
    text = capsys.readouterr().out
    marks = ["Examples:", "trainyard train --train-file mail.csv", "data options", "--validation-file",
             "model options", "training options", "--weight-decay", "worker options",
             "output options", "--storage-path"]  # fmt: skip
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["train", "quickstart", "eval"])
def test_no_flag_of_help_lies_outside_a_box_but_those_of_the_job(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(argv=[name, "--help"])
    first = capsys.readouterr().out.partition("data options")[0]
    shown = set(re.findall(r"^[│ ]*--([a-z][a-z-]*)", first, flags=re.MULTILINE))
    mine = set(vars(JOBS[name].config_class())["__annotations__"]) if name == "eval" else set()
    names = {flag.replace("-", "_") for flag in shown - {"config"} if not flag.startswith("no-")}
    assert names <= mine


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(_: TrainConfig) -> dict[str, Any]:
        raise FileNotFoundError(errno.ENOENT, "a defect")

    monkeypatch.setattr(sys, "argv", ["job"])
    with pytest.raises(FileNotFoundError):
        run_job(TrainConfig, job)


HEAVY = {"torch", "ray", "transformers", "datasets", "evaluate", "pyarrow", "scipy"}
WITHOUT_NUMPY = {"train", "tune", "glue", "eval", "quickstart"}
TRAINING = {"train", "tune", "doctor", "glue", "quickstart"}


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_help_is_instant_in_what_it_imports(job: Path) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{job}', '--help']\n"
        f"try: runpy.run_path('{job}', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        f"heavy = {HEAVY | ({'numpy'} if job.stem in WITHOUT_NUMPY else set())}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout
    assert ("--learning-rate" in done.stdout) == (job.stem in TRAINING)


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"]])
def test_help_of_the_command_is_instant(words: list[str]) -> None:
    code = (
        "import sys\nfrom trainyard.command import main\n"
        f"try: main(argv={words!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        f"heavy = {HEAVY | {'numpy', 'fastapi'}} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout or "--learning-rate" in done.stdout or "FILE" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_flags(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(argv=["completion", shell])
    script = capsys.readouterr().out
    assert "data-doctor" in script
    assert "--learning-rate" in script
    for unknown in ("tcsh", "fish"):
        with pytest.raises(SystemExit):
            main(argv=["completion", unknown])
        assert "with one of bash, zsh\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("init ba", []),  # nothing: the shell goes on to file names
        ("train --config ba", []),
        ("train --conf", ["--config"]),
        ("dashboard --js", ["--json"]),
        ("serve n", ["new-key"]),
        ("compl", ["completion"]),
        ("completion z", ["zsh"]),
        ("train --strategy f", ["fsdp"]),
    ],
)
def test_what_a_shell_completes(line: str, completed: list[str], scripts: dict[str, Path]) -> None:
    words = shlex.split(f"trainyard {line}")
    code = (
        f"source {scripts['bash']}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        "_tyro_trainyard; echo ${#COMPREPLY[@]} ${COMPREPLY[*]}; complete -p trainyard"
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    found, registered = done.stdout.splitlines()
    assert found.split() == [str(len(completed)), *completed]
    assert "-o default" in registered
    assert 'if [[ -z "$completions" ||' in scripts["zsh"].read_text()  # then _files completes


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh"):
        (folder / shell).write_text(completion(shell))
    return {shell: folder / shell for shell in ("bash", "zsh")}


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(argv=["--version"])
    assert capsys.readouterr().out == f"trainyard {trainyard.__version__}\n"


def test_an_unknown_command_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv=["trian"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: trainyard has no command 'trian'; did you mean 'train'?\n"
    )


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_every_name_of_the_table_exists(job: Job) -> None:
    assert is_dataclass(job.config_class())
    assert job.config_class().__doc__
    assert callable(load(job.function))
    for example in job.examples:
        name, *flags = shlex.split(example.partition(">")[0])
        if flags[:1] and flags[0] in (job.verbs or {}):
            assert callable(load((job.verbs or {})[flags[0]]))
        elif "--config" not in flags:
            assert isinstance(parse(JOBS[name].config_class(), flags), job.config_class())


def test_identity_ignores_the_place_and_nothing_else() -> None:
    base = TrainConfig()
    assert base.identity() == TrainConfig(num_workers=2, storage_path="x", verbose=True).identity()
    assert base.identity() == TrainConfig(save_steps=5, ledger=True).identity()
    assert not base.changed_since(asdict(TrainConfig(save_steps=5, ledger=True)))
    # Lines of another cadence in one metrics.jsonl would be means over other steps.
    assert base.identity() != TrainConfig(logging_steps=1).identity()
    assert base.identity() != TrainConfig(seed=1).identity()
    assert set(PLACE_FIELDS) <= {field.name for field in fields(TrainConfig)}
    assert json.dumps(asdict(base))  # a config can be stored


def test_a_local_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine so busy that Ray's processes are too slow for it: a bare Exception."""
    import ray

    def too_slow(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_slow)
    told = r"Ray did not start on this machine \(The current node timed out .*run the same command"
    with pytest.raises(UserError, match=told), ray_session(TrainConfig()):
        pass
