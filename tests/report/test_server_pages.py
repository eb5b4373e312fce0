"""The pages of a server in a real browser: its first page, /docs and the playground."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.browser import accessibility_faults, page_at
from support.http_requests import Echo, with_keys
from support.serving_locally import LocalModels, load, serving
from support.small_models import classifier

from trainyard.serving.answer import Answer
from trainyard.serving.options import GatewayOptions


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_pages_of_a_server_are_accessible(browser: Any, scheme: str) -> None:
    """Of /docs, what is left is inside Swagger UI: buttons with links, and levels of headings."""
    view = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme}
    swagger = {"nested-interactive:", "heading-order:"}
    with serving(Echo("mail")) as url:
        with page_at(browser, f"{url}/", **view) as page:
            assert accessibility_faults(page) == []
            pre = page.locator("pre")
            assert pre.evaluate("e => e.scrollWidth <= e.clientWidth")
        with page_at(browser, f"{url}/docs", **view) as page:
            page.locator(".opblock").first.wait_for(timeout=60_000)
            found = [fault for fault in accessibility_faults(page) if fault.startswith("axe ")]
            assert {fault.split()[1] for fault in found} <= swagger, found
            assert page.evaluate("document.documentElement.lang") == "en"
            assert page.locator("main .opblock").count() > 3
            dark = page.evaluate("document.documentElement.classList.contains('dark-mode')")
            assert dark == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_playground_asks_a_model_by_keyboard(browser: Any, tmp_path: Path, scheme: str) -> None:
    host = load(classifier(tmp_path))
    view = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme}
    try:
        with (
            serving(LocalModels({"mail": host})) as url,
            page_at(browser, f"{url}/playground#mail", **view) as page,
        ):
            page.locator("#f-text").fill("bana cola")
            page.locator("#ask").focus()
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            page.keyboard.press("Enter")
            page.locator(".bar").nth(2).wait_for()
            assert {"entailment", "neutral", "contradiction"} == set(
                page.locator(".bar span").all_inner_texts()
            )
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(re.findall(r"\d+", ground)[0]) < 64) == (scheme == "dark")
    finally:
        host.close()


def output_of(*command: str) -> str:
    """Run a program and return its stdout."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_playground_offers_examples_controls_and_code(browser: Any, tmp_path: Path) -> None:
    """The row of its run that is chosen is asked; the code for it gives the same answer in a shell."""
    model = classifier(tmp_path / "model")
    rows = [{"text": "it's bana", "label": "neutral"}, {"text": "cola", "label": "entailment"}]
    (tmp_path / "run.json").write_text(json.dumps({"name": "mail", "examples": rows}))
    host = load(model)
    try:
        with (
            serving(LocalModels({"mail": host})) as url,
            page_at(browser, f"{url}/playground#mail") as page,
        ):
            page.get_by_role("button", name="it's bana").click()
            page.locator(".bar").nth(2).wait_for()
            assert "Label in the data: neutral" in page.locator("#answer").inner_text()
            assert page.locator("#f-text_pair").count() == 0
            page.locator("#more summary").click()
            page.get_by_label("top_k").fill("1")
            page.get_by_label("function_to_apply").select_option("sigmoid")
            page.locator("#ask").click()
            page.locator(".bar").nth(1).wait_for(state="detached")
            shown = json.loads(page.locator("#raw").text_content())
            command = page.locator("#code").text_content()
            assert '"parameters":{"top_k":1,"function_to_apply":"sigmoid"}' in command
            assert json.loads(output_of("bash", "-c", command)) == shown
            page.get_by_label("Python").check()
            code = page.locator("#code").text_content()
            assert ast.literal_eval(output_of(sys.executable, "-c", code)) == shown
            page.get_by_label("JavaScript").check()
            code = page.locator("#code").text_content().replace("console.log(", "return (")
            assert page.evaluate(f"async () => {{ {code} }}") == shown
            assert accessibility_faults(page) == []
    finally:
        host.close()


def code_of(page: Any, language: str) -> str:
    """Return the code that the playground shows in a language."""
    page.get_by_label(language).check()
    return str(page.locator("#code").text_content())


def test_the_playground_asks_for_a_key_only_where_one_is_needed(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bearer, ring = with_keys(tmp_path, models=["mail"])
    host = load(classifier(tmp_path / "model"))
    try:
        with browser.new_context() as context:
            page = context.new_page()
            with serving(LocalModels({"mail": host})) as url:
                page.goto(f"{url}/playground")
                page.locator("#f-text").wait_for()
                assert not page.locator("#key").is_visible()
            with serving(LocalModels({"mail": host}), GatewayOptions(), ring) as url:
                page.goto(f"{url}/playground")
                page.locator("#key").fill(bearer.removeprefix("Bearer "))
                assert not page.locator("#ask").is_visible()
                page.keyboard.press("Enter")
                page.locator("#f-text").fill("bana")
                page.locator("#ask").click()
                page.locator(".bar").nth(2).wait_for()
                shown = json.loads(page.locator("#raw").text_content())
                monkeypatch.setenv("TRAINYARD_KEY", bearer.removeprefix("Bearer "))
                assert json.loads(output_of("bash", "-c", code_of(page, "curl"))) == shown
                answer = output_of(sys.executable, "-c", code_of(page, "Python"))
                assert ast.literal_eval(answer) == shown
                code = code_of(page, "JavaScript").replace("console.log(", "return (")
                code = code.replace('"Bearer KEY"', json.dumps(bearer))
                assert page.evaluate(f"async () => {{ {code} }}") == shown
            with serving(LocalModels({})) as url:
                page.goto(f"{url}/playground")
                page.get_by_text("No model is loaded yet").wait_for()
                assert not page.locator("#form").is_visible()
                assert accessibility_faults(page) == []
    finally:
        host.close()


class Numbers(Echo):
    """Models whose answer is the number of a regression."""

    async def describe(self, name: str) -> dict[str, Any]:
        return {"task": "text-classification", "example": {"inputs": name}}

    async def ask(self, name: str, body: bytes, seconds: float) -> Answer:
        del name, body, seconds
        return Answer(200, b'[[{"label": "LABEL_0", "score": 3.217}]]')


def test_the_playground_opens_with_any_hash_and_draws_no_bar_above_one(browser: Any) -> None:
    with serving(Numbers("50", "org/name")) as url:
        for typed, model in (("50%", "50"), ("org%2Fname", "org/name"), ("org/name", "org/name")):
            with page_at(browser, f"{url}/playground#{typed}") as page:
                page.locator("#f-text").wait_for(timeout=10_000)
                assert page.locator("#model").input_value() == model
        with page_at(browser, f"{url}/playground") as page:
            page.locator("#f-text").wait_for()
            page.locator("#model").select_option("org/name")
            assert page.evaluate("location.hash") == "#org%2Fname"
            page.locator("#ask").click()
            page.get_by_text("3.217", exact=True).wait_for()
            assert not page.locator(".bar i").is_visible()
