"""Style and scripts of the pages: ours from static/, and Vega from the package that ships it."""

from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"


@cache
def static_text(name: str) -> str:
    """One of our own files."""
    return (STATIC / name).read_text(encoding="utf-8")


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script, 0.9 MB; two seconds the first time."""
    import vl_convert

    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub lacks a default
    return script.replace("</script", "<\\/script")
