"""The docs: commands parse, links lead somewhere, generated parts are current, the site builds."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from diagrams import DIAGRAMS
from result_tables import TABLES, rewrite
from support.job_scripts import JOBS as SCRIPTS
from support.job_scripts import ROOT, config_of, script
from support.patched_package import DIFFS, EXTEND, patched

from trainyard.command import JOBS, parse
from trainyard.command.starter import InitConfig, write_starter
from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.serving.check import check_config
from trainyard.serving.errors import STATUSES
from trainyard.serving.options import GatewayOptions, HostOptions, SharedOptions
from trainyard.serving.replica.metrics import COUNTERS, GAUGES, HISTOGRAMS
from trainyard.stats import proportion_interval
from trainyard.summary import summary
from trainyard.tasks import GLUE_REVISION
from trainyard.tuning import SweepConfig
from trainyard.tuning.space import build_space

SITE = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*.md")), *SITE]
GENERATED = runpy.run_path(str(ROOT / "docs" / "generate.py"))
COMMAND = re.compile(r"^(?:\|.*`)?trainyard ([a-z-]+)((?: [^\n`]*\\\n)*[^\n`]*)", re.MULTILINE)
"""A command in a code block or in a table; what a sentence quotes may be part of one."""


def commands() -> Iterator[tuple[str, str, str]]:
    """Yield (page, job, flags) of every `trainyard` command in the pages."""
    for page in PAGES:
        if page.name != "flags.md":
            for job, flags in COMMAND.findall(page.read_text()):
                yield page.name, job, flags


def examples() -> Iterator[tuple[str, str, str]]:
    """Yield ("--help", job, flags) of every example of --help, which flags.md repeats."""
    for job in JOBS.values():
        for example in job.examples:
            name, _, flags = example.partition(" ")
            yield "--help", name, flags


@pytest.mark.parametrize(("page", "job", "flags"), [*commands()])
def test_a_command_parses(page: str, job: str, flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(flags.replace("\\\n", " "), comments=True)
    assert job in JOBS, f"{page}: trainyard {job}"
    if "--help" in words or "--config" in words or (words and words[0] in (JOBS[job].verbs or {})):
        return  # the next test runs those with the config of `init`
    config = JOBS[job].config_class()
    assert isinstance(parse(config, JOBS[job].flags(words)), config)


@pytest.mark.parametrize("page", ["--help", *sorted({page.name for page in PAGES})])
def test_commands_with_the_config_of_init_are_accepted(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of a page parse in turn, and two of one run name have one identity."""
    shutil.copy(ROOT / "examples" / "mail.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds.json").write_text("{}")
    write_starter(InitConfig(train_file="mail.csv"))
    identities: dict[str, str] = {}
    for name, job, flags in (*commands(), *examples()):
        words = shlex.split(flags.replace("\\\n", " "), comments=True)
        if name != page or words[:2] != ["--config", "mail.yaml"]:
            continue
        config = parse(JOBS[job].config_class(), words)
        assert isinstance(config, TrainConfig)
        if isinstance(config, SweepConfig):
            build_space(config.space, config.overrides, config.base)
        run, identity = config.resolved_run_name, config.identity()
        assert identities.setdefault(run, identity) == identity, f"{page}: {job} {flags}"


SUBMITTED = [
    (page.name, job, flags)
    for page in [*PAGES, ROOT / "Makefile"]
    for job, flags in re.findall(
        rf"python jobs/({'|'.join(SCRIPTS)})\.py ((?:.*\\\n)*.*)",
        page.read_text().replace("`", "\n"),
    )
]


