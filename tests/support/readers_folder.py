"""A folder with every file, run and model that the commands of the pages name.

Models are tiny, and files have few rows, so that every command ends within seconds.
"""

import shutil
from pathlib import Path

import pandas as pd
import yaml
from support.job_scripts import ROOT
from support.sample_runs import write_sweep
from support.small_models import TAGS, bert, classifier, marian
from support.tiny import write_tiny_model

from trainyard.command.starter import InitConfig, write_starter
from trainyard.serving.gateway.keys import new_key
from trainyard.tasks import get_task

MAILS = ROOT / "examples" / "mail.csv"
POSITIONS = 128
"""The default --max-length of training."""
LABELS = ("account", "billing", "delivery", "returns")
COMMIT = "0" * 40
GLUE = ("cola", "sst2", "mrpc", "rte", "mnli")
RUNS = ("mail", "other", "mnli", "SWEEP")
"""Runs that are there before the first command of a page."""


def write_files(folder: Path) -> None:
    """Write the data files of the pages, from the mails of the examples."""
    for name in ("mail.csv", "more.csv"):
        shutil.copy(ROOT / "examples" / name, folder)
    mails = pd.read_csv(MAILS).sample(60, random_state=0)
    texts = mails["text"]
    for name in ("test", "all-mail", "new-mail"):
        mails.to_csv(folder / f"{name}.csv", index=False)
    for name in ("rows", "validation"):
        mails.to_parquet(folder / f"{name}.parquet")
    mails[["text"]].to_csv(folder / "new.csv", index=False)
    tickets = mails.rename(columns={"text": "body", "label": "kind"})
    tickets.to_csv(folder / "tickets.csv", index=False)
    moods = mails.rename(columns={"text": "Comment", "label": "Mood"})
    moods.to_csv(folder / "my.csv", index=False, sep=";")
    pairs = {"premise": texts, "hypothesis": texts.str.upper(), "label": mails["label"]}
    pd.DataFrame(pairs).to_csv(folder / "pairs.csv", index=False)
    topics = pd.DataFrame({"text": texts, "label": [[label] for label in mails["label"]]})
    topics.to_json(folder / "topics.jsonl", orient="records", lines=True)
    ratings = pd.DataFrame({"text": texts, "label": texts.str.len() / 10})
    ratings.to_csv(folder / "ratings.csv", index=False)
    kept = mails.assign(id=range(len(mails)), date="2026-12-01")
    kept.to_parquet(folder / "mails.parquet")
    for name in GLUE:
        task = get_task(name)
        rows = {column: texts.tolist() for column in task.text_columns}
        labels = [i % task.num_labels for i in range(len(texts))]
        (folder / "glue" / name).mkdir(parents=True)
        for split in ("train", *task.evaluation_splits):
            frame = pd.DataFrame({**rows, "label": labels, "idx": range(len(texts))})
            frame.to_parquet(folder / "glue" / name / f"{split}.parquet")


def write_models(cache: Path) -> None:
    """Write tiny models under the Hub's names into a cache of the Hub, HF_HUB_CACHE."""
    models = {
        "bert-base-uncased": write_tiny_model(cache / "bert", max_position_embeddings=POSITIONS),
        "distilbert-base-uncased": write_tiny_model(
            cache / "distilbert", max_position_embeddings=POSITIONS
        ),
        "dslim/bert-base-NER": bert(cache / "ner", "ForTokenClassification", id2label=TAGS),
        "Helsinki-NLP/opus-mt-en-de": marian(cache / "marian"),
        "sentence-transformers/all-MiniLM-L6-v2": bert(cache / "encoder", "Model"),
    }
    for name, model in models.items():
        cached = cache / f"models--{name.replace('/', '--')}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text(COMMIT)
        (cached / "snapshots").mkdir()
        model.rename(cached / "snapshots" / COMMIT)


def write_runs(folder: Path) -> None:
    """Write the runs that the pages name, and the model that a cluster left."""
    for name in ("mail", "other"):
        classifier(folder / "runs" / name / "model", LABELS, positions=POSITIONS)
    classifier(folder / "runs" / "mnli" / "model")
    classifier(folder / "model", LABELS)
    write_sweep(folder / "runs" / "SWEEP", 4)


def write_folder(folder: Path) -> Path:
    """Write all of these, a config of `trainyard init`, keys and a Serve config; return the folder."""
    write_files(folder)
    write_models(folder / "hub")
    write_runs(folder)
    write_tiny_model(folder / "tiny", max_position_embeddings=POSITIONS)
    write_starter(InitConfig(train_file=str(folder / "mail.csv"), output=str(folder / "mail.yaml")))
    _, key = new_key("first")
    (folder / "keys.yaml").write_text(yaml.safe_dump([key.model_dump(exclude_none=True)]))
    shutil.copy(ROOT / "serve" / "config.yaml", folder / "models.yaml")
    return folder


def write_clone(folder: Path) -> Path:
    """Copy what a job takes from the clone, and put the mails next to it; return the folder."""
    for name in ("platform", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("runtime_env.yaml", ".gitignore", "examples/mail.csv", "examples/more.csv"):
        shutil.copy(ROOT / name, folder)
    return folder


def forget_runs(runs: Path) -> None:
    """Delete the runs that the commands of a page made: another page may reuse their names."""
    for run in runs.iterdir():
        if run.name not in RUNS:
            shutil.rmtree(run)
