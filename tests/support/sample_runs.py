"""Run and sweep folders like those of training and tuning, written in milliseconds."""

import json
import math
import random
import time
from pathlib import Path
from typing import Any

from trainyard.config import TrainConfig

ENDS = ("finished", "pruned", "pruned", "finished", "diverged", "pruned", "failed", "finished")
SPACE = {
    "learning_rate": "loguniform:5e-06:0.001",
    "weight_decay": "uniform:0:0.1",
    "train_batch_size": "choice:8,16,32",
    "lr_scheduler_type": "choice:linear,cosine",
}


def instant(seconds: float) -> str:
    """Format a time as in run.json."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def write_run(
    folder: Path, *, status: str = "finished", seed: int = 0, steps: int = 340, started: float = 1.79e9,
    upto: float = 1.0, quality: float = 0.85, fixed: float | None = None, **record: Any,
) -> Path:  # fmt: skip
    """Write a run of `steps` steps with a final score of about `quality`; return its folder.

    The share `upto` of the steps is done. With `fixed`, every metric has this value.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    done = max(int(steps * upto), 0)
    lines: list[dict[str, Any]] = []
    evaluations = []
    for step in range(10, done + 1, 10):
        loss = 0.7 * math.exp(-3 * step / steps) + 0.15 + 0.05 * rng.random()
        lines.append({"step": step, "epoch": 3 * step / steps, "loss": loss,
                      "learning_rate": 5e-5 * (1 - step / steps)})  # fmt: skip
        if step % (steps // 17 * 2 or 10) < 10:
            f1 = quality - 0.3 * math.exp(-4 * step / steps) + 0.01 * rng.random()
            found = {"accuracy": f1 - 0.06, "f1": f1}
            found = found if fixed is None else dict.fromkeys(found, fixed)
            spans = {name: [value - 0.03, value + 0.025] for name, value in found.items()}
            line: dict[str, Any] = {
                "step": step,
                "split": "validation",
                "eval_loss": 1 - f1,
                "metrics": found,
                "intervals": spans,
            }
            lines.append(line)
            evaluations.append(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    best = max(evaluations, key=lambda line: line["metrics"]["f1"], default=None)
    spent = done * 0.3
    seconds = {"start_up": 1.2, "data": spent * 0.01, "compute": spent * 0.8, "sync": spent * 0.04,
               "evaluation": spent * 0.1, "checkpoint": spent * 0.04, "records": spent * 0.01}  # fmt: skip
    (folder / "progress.json").write_text(json.dumps({
        "step": done, "last_step": steps, "rows_per_step": 32, "loss": 0.2, "score": quality,
        "train_samples_per_second": 96.4, "seconds": seconds,
    }))  # fmt: skip
    run: dict[str, Any] = {
        "name": folder.name, "status": status, "identity": "x", "started": instant(started),
        "config": {**vars(TrainConfig(task="mrpc", seed=seed)), "task": "mrpc"},
        "data_fingerprint": "9d2c41d8a7b05e13",
        "versions": {"python": "3.11.2", "ray": "2.60.0", "torch": "2.13.0", "commit": "3a5e3e0" * 5},
    }  # fmt: skip
    if status != "running":
        run["ended"] = instant(started + spent + 9)
    if status == "finished" and best is not None:
        run["seconds"] = {
            "start_up": 2.1,
            "tokenization": 0.6,
            "training": spent + 5.1,
            "export": 0.4,
        }
        run["result"] = {
            "run": folder.name, "task": "mrpc", "score": best["metrics"]["f1"],
            "metrics": {"validation": best["metrics"]},
            "intervals": {"validation": best["intervals"]}, "model": str(folder / "model"),
            "seconds": spent + 9, "best_step": best["step"], "steps": done,
            "train_samples_per_second": 96.4, "padding_efficiency": 0.971,
            "truncated_rows": {"train": 12, "validation": 0},
        }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({**run, **record}))
    return folder


def write_sweep(
    folder: Path, trials: int = 24, *, status: str = "finished", started: float = 1.79e9,
    confirmed: bool = True, verdict: str = "better", fixed: float | None = None,
) -> Path:  # fmt: skip
    """Write a sweep whose score depends mostly on the learning rate, then on the batch size.

    Its diverged trials have evaluations from before they diverged.
    """
    rng = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    best: tuple[float, str, dict[str, Any]] = (0.0, "", {})
    for index in range(trials):
        name = f"trial-{index:03d}"
        given: dict[str, Any] = {
            "learning_rate": 10 ** rng.uniform(math.log10(5e-6), -3),
            "weight_decay": rng.uniform(0, 0.1),
            "train_batch_size": rng.choice([8, 16, 32]),
            "lr_scheduler_type": rng.choice(["linear", "cosine"]),
        }
        distance = abs(math.log10(given["learning_rate"]) + 4.2)
        quality = (
            0.9 - 0.08 * distance**2 - 0.0006 * given["train_batch_size"] + rng.gauss(0, 0.006)
        )
        ended = ENDS[index % len(ENDS)]
        upto = {"pruned": rng.choice([0.12, 0.36]), "failed": 0.0, "diverged": 0.36}.get(ended, 1.0)
        if status == "running" and index >= trials - 3:
            ended, upto = ("running", 0.5) if index < trials - 1 else ("waiting", 0.0)
        trial = {"index": index, "name": name, "kind": "search", "hyperparameters": given}
        path = folder / "trials" / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "trial.json").write_text(json.dumps(trial))
        if ended == "waiting":
            continue
        reasons = {"diverged": "the loss of step 4 is nan; lower --learning-rate",
                  "failed": "worker 0: OSError: No space left on device",
                  "pruned": "the scheduler stopped it"}  # fmt: skip
        write_run(path, status=ended, seed=index, upto=upto, quality=quality, sweep=folder.name,
                  trial=trial, started=started + 40 * index, startup_seconds=0.2, fixed=fixed,
                  reason=reasons.get(ended))  # fmt: skip
        if ended == "finished" and quality > best[0]:
            best = (quality, name, given)
    record: dict[str, Any] = {
        "kind": "sweep", "name": folder.name, "status": status, "space": SPACE, "task": "mrpc",
        "searcher": "optuna", "scheduler": "asha", "num_trials": trials, "metric": "f1",
        "started": instant(started), "config": {"space": "wide", "num_trials": trials, "seed": 42},
    }  # fmt: skip
    if status == "finished":
        record |= {
            "ended": instant(started + 40 * trials + 120), "seconds": 40 * trials + 120.0,
            "result": {"best_trial": best[1], "score": best[0], "hyperparameters": best[2]},
        }  # fmt: skip
        if confirmed:
            record |= confirmation(folder, best, verdict)
            if verdict == "worse":
                record["result"]["best_trial"] = "default"
    (folder / "sweep.json").write_text(json.dumps(record))
    return folder


