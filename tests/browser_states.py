"""What the page shows of a server's states, of slow, thinking and failing answers, and of files: a
server with fakes behind it, whose every step a test decides."""

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from browser import PHONE, ask, chromium, last_answer, open_view, visit, wait_for_end
from fakes import CARD, KEY, Rig, running, say
from litevl.api.auth import Keys
from litevl.errors import ContextLengthError, InternalError, QueueFullError
from litevl.health import Health
from media_samples import png

MARKUP = "<img src=x onerror=document.title='owned'></p>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as rig:
        yield rig


@pytest.fixture
def page(browser: Browser, rig: Rig) -> Iterator[Page]:
    with visit(browser, rig.url, key=KEY) as page:
        yield page


def state(page: Page) -> Any:
    return expect(page.locator("#state-word"))


def last_request(rig: Rig) -> list[tuple[str, str]]:
    """Roles and texts of the last conversation that came."""
    messages = rig.preprocessor.seen[-1].messages
    return [
        (each.role, "".join(getattr(part, "text", "[media]") for part in each.parts))
        for each in messages
    ]


# States ------------------------------------------------------------------------------------------


def test_it_is_there_while_the_model_loads_and_becomes_ready_by_itself(browser: Browser) -> None:
    with running(is_loaded=False) as rig, visit(browser, rig.url, key=KEY) as page:
        state(page).to_have_text("loading")
        expect(page.locator("#notice")).to_contain_text("The model is loading: starting")
        rig.service.report("loading", 3, 4)
        expect(page.locator("#notice")).to_contain_text("reading the weights 75 %")
        assert page.locator("#notice progress").evaluate("(bar) => bar.value") == 0.75
        rig.attach()
        state(page).to_have_text("ready")
        expect(page.locator("#notice")).to_be_hidden()
        expect(page.locator("#temperature")).to_have_attribute("placeholder", "0.5")


def test_a_stranger_sees_the_state_and_nothing_else(browser: Browser) -> None:
    with (
        running(is_loaded=False) as rig,
        visit(browser, rig.url, refusals=(401, 503)) as page,
    ):
        expect(page.locator("#key-form")).to_be_visible()
        expect(page.locator("#notice")).to_contain_text("The model is loading")
        open_view(page, "Use now")
        expect(page.locator("#addresses")).to_contain_text("known after the key")


@pytest.mark.parametrize(
    ("health", "word", "advice"),
    [
        (Health.STALLED, "stalled", "restart litevl"),
        (Health.DEAD, "failed", "its log says why"),
        (Health.DRAINING, "draining", "takes no new requests"),
    ],
)
def test_trouble_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    rig: Rig,
    page: Page,
    health: Health,
    word: str,
    advice: str,
) -> None:
    monkeypatch.setattr("litevl.api.serving.RED_S", 600.0)  # it would leave before one could look
    state(page).to_have_text("ready")
    rig.engine.state = health
    state(page).to_have_text(word)
    expect(page.locator("#notice")).to_contain_text(advice)


def test_a_server_that_goes_is_told_and_waited_for(browser: Browser) -> None:
    with running() as rig, visit(browser, rig.url, key=KEY, refusals=(0,)) as page:
        state(page).to_have_text("ready")
        rig.server.should_exit = True
        state(page).to_have_text("unreachable")
        expect(page.locator("#notice")).to_contain_text("cannot be reached")


def test_without_keys_nothing_is_asked_for(browser: Browser) -> None:
    with (
        running(api_key=(), public_url="https://vl.example.org/") as rig,
        visit(browser, rig.url) as page,
    ):
        state(page).to_have_text("ready")
        expect(page.locator("#key-form")).to_be_hidden()
        open_view(page, "Use now")
        expect(page.locator("#facts")).to_contain_text("none needed")
        code = page.locator("#example code")
        expect(code).to_contain_text(f"curl -N {rig.url}/v1/chat/completions")
        assert "Authorization" not in code.inner_text()
        page.get_by_label("Public").check()
        expect(code).to_contain_text("curl -N https://vl.example.org/v1/chat/completions")


def test_a_page_under_a_strange_name_is_told_why_it_gets_no_answer(browser: Browser) -> None:
    """Another page could own that name: without a key the server answers as itself only."""
    with running(api_key=()) as rig:
        strange = rig.url.replace("127.0.0.1", "litevl.example")
        with visit(browser, strange, refusals=(403,)) as page:
            state(page).to_have_text("refused")
            expect(page.locator("#notice")).to_contain_text("give it a key")


