"""Build configs from flags and --config files, run jobs, and print results and errors."""

import dataclasses
import difflib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trainyard.command.usage import description, flattened, grouped, has_positional
from trainyard.config import accelerate_flags, flag, is_accelerate, naming_flags, translate
from trainyard.errors import STORAGE_FAULTS, Interrupted, UserError, one_line, storage_fault
from trainyard.signals import Terminated, ending_by_signals
from trainyard.summary import summary

Config = TypeVar("Config")

INPUTS = ("train-file", "input-file", "validation-file", "model-name-or-path", "storage-path")
"""Flags that a word without a flag may belong to, the likeliest first."""


@naming_flags()
def parse(
    config: type[Config],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    examples: Sequence[str] = (),
    needs: Sequence[str] = (),
) -> Config:
    """Build `config` from flags, reading each `--config FILE.yaml` as more flags; later flags win.

    The flag parser also parses the values of a file. So `3e-5` is a number (in YAML 1.1 it is a
    string), and a misspelled key gets the same hint. Names of `TrainingArguments`, and files of
    `accelerate config`, are translated.

    Args:
        config: Config class; its fields are the flags.
        argv: Flags. Default: the process's arguments.
        prog: Name of the command in --help.
        examples: Command lines in --help, without the program's name.
        needs: Fields, at least one of which must be given as a flag.

    Raises:
        SystemExit: The status is 2 for an unknown flag or a value of a wrong type; 0 after --help.
        UserError: A file cannot be read, all `needs` are missing, or values conflict.
    """
    import tyro

    args = sys.argv[1:] if argv is None else argv
    words = translate(config, list(_expand(args)))
    _check_flags(config, words, prog)
    values = tyro.cli(
        grouped(config), prog=prog, description=description(config, prog, examples), args=words
    )
    found = config(**flattened(values))
    given = {word.partition("=")[0].replace("_", "-") for word in words}
    if needs and not any(flag(name) in given and getattr(found, name) for name in needs):
        raise UserError(
            "no data is given; give --train-file FILE.csv with columns text and label, "
            "--task NAME for a known task, or --task demo to try it on generated rows"
        )
    return found


def _check_flags(config: type[Any], words: Sequence[str], prog: str | None) -> None:
    """Refuse flags that the config does not have, and a first word that is no flag.

    Raises:
        UserError: There is such a word; the message names a flag that may be meant.
    """
    flags = ["--config", *(flag(field.name) for field in dataclasses.fields(config))]
    known = {"--help", *flags, *(f"--no-{name[2:]}" for name in flags)}
    initials = {"--" + "".join(part[0] for part in name[2:].split("-")): name for name in flags}
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        if not name.startswith("--") or name in {"--", *known} or name.startswith("--tyro-"):
            continue
        close = difflib.get_close_matches(name, flags, n=1, cutoff=0.75)
        close += [initials[name]] if name in initials else []
        close += [flag for flag in flags if flag.startswith(name)]
        remedy = f"did you mean {close[0]}?" if close else f"`{prog or 'COMMAND'} --help` lists all"
        raise UserError(f"there is no flag {name}; {remedy}")
    if words and not words[0].startswith("-") and not has_positional(config):
        wanted = ("model-name-or-path", *INPUTS) if Path(words[0]).is_dir() else INPUTS
        meant = next((f"--{name}" for name in wanted if f"--{name}" in flags), "a flag")
        raise UserError(f"{words[0]} stands alone; write {meant} {words[0]}")


def _expand(args: Sequence[str]) -> Iterator[str]:
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name != "--config":
            yield arg
            continue
        if not (source := value if equals else next(rest, "")):
            raise UserError("--config has no file name; give the path of a YAML file after it")
        path = Path(source)
        fields = _read_yaml(path)
        yield from accelerate_flags(fields) if is_accelerate(fields) else _flags(fields, path)


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        from trainyard.data import similar_file

        hint = similar_file(path) if isinstance(error, FileNotFoundError) else ""
        reason = hint or f" ({error.strerror})"
        raise UserError(
            f"--config {path} cannot be read{reason}; give the path of a YAML file"
        ) from error
    # ValueError: for example a date that does not exist
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not valid YAML: {one_line(error)}") from error


def _flags(fields: Any, path: Path) -> Iterator[str]:
    if not isinstance(fields, Mapping):
        raise UserError(
            f"--config {path} must hold lines of `flag: value`, not {one_line(repr(fields), 60)}"
        )
    for name, value in fields.items():
        flag = f"--{str(name).replace('_', '-')}"
        match value:
            case bool():
                yield flag if value else f"--no-{flag[2:]}"
            case None:
                yield from (flag, "None")
            case list():
                yield from (flag, *map(str, value))
            case Mapping():
                yield flag
                for key, item in value.items():
                    yield from (str(key), str(item))
            case _:
                yield f"{flag}={value}"


def run_job(
    config: type[Config],
    job: Callable[[Config], Mapping[str, Any]],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    examples: Sequence[str] = (),
    needs: Sequence[str] = (),
    opening: str | None = None,
) -> None:
    """Parse the command line, run `job`, and print a summary and the result as JSON.

    The summary goes to stderr. The JSON is the last line of stdout, with --json or if stdout is not
    a terminal. The function returns only when the work is done and stored.

    Args:
        config: Config class; its fields are the flags.
        job: Function from the config to the result.
        argv: Flags. Default: the process's arguments.
        prog: Name of the command in --help.
        examples: Command lines in --help, without the program's name.
        needs: Fields, at least one of which must be given as a flag.
        opening: First line on stderr.

    Raises:
        SystemExit: The status is 1 when the result has `ok: false`; 2 for a UserError or a storage
            fault, printed as one sentence; 143 or 130 when stopped by SIGTERM or Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words or not sys.stdout.isatty()
    if "json" not in {field.name for field in dataclasses.fields(config)}:  # type: ignore[arg-type]
        words = [word for word in words if word != "--json"]
    try:
        parsed = parse(config, words, prog=prog, examples=examples, needs=needs)
        if opening:
            print(opening, file=sys.stderr, flush=True)  # noqa: T201
        with naming_flags(), ending_by_signals():
            result = job(parsed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except Interrupted as stop:
        print(f"stopped: {stop}", file=sys.stderr)  # noqa: T201
        raise SystemExit(stop.exit_status) from None
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        print(f"stopped: by {'SIGTERM' if terminated else 'Ctrl-C'}", file=sys.stderr)  # noqa: T201
        raise SystemExit(128 + (signal.SIGTERM if terminated else signal.SIGINT)) from None
    except OSError as error:
        if error.errno not in STORAGE_FAULTS:
            raise
        print(f"error: {storage_fault(error)}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    for line in summary(result):
        print(line, file=sys.stderr)  # noqa: T201
    sys.stderr.flush()
    if as_json:
        print(json.dumps(result, allow_nan=False), flush=True)  # noqa: T201
    if not result.get("ok", True):
        raise SystemExit(1)
