"""What holds of every view, in both languages, light and dark, wide and narrow: nothing overflows,
every text can be read, every control has a name, every word is translated."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from browser import DESKTOP, PHONE, ask, chromium, visit, wait_for_end
from fakes import KEY, Rig, running, say

ANSWER = (
    "A **picture** with `code`:\n\n```python\n" + "x = 1  # " + "long " * 30 + "\n```\n" + "长" * 60
)

# Elements that show text of their own, with the contrast of that text against what lies behind it.
UNREADABLE = """() => {
  const channels = (color) => {
    const parts = color.match(/[\\d.]+/g).map(Number);
    return parts.length < 4 ? [...parts, 1] : parts;
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => c * a + below[i] * (1 - a));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) =>
      c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    if (!node) return [255, 255, 255];
    const color = channels(getComputedStyle(node).backgroundColor);
    return color[3] === 1 ? color.slice(0, 3) : over(color, ground(node.parentElement));
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim());
    const shown = own || node.placeholder || node.value;
    if (!shown || !node.checkVisibility({visibilityProperty: true})) continue;
    if (node.closest(".unseen, .skip, svg, :disabled")) continue;
    const behind = ground(node);
    const style = getComputedStyle(node, node.placeholder && !node.value ? "::placeholder" : null);
    const [one, other] = [luminance(over(channels(style.color), behind)), luminance(behind)];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const size = parseFloat(style.fontSize);
    if (contrast < 4.5) found.push([node.outerHTML.slice(0, 90), contrast.toFixed(2)]);
    if (size < 12) found.push([node.outerHTML.slice(0, 90), `${size}px`]);
  }
  return found;
}"""
UNNAMED = """() => {
  const named = (node) => node.ariaLabel || node.textContent.trim() || node.alt || node.title
    || [...(node.labels ?? [])].some((each) => each.textContent.trim());
  const controls = document.querySelectorAll(
    "button, a, input, textarea, summary, video[controls], nav, meter, [role], [tabindex='0']");
  const missing = [...controls].filter((each) => each.checkVisibility() && !named(each));
  const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
  const twice = ids.filter((id, index) => ids.indexOf(id) !== index);
  const pointed = [...document.querySelectorAll("[aria-controls], [aria-labelledby], label[for]")];
  const lost = pointed.filter((each) => !ids.includes(
    each.getAttribute("aria-controls") ?? each.getAttribute("aria-labelledby") ?? each.htmlFor));
  const images = [...document.images].filter((each) => !each.hasAttribute("alt"));
  return [...missing, ...lost, ...images].map((each) => each.outerHTML.slice(0, 120)).concat(twice);
}"""
TOO_WIDE = """() => [...document.querySelectorAll("body *")].filter((node) => {
  if (!node.checkVisibility()) return false;
  if (node.closest("pre, .film, .tabs, .unseen, .skip, svg")) return false;
  return node.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map((node) => node.outerHTML.slice(0, 90))"""
UNTRANSLATED = """() => [...document.querySelectorAll("[data-t]")].filter((node) =>
  node.dataset.t && node.checkVisibility() && node.textContent === node.dataset.t
  && /[a-z][A-Z.]/.test(node.dataset.t)).map((node) => node.dataset.t)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running(public_url="https://" + "a-long-name." * 8 + "example.org") as rig:
        rig.preprocessor.is_thinking = True
        rig.engine.script = lambda sequence: say(f"Hm.</think>{ANSWER}")
        yield rig


def check(page: Page) -> None:
    """Whatever is shown now."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(UNREADABLE) == []
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(UNTRANSLATED) == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_every_view_can_be_read_and_used(
    browser: Browser, rig: Rig, language: str, theme: str, size: dict[str, int]
) -> None:
    rig.engine.refusal = None
    options = {"locale": language, "color_scheme": theme, "viewport": size}
    with visit(browser, rig.url, key=KEY, refusals=(404,), **options) as page:
        expect(page.locator("#model")).to_have_text("tiny")
        assert page.evaluate("document.documentElement.lang") == language.replace("en-US", "en")
        check(page)
        page.locator("#sample-clip").click()
        wait_for_end(page)
        expect(page.locator("figure.seen figcaption")).not_to_be_empty()
        check(page)
        page.evaluate("location.hash = '#use'")
        for tab in page.get_by_role("tab").all():
            tab.click()
            check(page)
        page.evaluate("location.hash = '#live'")
        expect(page.locator("#recent tbody tr").first).to_be_visible()
        check(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_trouble_can_be_read_too(browser: Browser, theme: str) -> None:
    with (
        running(is_loaded=False) as rig,
        visit(browser, rig.url, refusals=(401, 503), color_scheme=theme, viewport=PHONE) as page,
    ):
        expect(page.locator("#key-form")).to_be_visible()
        check(page)
        page.locator("#key-field").fill(KEY)
        page.keyboard.press("Enter")
        rig.service.report("loading", 3, 4)
        expect(page.locator("#notice progress")).to_be_visible()
        page.evaluate("location.hash = '#playground'")
        ask(page, "hi")
        wait_for_end(page)
        expect(page.locator(".failed")).to_be_visible()
        check(page)


def test_language_and_theme_are_switched_and_remembered(browser: Browser, rig: Rig) -> None:
    with visit(browser, rig.url, key=KEY, color_scheme="light") as page:
        expect(page.get_by_role("link", name="Playground")).to_be_visible()
        page.get_by_role("button", name="中文").click()
        expect(page.get_by_role("link", name="试用")).to_be_visible()
        page.get_by_role("button", name="切换浅色与深色").click()
        page.reload()
        expect(page.get_by_role("link", name="试用")).to_be_visible()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.get_by_role("button", name="English").click()
        expect(page.get_by_role("link", name="Playground")).to_be_visible()


def test_who_wants_no_motion_gets_none(browser: Browser) -> None:
    for motion, moves in (("reduce", False), ("no-preference", True)):
        with (
            running(is_loaded=False) as rig,
            visit(browser, rig.url, key=KEY, reduced_motion=motion) as page,
        ):
            expect(page.locator("#state-word")).to_have_text("loading")
            assert page.evaluate("document.getAnimations().length > 0") == moves
