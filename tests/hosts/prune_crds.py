"""Cut KubeRay's CRDs (two megabytes) down to the schemas that kubernetes/*.yaml use.

    python tests/hosts/prune_crds.py KUBERAY_CHECKOUT/ray-operator/config/crd/bases v1.7.0

What a manifest uses is kept whole. Beside it only the names and types of what it could have used
are kept, so that an unknown or misplaced key is still refused.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KEPT = ("type", "enum", "required", "format", "x-kubernetes-int-or-string")
SOURCE = "https://github.com/ray-project/kuberay/tree/{}/ray-operator/config/crd/bases"


def prune(schema: dict[str, Any], used: list[Any]) -> dict[str, Any]:
    """`schema` without what none of the values in `used` has; objects refuse unknown keys."""
    kept = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in schema:
        kept["additionalProperties"] = False
        kept["properties"] = {}
        for name, part in schema["properties"].items():
            values = [value[name] for value in used if isinstance(value, dict) and name in value]
            bare = {"type": part["type"]} if "type" in part else {}
            kept["properties"][name] = prune(part, values) if values else bare
    elif isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = prune(schema["additionalProperties"], used)
    if "items" in schema:
        items = [item for value in used if isinstance(value, list) for item in value]
        kept["items"] = prune(schema["items"], items)
    return kept


def main() -> None:
    """Write tests/kuberay-schemas.json."""
    folder, version = Path(sys.argv[1]), sys.argv[2]
    manifests: dict[str, list[Any]] = {}
    for path in sorted((ROOT / "kubernetes").glob("ray*.yaml")):
        manifest = yaml.safe_load(path.read_text())
        manifests.setdefault(manifest["kind"], []).append(manifest)
    schemas = {}
    for kind, used in manifests.items():
        crd = yaml.safe_load((folder / f"ray.io_{kind.lower()}s.yaml").read_text())
        (served,) = (one for one in crd["spec"]["versions"] if one["name"] == "v1")
        schemas[kind] = prune(served["schema"]["openAPIV3Schema"], used)
    target = ROOT / "tests/kuberay-schemas.json"
    target.write_text(
        json.dumps({"source": SOURCE.format(version), "schemas": schemas}, sort_keys=True) + "\n"
    )


if __name__ == "__main__":
    main()
