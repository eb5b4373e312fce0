"""The `trainyard` command: the table of jobs, and dispatch by the first argument."""

import contextlib
import importlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import trainyard
from trainyard.command.cli import run_job
from trainyard.command.usage import grouped, with_words
from trainyard.terminal import readers_may_leave


@dataclass(frozen=True)
class Job:
    """One subcommand. Its class and function are imported on use, so that --help stays fast."""

    about: str
    """Description in `trainyard --help`."""
    config: str
    """Config class, as MODULE:NAME."""
    function: str
    """Function from the config to a mapping or an object with `as_json`, as MODULE:NAME."""
    examples: tuple[str, ...]
    """Command lines for the job's --help, without the word `trainyard`."""
    opening: str = "loading torch and Ray, which takes some seconds"
    """End of the first line that the job prints on stderr."""
    needs: tuple[str, ...] = ()
    """Config fields, at least one of which must be given as a flag."""
    preset: str | None = None
    """YAML file of this package with flags that precede the given ones, so the given ones win."""
    verbs: Mapping[str, str] | None = None
    """First argument -> function that runs instead, as MODULE:NAME; it gets all arguments."""

    def config_class(self) -> type[Any]:
        found: type[Any] = load(self.config)
        return found

    def run(self, config: Any) -> Mapping[str, Any]:
        """Run the job; return the mapping that is printed as JSON."""
        result = load(self.function)(config)
        found: Mapping[str, Any] = result if isinstance(result, Mapping) else result.as_json()
        return found

    def flags(self, argv: Sequence[str]) -> list[str]:
        """Return the flags `argv` after those of the preset."""
        path = Path(__file__).with_name(self.preset) if self.preset else None
        return [*((f"--config={path}",) if path else ()), *argv]


SHELLS = ("bash", "zsh")

FILE_NAMES = (
    ('"$completions" == "__TYRO_COMPLETE_FILES__" ]]',
     '-z "$completions" || "$completions" == "__TYRO_COMPLETE_FILES__" ]]'),
    ('COMPREPLY=($(compgen -f -- "$cur"))', "COMPREPLY=()  # the shell completes file names"),
    ("complete -F ", "complete -o default -F "),
)  # fmt: skip
"""Lines of tyro's completion scripts, and their replacements: where nothing else fits, file names
are completed, and a folder is followed by a slash."""

JOBS: dict[str, Job] = {
    "quickstart": Job(
        "Train the built-in demo, serve it, and ask it about new sentences.",
        "trainyard.config.train:TrainConfig",
        "trainyard.command.quickstart:quickstart",
        ("quickstart",),
        preset="quickstart.yaml",
    ),
    "init": Job(
        "Inspect a file, and write a starter config for it.",
        "trainyard.command.starter:InitConfig",
        "trainyard.command.starter:write_starter",
        ("init mail.csv", "train --config mail.yaml"),
        opening="reading the file",
    ),
    "train": Job(
        "Fine-tune a model on your own file or a known task.",
        "trainyard.config.train:TrainConfig",
        "trainyard.training:fit",
        (
            "train --train-file mail.csv",
            "train --config mail.yaml --seed 1 --run-name mail-1",
            "train --task mrpc --num-workers 2 --train-batch-size 32",
        ),
        needs=("train_file", "dataset_name", "task", "data_dir"),
    ),
    "tune": Job(
        "Search hyperparameters, and state the confidence in the winner.",
        "trainyard.tuning:SweepConfig",
        "trainyard.tuning:tune",
        (
            "tune --train-file mail.csv --num-trials 8",
            "tune --config mail.yaml --run-name mail-wide --space wide --searcher optuna",
        ),
        needs=("train_file", "dataset_name", "task", "data_dir"),
    ),
    "eval": Job(
        "Evaluate a model on labeled rows: intervals, errors, calibration, comparison.",
        "trainyard.evaluation:EvalConfig",
        "trainyard.evaluation:evaluate",
        (
            "eval --model-name-or-path runs/mail --validation-file more.csv",
            "eval --model-name-or-path runs/mail --validation-file more.csv --against runs/other",
        ),
    ),
    "predict": Job(
        "Predict every row of a file.",
        "trainyard.inference:PredictConfig",
        "trainyard.inference:predict",
        (
            "predict --model-name-or-path runs/mail --input-file new.csv "
            "--output-file answers.jsonl",
        ),
        opening="loading torch, which takes some seconds",
    ),
    "glue": Job(
        "Train every GLUE task with several seeds, and fill the table.",
        "trainyard.glue:SuiteConfig",
        "trainyard.glue:run_suite",
        ("glue --data-dir glue --tasks cola mrpc rte --seeds 0 1 2",),
    ),
    "serve": Job(
        "Serve a model over HTTP, as the Hugging Face Inference API does.",
        "trainyard.serving:ServeConfig",
        "trainyard.serving:serve_model",
        (
            "serve --model-name-or-path runs/mail",
            "serve example > models.yaml",
            "serve check models.yaml",
            "serve new-key NAME",
        ),
        verbs=dict.fromkeys(("example", "check", "new-key"), "trainyard.serving:main"),
    ),
    "engine": Job(
        "Measure the engines that can serve a model here, and store the best one.",
        "trainyard.evaluation:EngineConfig",
        "trainyard.evaluation:choose_engine",
        ("engine --model-name-or-path runs/mail --validation-file more.csv",),
        opening="loading torch, which takes some seconds",
    ),
    "doctor": Job(
        "Check that `train` with the same flags works on this machine or cluster.",
        "trainyard.doctor:DoctorConfig",
        "trainyard.doctor:examine_cluster",
        ("doctor --train-file mail.csv --num-workers 2",),
    ),
    "data-doctor": Job(
        "Examine a data set for wrong labels, duplicates, leaks and drift.",
        "trainyard.doctor:DataDoctorConfig",
        "trainyard.doctor:examine_data",
        ("data-doctor --train-file mail.csv",),
        needs=("train_file", "dataset_name", "task", "data_dir"),
    ),
    "dashboard": Job(
        "Show runs and sweeps in a browser.",
        "trainyard.report.dashboard:DashboardConfig",
        "trainyard.report.dashboard:run_dashboard",
        ("dashboard", "dashboard --export mail-1 --output mail-1.html"),
        opening="reading the runs",
    ),
}  # fmt: skip


