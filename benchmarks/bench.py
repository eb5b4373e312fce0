"""Measure the speed tables of the docs again, one driver after another.

    python benchmarks/bench.py --data-dir DIR
    python benchmarks/bench.py --data-dir DIR --only steps-mrpc serving

`make bench DATA=DIR` calls it. The machine must be idle: drivers alternate between ours and the
reference, which does not cancel the effect of other load. It takes about 30 minutes on two cores.
Quality, faults and scaling are not included. At the end, the tables in docs/benchmarks.md and
README.md are rewritten.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
STEPS = "compare_steps.py --data-dir DIR --turns 12 --task"
SERVING = "compare_serving.py --data-dir DIR --rounds 2 --seconds 5"

DRIVERS: dict[str, str] = {
    "host-time": "host_time.py --rounds 5",
    **{f"steps-{task}": f"{STEPS} {task}" for task in ("cola", "sst2", "mrpc", "rte")},
    **{
        f"steps-{task}-bf16": f"{STEPS} {task} --mixed-precision bf16"
        for task in ("cola", "sst2", "mrpc", "rte")
    },
    "first-step": "first_step.py --data-dir DIR --task mrpc --rounds 3",
    "ready": "ready.py --rounds 1",
    "tokenization": "compare_tokenization.py --data-dir DIR --pairs 2",
    "alone": "compare_alone.py --data-dir DIR --task mrpc --max-steps 40 --skip 20 --pairs 2",
    "serving": f"{SERVING} --name serving-sst2",
    "serving-openvino": f"{SERVING} --name serving-sst2-openvino --engine openvino",
    "serving-bfloat16": (
        "compare_serving.py --data-dir DIR --rounds 1 --seconds 5 --engine openvino --dtype bfloat16 "
        "--kinds ours batch --name serving-sst2-bfloat16"
    ),
}
"""Command of each driver; it writes results/*.json with processor, precision and versions."""


def main() -> None:
    """Run the drivers, then rewrite the tables; exit with status 1 if a driver failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--only", nargs="+", choices=DRIVERS, default=list(DRIVERS))
    args = parser.parse_args()
    began, failed = time.monotonic(), []
    for name in args.only:
        started = time.monotonic()
        script, *words = [
            args.data_dir if word == "DIR" else word for word in DRIVERS[name].split()
        ]
        status = subprocess.run(
            [sys.executable, str(HERE / script), *words], check=False
        ).returncode
        if status:
            failed.append(name)
        print(f"{name}: status {status}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    pages = [str(HERE.parent / page) for page in ("docs/benchmarks.md", "README.md")]
    subprocess.run([sys.executable, str(HERE / "result_tables.py"), *pages], check=True)
    print(f"{(time.monotonic() - began) / 60:.0f} minutes; failed: {', '.join(failed) or 'none'}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
