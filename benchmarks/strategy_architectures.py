"""Train architectures with every strategy, on two CPU processes, and log the results.

    python benchmarks/strategy_architectures.py [--only NAME ...]

Models are tiny and have random weights. Each run is repeated, cut off after half of its steps, and
resumed. The exported model is loaded with plain transformers. `--only` replaces only the named
rows. The process exits with status 1 if a strategy failed. `tests/support/strategy_matrix.py` does
the work.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from provenance import provenance

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.strategy_matrix import ARCHITECTURES, try_strategies  # noqa: E402

LOG = ROOT / "benchmarks/results/strategies.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    only = parser.parse_args().only
    before = json.loads(LOG.read_text())["architectures"] if LOG.exists() else {}
    found = {}
    for kind in ARCHITECTURES:
        if kind in only:
            with tempfile.TemporaryDirectory() as folder:
                found[kind] = try_strategies(kind, Path(folder))
        elif kind in before:
            found[kind] = before[kind]
        LOG.write_text(json.dumps({**provenance(), "architectures": found}, indent=1) + "\n")
        print(kind, found.get(kind), flush=True)
    sys.exit(any("error" in seen for row in found.values() for seen in row.values()))


if __name__ == "__main__":
    main()