@pytest.mark.parametrize(("page", "job", "flags"), SUBMITTED)
def test_a_submitted_command_parses(
    page: str, job: str, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(flags.replace("\\\n", " "), comments=True)
    assert isinstance(config_of(job, *words), script(job)[0]), page


def test_serve_commands_parse() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    hosted = re.findall(r"serve run trainyard\.serving\.app:build (.*)", text)
    assert hosted
    for arguments in hosted:
        given = dict(argument.split("=", 1) for argument in shlex.split(arguments))
        assert HostOptions.parse(given, "the docs").model
    check_config(yaml.safe_load((ROOT / "serve/config.yaml").read_text()), "the docs")
    shown = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/serve.md").read_text(), re.M | re.S)
    assert shown
    for text in shown:
        check_config(yaml.safe_load(text), "docs/serve.md")


def table_below(page: str, head: str) -> list[list[str]]:
    """Return the rows of the table of a page whose first column is titled `head`."""
    text = (ROOT / "docs" / page).read_text()
    found = re.search(rf"^\| {re.escape(head)} \|.*\n\|[ |-]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found, f"{page} has no table of {head}"
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in found[1].splitlines()]


@pytest.mark.parametrize(
    ("head", "options"), [("gateway", GatewayOptions), ("model", SharedOptions)]
)
def test_every_option_of_a_serve_file_has_its_default_in_the_docs(head: str, options: Any) -> None:
    shown = {row[0].strip("`"): row[-1] for row in table_below("serve.md", head)}
    assert shown.keys() == options.model_fields.keys()
    for name, field in options.model_fields.items():
        if isinstance(field.default, int | float):
            assert float(shown[name].replace(",", "")) == field.default, name


def test_the_flags_for_readers_of_other_tools_exist() -> None:
    known = {"config", *re.findall(r"`--([a-z-]+)`", (ROOT / "docs/flags.md").read_text())}
    page = (ROOT / "docs/migrate.md").read_text()
    cells = [row.strip("|").split(" | ", 1)[1] for row in page.splitlines() if row.startswith("| ")]
    named = {flag for cell in cells for flag in re.findall(r"--([a-z][a-z-]+)", cell)}
    assert len(named) > 20
    assert named <= known, named - known


OFFLOADED = table_below("train.md", "`offload_optimizer` of the file")


@pytest.mark.parametrize(("section", "without", "with_flag"), OFFLOADED)
def test_the_flag_and_the_file_decide_on_offload_as_the_page_says(
    section: str, without: str, with_flag: str
) -> None:
    zero = {} if section == "absent" else {"offload_optimizer": json.loads(section.strip("`"))}
    text = json.dumps({"zero_optimization": zero})
    for flag, expected in (("none", without), ("cpu", with_flag)):
        flags = ["--strategy", "deepspeed", "--use-gpu", "--deepspeed-config", text]
        if expected == "refused":
            with pytest.raises(UserError, match="offload_optimizer"):
                parse(TrainConfig, [*flags, "--zero-offload", flag])
        else:
            config = parse(TrainConfig, [*flags, "--zero-offload", flag])
            assert {"none": "GPU", "cpu": "CPU"}[config.zero_offload] == expected


def test_the_figures_of_five_million_rows_follow_from_the_stored_runs() -> None:
    scale = json.loads((ROOT / "benchmarks/results/scale.json").read_text())["runs"]
    few, many = scale["200000"], scale["3000000"]
    a_row = (many["peak_mib"]["all"] - few["peak_mib"]["all"]) / 2_800_000  # MiB
    page = (ROOT / "docs/data.md").read_text()
    gib = (many["peak_mib"]["all"] + 2_000_000 * a_row) / 1024
    assert f"about {gib:.0f} GiB in all processes" in page
    a_million = (many["seconds"] - scale["1000000"]["seconds"]) / 2
    assert f"{a_million:.0f} seconds for each million rows" in page
    assert f"| {(many['seconds'] + 2 * a_million) / 60:.0f} minutes on two cores" in page
    speeds = [float(row[1]) for row in table_below("train.md", "Mean length of a row")]
    hours = [5_000_000 / speed / 3600 for speed in (max(speeds), min(speeds))]
    assert f"{hours[0]:.0f} to {round(hours[1], -1):.0f} hours an epoch" in page


def test_every_status_has_its_error_types_in_the_docs() -> None:
    shown = {int(row[0]): set(row[1].split(", ")) for row in table_below("requests.md", "status")}
    sent: dict[int, set[str]] = {}
    for kind, (status, error_type) in STATUSES.items():
        if kind != "left":  # no client is there to read it
            sent.setdefault(status, set()).add(error_type)
    assert shown == sent


def test_every_metric_of_a_server_is_in_the_docs() -> None:
    shown = {row[0].strip("`") for row in table_below("serve.md", "metric")}
    names = [*HISTOGRAMS, *(f"{name}_total" for name in COUNTERS), *GAUGES, "gateway_refused_total"]
    assert shown == {f"ray_trainyard_{name}" for name in names}


def diff_of(kind: str) -> str:
    """Return the diff of a section of docs/extend.md."""
    section = EXTEND.partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
    (diff,) = [diff for diff in DIFFS if diff in section]
    return diff


@pytest.mark.parametrize("kind", ["A task", "A metric", "An engine"])
def test_the_page_of_extensions_adds_at_most_three_lines_to_one_file(kind: str) -> None:
    diff = diff_of(kind)
    marks = [line[:1] for line in diff.splitlines() if not line.startswith(("+++", "---"))]
    assert diff.count("+++ ") == 1
    assert marks.count("+") <= 3
    assert "-" not in marks


def test_the_page_of_extensions_counts_the_lines_of_the_shortest_predictor() -> None:
    (lines,) = re.findall(r"the shortest predictor is a class of (\d+) lines", EXTEND)
    (added,) = re.findall(r"^\+class .*(?:\n\+.*)*", diff_of("A predictor"), re.MULTILINE)
    assert len(added.rstrip("+\n").splitlines()) == int(lines)


def test_the_diffs_of_the_docs_add_what_they_say(tmp_path: Path) -> None:
    package = patched(tmp_path)
    assert len(DIFFS) == 7
    done = subprocess.run(
        [sys.executable, ROOT / "tests/support/extensions_of_the_docs.py", tmp_path],
        env={**os.environ, "PYTHONPATH": f"{package}:{ROOT / 'tests'}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "splits": ["train", "validation"],
        "recall": {"three classes": 0.5, "with an interval": True},
        "engine": ["no", "yes"],
        "point": ["learning_rate", "weight_decay"],
        "scheduler": "MedianStoppingRule",
        "top": ["no", "no"],
        "answer": "list[str]",
        "labels": 1,
    }


def test_every_job_is_taught() -> None:
    assert {job for _, job, _ in commands()} >= set(JOBS)


@pytest.mark.parametrize(
    ("page", "text"),
    [pytest.param(page, text, id=page.name) for page, text in GENERATED["pages"]().items()],
)
def test_generated_parts_are_current(page: Path, text: str) -> None:
    assert text == page.read_text(), "run python docs/generate.py"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_replaces_what_was_in_its_place(name: str) -> None:
    text = rewrite(f"a\n<!-- table: {name} -->\nstale row\n<!-- end -->\nb")
    assert "stale row" not in text
    assert (text[:2], text[-2:]) == ("a\n", "\nb")
    assert rewrite(text) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)", page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.is_file(), f"{page.name} links to {target}"
        if anchor:
            assert anchor[1:] in headings(path), f"{page.name} links to {target}{anchor}"


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles
    }


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_diagram_is_valid_and_follows_the_scheme_of_the_reader(name: str) -> None:
    drawn = (ROOT / "docs" / "assets" / f"{name}.svg").read_text()
    assert "prefers-color-scheme:dark" in drawn
    ElementTree.fromstring(drawn)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_presets_are_configs() -> None:
    presets = list((ROOT / "jobs/configs").glob("*.yaml"))
    assert presets
    for preset in presets:
        assert config_of("train", "--config", str(preset)).task