def test_live_shows_load_and_the_last_requests_without_their_content(rig: Rig, page: Page) -> None:
    rig.engine.hold(1)
    ask(page, "a secret recipe")
    rig.engine.wait_until(lambda engine: engine.num_running == 1)
    open_view(page, "Live")
    tiles = page.locator("#tiles > div")
    expect(tiles.nth(1)).to_contain_text("Running1")
    expect(tiles.nth(3)).to_contain_text("13 %of 128 tokens")
    expect(page.get_by_text("No request yet")).to_be_visible()
    rig.engine.release()
    row = page.locator("#recent tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("200 stop")
    expect(tiles.nth(5)).to_contain_text("/")
    assert "recipe" not in page.locator("[data-view=live]").inner_text()
    rig.engine.refusal = QueueFullError("full")
    rig.chat()
    expect(row.first).to_contain_text("429 rate_limit_exceeded")


# Answers -----------------------------------------------------------------------------------------


def test_an_answer_is_shown_as_it_comes_and_stopped_at_once(rig: Rig, page: Page) -> None:
    rig.engine.hold(3)
    rig.engine.script = lambda sequence: say("One two three")
    ask(page, "Count")
    expect(last_answer(page)).to_have_text("One")
    page.get_by_role("button", name="Stop").click()
    rig.engine.wait_until(lambda engine: len(engine.aborted) == 1)
    expect(page.locator(".stats")).to_contain_text("stopped by you")
    rig.engine.release()
    ask(page, "Go on")
    wait_for_end(page)
    assert last_request(rig) == [("user", "Count"), ("assistant", "One"), ("user", "Go on")]


def test_thoughts_are_open_while_they_come_and_fold_for_the_answer(rig: Rig, page: Page) -> None:
    rig.preprocessor.is_thinking = True
    rig.engine.script = lambda sequence: say("Hm, sheep.</think>Three.")
    rig.engine.hold(9)
    ask(page, "How many?")
    thoughts = page.locator(".thinking")
    expect(thoughts.get_by_text("Thinking…")).to_be_visible()
    expect(thoughts.locator("p")).to_be_visible()
    rig.engine.release()
    wait_for_end(page)
    expect(thoughts.locator("summary")).to_contain_text("Thought for")
    expect(thoughts.locator("p")).to_be_hidden()
    expect(last_answer(page)).to_have_text("Three.")
    thoughts.locator("summary").click()
    expect(thoughts.get_by_text("Hm, sheep.")).to_be_visible()


def test_who_is_at_the_end_stays_there_and_who_reads_above_is_left_alone(
    browser: Browser, rig: Rig
) -> None:
    lines = "\n\n".join(str(number) for number in range(90))
    rig.engine.script = lambda sequence: say(lines)
    with visit(browser, rig.url, key=KEY, viewport=PHONE) as page:
        rig.engine.hold(60)
        ask(page, "Count")
        expect(last_answer(page).locator("p").nth(10)).to_be_in_viewport()
        page.evaluate("scrollTo(0, 0)")
        rig.engine.release()
        wait_for_end(page)
        assert page.evaluate("scrollY") == 0
        ask(page, "Again")
        wait_for_end(page)
        expect(page.locator(".stats").last).to_be_in_viewport()
        open_view(page, "Live")
        expect(page.locator("#recent tbody tr")).to_have_count(2)
        assert page.evaluate("scrollY") == 0


def test_a_cut_answer_says_so(rig: Rig, page: Page) -> None:
    page.get_by_label("Longest answer").fill("5")
    ask(page, "hi")
    wait_for_end(page)
    expect(page.locator(".stats")).to_contain_text("cut at the longest answer")
    expect(page.locator(".stats")).to_contain_text("Answer5 tokens")


def test_what_is_set_is_sent_and_what_is_not_is_the_models(rig: Rig, page: Page) -> None:
    expect(page.get_by_label("Top-k")).to_have_attribute("placeholder", "20")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("1.25")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Most pixels").fill("3136")
    ask(page, "hi")
    wait_for_end(page)
    assert last_request(rig) == [("system", "Be brief."), ("user", "hi")]
    params = rig.engine.added[-1].params
    assert (params.temperature, params.seed, params.top_k, params.top_p) == (1.25, 7, 20, 0.9)
    page.get_by_role("button", name="Back to the model's own").click()
    ask(page, "again")
    wait_for_end(page)
    assert rig.engine.added[-1].params.temperature == 0.5
    page.get_by_label("Temperature").fill("9")
    ask(page, "no")
    expect(page.get_by_label("Temperature")).to_be_focused()
    assert len(rig.engine.added) == 2


def test_refusals_say_what_to_do_and_can_be_tried_again(browser: Browser, rig: Rig) -> None:
    with visit(browser, rig.url, key=KEY, refusals=(400, 429)) as page:
        rig.engine.refusal = QueueFullError("The queue is full.")
        ask(page, "hi")
        failed = page.locator(".failed")
        expect(failed).to_contain_text("The server has its hands full. Try again in")
        expect(failed).to_contain_text("The server says: The queue is full.")
        rig.engine.refusal = ContextLengthError("900 tokens, 512 fit.", param="messages")
        failed.get_by_role("button", name="Try again").click()
        expect(failed).to_contain_text("Start a new chat, or lower “Most pixels”.")
        rig.engine.refusal = None
        failed.get_by_role("button", name="Try again").click()
        wait_for_end(page)
        expect(failed).to_have_count(0)
        expect(last_answer(page)).to_contain_text("Two circles")


def test_what_fails_on_the_way_keeps_what_came_and_is_not_part_of_the_talk(
    rig: Rig, page: Page
) -> None:
    rig.engine.hold(3)
    ask(page, "hi")
    expect(last_answer(page)).to_have_text("Two")
    rig.engine.failure = InternalError("It broke.")
    rig.engine.release()
    expect(page.locator(".failed")).to_contain_text("It broke.")
    expect(last_answer(page)).to_have_text("Two")
    rig.engine.failure = None
    ask(page, "and now?")
    wait_for_end(page)
    assert last_request(rig) == [("user", "and now?")]


def test_a_key_that_is_no_longer_good_is_asked_for_again(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as rig, visit(browser, rig.url, key=KEY, refusals=(401,)) as page:
        state(page).to_have_text("ready")
        with monkeypatch.context() as patched:
            patched.setattr(Keys, "match", lambda self, headers: None)
            ask(page, "hi")
            expect(page.locator(".failed")).to_contain_text("The key is not accepted.")
            expect(page.locator("#key-field")).to_be_focused()
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        state(page).to_have_text("ready")
        page.get_by_role("button", name="Try again").click()
        wait_for_end(page)
        expect(last_answer(page)).to_contain_text("Two circles")


# What others wrote is text -----------------------------------------------------------------------


def test_markup_in_answers_thoughts_and_errors_stays_text(browser: Browser, rig: Rig) -> None:
    with visit(browser, rig.url, key=KEY, refusals=(429,)) as page:
        rig.preprocessor.is_thinking = True
        code = f"```html\n{MARKUP}\n```"
        text = f"{MARKUP}</think>{MARKUP}\n\n{code}\n\n`{MARKUP}` **{MARKUP}**"
        rig.engine.script = lambda sequence: say(text)
        ask(page, MARKUP)
        wait_for_end(page)
        assert last_answer(page).inner_text().count(MARKUP) == 4
        assert page.locator("figure.code code").inner_text() == MARKUP
        rig.engine.refusal = QueueFullError(MARKUP)
        ask(page, "hi")
        expect(page.locator(".failed")).to_contain_text(MARKUP)
        assert page.locator("main script, main img[src=x]").count() == 0
        assert "owned" not in page.title()


def test_markup_in_names_of_models_and_files_stays_text(browser: Browser) -> None:
    name = MARKUP.replace("/", "")
    with running(is_loaded=False) as rig, visit(browser, rig.url, key=KEY) as page:
        rig.attach(replace(CARD, names=(name,)))
        expect(page.locator("#model")).to_have_text(name)
        drop(page, "Files", {"name": name + ".png", "type": "image/png"}, "#question")
        expect(page.locator("#tray")).to_contain_text(name)
        open_view(page, "Use now")
        expect(page.locator("#facts")).to_contain_text(name)
        assert page.locator("main script, main img[src=x]").count() == 0


# Files -------------------------------------------------------------------------------------------

PNG = base64.b64encode(png(8, 8)).decode()


def drop(page: Page, kind: str, file: dict[str, str], target: str = "body") -> None:
    """A file by drag and drop (`Files`) or from the clipboard (`paste`)."""
    page.locator(target).evaluate(
        """(node, [kind, {name, type, size}, png]) => {
            const bytes = Uint8Array.from(atob(png), (each) => each.charCodeAt(0));
            const held = new DataTransfer();
            const content = size ? [new Uint8Array(+size)] : [bytes];
            held.items.add(new File(content, name, {type}));
            if (kind === "paste") {
                const told = {clipboardData: held, bubbles: true};
                node.dispatchEvent(new ClipboardEvent("paste", told));
                return;
            }
            for (const step of ["dragenter", "dragover", "drop"])
                node.dispatchEvent(new DragEvent(step, {dataTransfer: held, bubbles: true}));
        }""",
        [kind, file, PNG],
    )


def test_files_are_dropped_pasted_and_picked_shown_removed_and_sent(rig: Rig, page: Page) -> None:
    tray = page.locator("#tray li")
    drop(page, "Files", {"name": "dropped.png", "type": "image/png"})
    drop(page, "paste", {"name": "pasted.png", "type": "image/png"})
    page.locator("#files").set_input_files(
        {"name": "clip.mkv", "mimeType": "", "buffer": b"no clip at all"}
    )
    expect(tray).to_have_count(3)
    assert tray.nth(0).locator("img").evaluate("(each) => each.decode().then(() => true)")
    page.get_by_role("button", name="Remove dropped.png").click()
    expect(tray).to_have_count(2)
    expect(page.get_by_label("Your question")).to_be_focused()
    ask(page, "What is this?")
    wait_for_end(page)
    assert last_request(rig) == [("user", "[media][media]What is this?")]
    assert [ref.declared for ref in rig.media.refs] == ["image", "video"]
    assert rig.media.refs[0].url == f"data:image/png;base64,{PNG}"
    expect(page.locator("figure.seen.image")).to_contain_text("2 × 2 cells, 4 tokens")


def test_what_is_too_large_is_said_before_it_is_sent(page: Page) -> None:
    drop(page, "Files", {"name": "big.png", "type": "image/png", "size": str(21 * 2**20)})
    expect(page.get_by_role("alert")).to_contain_text("big.png has 21.0 MiB.")
    page.get_by_role("button", name="Remove big.png").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    drop(page, "Files", {"name": "letter.pdf", "type": "application/pdf"})
    expect(page.get_by_role("alert")).to_contain_text("letter.pdf is no picture or clip")
    expect(page.locator("#tray li")).to_have_count(0)


# The keyboard ------------------------------------------------------------------------------------


def test_everything_is_reached_by_keyboard(rig: Rig, page: Page) -> None:
    state(page).to_have_text("ready")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    seen = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.hash"))
    assert {"#playground", "#use", "#live", "language", "theme", "question", "files"} <= seen
    assert {"sample-picture", "sample-clip", "system", "temperature", "reset-knobs"} <= seen
    page.get_by_label("Your question").focus()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    wait_for_end(page)
    assert last_request(rig) == [("user", "one\ntwo")]


def test_the_enter_of_an_input_method_sends_nothing(rig: Rig, page: Page) -> None:
    field = page.get_by_label("Your question")
    field.fill("ni")
    field.evaluate(
        "(node) => node.dispatchEvent(new KeyboardEvent('keydown',"
        " {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
    )
    expect(field).to_have_value("ni")
    assert not rig.engine.added


def test_tabs_follow_the_arrow_keys(page: Page) -> None:
    open_view(page, "Use now")
    page.get_by_role("tab", name="curl").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="Dify")).to_be_focused()
    expect(page.get_by_role("tab", name="Dify")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="curl")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("tabpanel")).to_be_focused()


def test_who_listens_hears_the_end_of_an_answer_once(page: Page) -> None:
    page.evaluate(
        "window.heard = []; new MutationObserver(() => heard.push(announcer.textContent))"
        ".observe(announcer, {childList: true})"
    )
    ask(page, "hi")
    wait_for_end(page)
    heard = json.loads(page.evaluate("JSON.stringify(heard)"))
    assert heard[0] == "Answering…" and heard[-1].startswith("Two circles") and len(heard) == 2
