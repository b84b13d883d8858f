"""Each control of the page does what it says: against a server with the demo model."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from browser import (
    ask,
    body_of,
    chromium,
    clipboard,
    copied,
    last_answer,
    open_view,
    visit,
    wait_for_end,
)
from live import KEY, ROOT, LiveServer

DEMO = ROOT / "litevl" / "demo"
DOCUMENT = ROOT.parent / "shared" / "usage-document.md"
MASKED = f"{KEY[:4]}…{KEY[-2:]}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: LiveServer) -> Iterator[Page]:
    with visit(browser, server.address, key=KEY) as page:
        yield page


# The key -----------------------------------------------------------------------------------------


def test_the_key_leaves_the_address_bar_and_stays_in_the_tab(
    page: Page, server: LiveServer
) -> None:
    expect(page.locator("#model")).to_have_text("litevl-demo")
    assert page.url == f"{server.address}/"
    assert page.evaluate("Object.values(sessionStorage)") == [KEY]
    assert KEY not in page.evaluate("Object.values(localStorage).join() + document.cookie")
    assert KEY not in page.content()
    page.reload()
    expect(page.locator("#model")).to_have_text("litevl-demo")


def test_a_key_is_asked_for_and_a_wrong_one_again(browser: Browser, server: LiveServer) -> None:
    with visit(browser, server.address, refusals=(401,)) as page:
        expect(page.get_by_text("This server asks for its API key")).to_be_visible()
        expect(page.locator("#key-field")).to_be_focused()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("This key is not accepted")).to_be_visible()
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("litevl-demo")
        expect(page.locator("#key-form")).to_be_hidden()


# Use now -----------------------------------------------------------------------------------------


def test_address_model_and_key_are_shown_masked_and_copied_whole(
    page: Page, server: LiveServer
) -> None:
    open_view(page, "Use now")
    facts = page.locator("#facts .row")
    address = page.locator("#addresses .row").first
    expect(address).to_contain_text(server.base_url)
    assert copied(page, address.get_by_role("button", name="Copy")) == server.base_url
    assert copied(page, facts.nth(0).get_by_role("button", name="Copy")) == "litevl-demo"
    expect(facts.nth(1)).to_contain_text(MASKED)
    assert copied(page, facts.nth(1).get_by_role("button", name="Copy")) == KEY
    assert KEY not in page.locator("body").inner_text()
    page.get_by_role("button", name="Show the key").click()
    expect(facts.nth(1)).to_contain_text(KEY)
    expect(page.locator("#example code")).to_contain_text(KEY)
    page.get_by_role("button", name="Hide the key").click()
    assert KEY not in page.locator("body").inner_text()


def test_a_forgotten_key_is_gone(browser: Browser, server: LiveServer) -> None:
    with visit(browser, server.address, key=KEY, refusals=(401,)) as page:
        open_view(page, "Use now")
        page.get_by_role("button", name="Forget the key").click()
        expect(page.locator("#key-form")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_curl_runs_as_pasted(page: Page, tmp_path: Path) -> None:
    open_view(page, "Use now")
    line = copied(page, page.locator("#example").get_by_role("button", name="Copy"))
    assert len(line) < 100_000 and body_of(line)["model"] == "litevl-demo"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert "data: [DONE]" in done.stdout and '"3"' in done.stdout.replace(" 3", "3")


def test_javascript_runs_as_pasted(page: Page) -> None:
    open_view(page, "Use now")
    page.get_by_role("tab", name="JavaScript").click()
    code = copied(page, page.locator("#example").get_by_role("button", name="Copy"))
    hear = "const told = []; const console = {log: (line) => told.push(line)};"
    told: list[str] = page.evaluate(f"async () => {{ {hear} {code}; return told; }}")
    assert len(told) == 1 and "3" in told[0]


def test_python_is_the_documents_script_with_its_two_gaps_filled(
    page: Page, server: LiveServer
) -> None:
    open_view(page, "Use now")
    page.get_by_role("tab", name="Python").click()
    script = copied(page, page.locator("#example").get_by_role("button", name="Copy"))
    compile(script, "pasted.py", "exec")
    assert f'openai_api_key = "{KEY}"' in script
    assert f'openai_api_base = "{server.base_url}"' in script
    if DOCUMENT.exists():  # it lies beside some checkouts
        text = DOCUMENT.read_text("utf-8").split("```python\n")[1].split("```")[0]
        filled = text.replace("${ApiKey}", KEY).replace("${ServerUrl}", server.base_url)
        assert script == filled


@pytest.mark.parametrize("name", ["Chatbox", "Cherry Studio", "Open WebUI", "Dify"])
def test_the_fields_of_other_programs_are_filled_and_copied(
    page: Page, server: LiveServer, name: str
) -> None:
    open_view(page, "Use now")
    page.get_by_role("tab", name=name).click()
    rows = page.locator("#example .row:has(button)")
    copies = {copied(page, row.get_by_role("button")) for row in rows.all()}
    assert {KEY, "litevl-demo"} <= copies
    assert any(each.startswith(server.address) for each in copies)
    assert KEY not in page.locator("#example").inner_text()


def test_copying_works_where_the_clipboards_api_does_not_exist(
    browser: Browser, server: LiveServer
) -> None:
    """On http from another machine `navigator.clipboard` is undefined."""
    with visit(browser, server.address, key=KEY) as page:
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        open_view(page, "Use now")
        page.locator("#facts").get_by_role("button", name="Copy").first.click()
        expect(page.locator("#announcer")).to_have_text("Copied")
        open_view(page, "Playground")
        page.get_by_label("Your question").focus()
        page.keyboard.press("Control+V")
        expect(page.get_by_label("Your question")).to_have_value("litevl-demo")


# The playground ----------------------------------------------------------------------------------


def test_the_sample_picture_is_answered_and_drawn_over_with_what_was_seen(page: Page) -> None:
    page.get_by_role("button", name="Try the sample picture").click()
    wait_for_end(page)
    expect(last_answer(page)).to_contain_text("3")
    figure = page.locator("figure.seen.image")
    expect(figure).to_contain_text("Seen at 224 × 160 of 512 × 400")
    expect(figure).to_contain_text("7 × 5 cells, 35 tokens, scale 0.44")
    assert figure.evaluate("(node) => getComputedStyle(node.querySelector('.grid')).opacity") == "1"
    page.get_by_role("button", name="Hide what the model saw").click()
    assert figure.evaluate("(node) => getComputedStyle(node.querySelector('.grid')).opacity") == "0"
    stats = page.locator(".stats")
    for words in ("First token", "tokens/s", "61 % media", "complete"):
        expect(stats).to_contain_text(words)


def test_copy_as_curl_is_the_very_request(page: Page, tmp_path: Path) -> None:
    sent: list[str] = []
    page.on("request", lambda each: sent.append(each.post_data) if each.post_data else None)
    page.locator("#temperature").fill("0")
    page.get_by_label("System prompt").fill("It's a test, isn't it?")
    page.get_by_role("button", name="Try the sample picture").click()
    wait_for_end(page)
    line = copied(page, page.get_by_role("button", name="Copy as curl"))
    assert [line.count(sent[0].replace("'", r"'\''")), len(sent)] == [1, 1]
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert "data: [DONE]" in done.stdout
    body = body_of(line)
    assert body["messages"][0] == {"role": "system", "content": "It's a test, isn't it?"}
    assert body["temperature"] == 0 and "top_p" not in body


def test_a_clip_is_answered_and_its_seen_frames_are_shown(page: Page) -> None:
    page.get_by_role("button", name="Try the sample clip").click()
    wait_for_end(page)
    figure = page.locator("figure.seen.video")
    expect(figure).to_contain_text("4 frames, 1.6 a second, of a clip of 2.5 s")
    expect(figure.locator(".film li.drawn")).to_have_count(4)
    centres = figure.locator("canvas").evaluate_all(
        "(all) => all.map((each) => each.getContext('2d')"
        ".getImageData(0, 0, each.width, each.height).data.join())"
    )
    assert len(set(centres)) == 4  # the ball moves


def test_a_second_question_knows_the_first_and_a_new_chat_does_not(page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda each: sent.append(each.post_data) if each.post_data else None)
    page.get_by_role("button", name="Try the sample picture").click()
    wait_for_end(page)
    answer = last_answer(page).inner_text()
    ask(page, "What colour is the tree?")
    expect(page.locator(".turn")).to_have_count(2)
    wait_for_end(page)
    assert answer in sent[-1] and "data:image/jpeg" in sent[-1]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.get_by_text("Ask about a picture or a clip")).to_be_visible()
    ask(page, "Hello")
    wait_for_end(page)
    assert answer not in sent[-1] and "data:image" not in sent[-1]


def test_the_answers_text_is_copied(page: Page) -> None:
    ask(page, "How are you?")
    wait_for_end(page)
    button = page.locator(".reply").get_by_role("button", name="Copy", exact=True)
    assert copied(page, button) == clipboard(page) == last_answer(page).inner_text()