def test_the_runtime_environment_is_what_ray_takes() -> None:
    from ray.runtime_env import RuntimeEnv

    environment = RuntimeEnv(**yaml.safe_load((ROOT / "runtime_env.yaml").read_text()))
    assert environment["env_vars"]["PYTHONPATH"] == "platform"


def test_no_page_installs_the_package_of_this_name_on_pypi() -> None:
    """PyPI has another project under the name: the install is from a clone."""
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        assert not re.findall(r"pip install[^\n`]* '?trainyard\b", page.read_text()), page.name


def test_the_config_of_the_quickstart_is_that_of_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "examples" / "mail.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    result = write_starter(InitConfig(train_file="mail.csv"))
    assert (tmp_path / "mail.yaml").read_text() in (ROOT / "docs/quickstart.md").read_text()
    assert json.dumps(result) in (ROOT / "docs/troubleshooting.md").read_text()
    assert summary(result)[0] in (ROOT / "README.md").read_text()


def test_the_intervals_of_the_data_page_are_wilsons() -> None:
    rows = re.findall(
        r"^\| ([\d,]+) \| (0\.\d+) to (0\.\d+) \|$", (ROOT / "docs/data.md").read_text(), re.M
    )
    assert rows
    for count, low, high in rows:
        number = int(count.replace(",", ""))
        found = proportion_interval(round(0.9 * number), number)
        assert [f"{end:.2f}" for end in found] == [low, high]


def test_the_updates_by_which_fp16_is_compared_are_those_of_the_stored_runs() -> None:
    stored = json.loads((ROOT / "benchmarks/results/strategy-matrix.json").read_text())
    skipped = {row["skipped_steps"] for name, row in stored["rows"].items() if "fp16" in name}
    (number,) = skipped
    updates = stored["steps"] - number
    page = (ROOT / "docs/how-it-works.md").read_text()
    assert f"has {stored['steps']} steps" in page
    assert f"{number} steps are skipped, so {updates} updates are compared" in page
    assert f"(in fp16, over {updates} updates)" in page


def test_the_data_page_names_the_commit_of_glue() -> None:
    assert GLUE_REVISION in (ROOT / "docs/data.md").read_text()