def load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def main(name: str | None = None, argv: Sequence[str] | None = None) -> None:
    """Run the job `name`, else the job that the first word of the command line names.

    Without a word, or with --help, print the overview, and with --version the version. `completion
    SHELL` prints a completion script.

    Args:
        name: Key of JOBS.
        argv: Command line. Default: the process's arguments.

    Raises:
        SystemExit: The status is the job's, see `run_job`; 2 for an unknown job or shell; 141 if the
            reader of the output has left.
    """
    with readers_may_leave():
        _dispatch(name, list(sys.argv[1:] if argv is None else argv))


def _dispatch(name: str | None, words: list[str]) -> None:
    if name is None:
        if not words or words[0] in ("-h", "--help", "help"):
            print(overview())  # noqa: T201
            return
        name = words.pop(0)
    if name == "--version":
        print(f"trainyard {trainyard.__version__}")  # noqa: T201
        return
    if name == "completion":
        print(completion(words[0] if words else ""))  # noqa: T201
        return
    if name not in JOBS:
        _refuse(name)
    job = JOBS[name]
    if words and words[0] in (job.verbs or {}):
        load((job.verbs or {})[words[0]])(words)
        return
    run_job(
        job.config_class(),
        job.run,
        job.flags(words),
        prog=f"trainyard {name}",
        examples=job.examples,
        needs=job.needs,
        opening=f"trainyard {name}: {job.opening}",
    )


def completion(shell: str) -> str:
    """Build the completion script of `shell`, one of SHELLS, for all commands and their flags.

    Raises:
        SystemExit: The shell is not in SHELLS; the status is 2.
    """
    import tyro

    if shell not in SHELLS:
        _stop(f"use `trainyard completion SHELL` with one of {', '.join(SHELLS)}")
    commands = {
        name: with_words(grouped(job.config_class()), job.verbs or ()) for name, job in JOBS.items()
    }
    commands["completion"] = with_words(object, SHELLS)
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="trainyard", args=["--tyro-print-completion", shell]
        )
    found = script.getvalue()
    for line, better in FILE_NAMES:
        found = found.replace(line, better)
    return found


def overview() -> str:
    width = max(map(len, JOBS))
    jobs = "\n".join(f"  {name:{width}}  {job.about}" for name, job in JOBS.items())
    return (
        "Take text data to a fine-tuned, tuned and served Hugging Face model.\n\n"
        "First steps:\n"
        "  trainyard quickstart                      the built-in demo, in a few minutes\n"
        "  trainyard init mail.csv                   a config for your own rows: mail.yaml\n"
        "  trainyard train --config mail.yaml        fine-tune\n"
        "  trainyard dashboard                       its curves, in a browser\n\n"
        f"Commands:\n{jobs}\n\n"
        "`trainyard COMMAND --help` lists the flags of a command, and `trainyard completion SHELL` "
        "prints a\nscript that completes them."
    )


def _refuse(name: str) -> NoReturn:
    import difflib

    close = difflib.get_close_matches(name, JOBS, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"use one of {', '.join(JOBS)}"
    _stop(f"trainyard has no command '{name}'; {hint}")


def _stop(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)  # noqa: T201
    raise SystemExit(2)