def write_confirming(folder: Path) -> Path:
    """Write a sweep during its confirmation, with a failed and an unfinished confirming run."""
    write_sweep(folder, 12, confirmed=False)
    record = json.loads((folder / "sweep.json").read_text())
    for field in ("result", "ended"):
        del record[field]
    (folder / "sweep.json").write_text(json.dumps({**record, "status": "running"}))
    states = (("finished", 1.0, None), ("failed", 0.3, "worker 0: OSError: No space left on device"),
              ("running", 0.5, None))  # fmt: skip
    for seed, (status, upto, reason) in enumerate(states):
        name = f"default-seed-{seed}"
        spec = {
            "index": seed,
            "name": name,
            "kind": "confirmation",
            "hyperparameters": {"seed": seed},
        }
        write_run(folder / "confirmation" / name, seed=seed, status=status, upto=upto, trial=spec,
                  reason=reason)  # fmt: skip
    return folder


def confirmation(
    folder: Path, best: tuple[float, str, dict[str, Any]], verdict: str
) -> dict[str, Any]:
    """Write the confirming runs; return the verdict and the confirmation of sweep.json."""
    runs: dict[str, list[str]] = {}
    for who, quality in (("winner", best[0]), ("default", best[0] - 0.02)):
        for seed in (1, 2, 3):
            name = f"{who}-seed-{seed}"
            spec = {"index": seed, "name": name, "kind": "confirmation", "hyperparameters": best[2]}
            write_run(folder / "confirmation" / name, seed=seed, quality=quality, trial=spec)
            runs.setdefault(who, []).append(name)
    worse = verdict == "worse"
    scores = [0.85, 0.859, 0.849] if worse else [0.897, 0.889, 0.901]
    corrected, ends = (0.8501, [0.835, 0.868]) if worse else (0.8931, [0.881, 0.909])
    gain = (-0.0206, -0.0369, -0.005) if worse else (0.0198, 0.0042, 0.0361)
    return {
        "verdict": verdict,
        "confirmation": {
            "seeds": [1, 2, 3], "verdict": verdict,
            "winner": {"trial": best[1], "hyperparameters": best[2], "scores": scores,
                       "mean": sum(scores) / 3, "corrected": corrected, "interval": ends,
                       "runs": runs["winner"]},
            "default": {"hyperparameters": {"learning_rate": 5e-5}, "scores": [0.871, 0.88, 0.869],
                        "mean": 0.8733, "interval": [0.859, 0.887], "runs": runs["default"]},
            "candidates": [],
            "difference": dict(zip(("value", "low", "high"), gain, strict=True)),
        },
    }  # fmt: skip
