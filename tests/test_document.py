"""The service's usage document works as written: by real curl and the real `openai` package.

First calls of our own in the document's shape, then the document's own text where it lies beside
this checkout, changed only in address, key, model, base64 and the two media addresses.
"""

import base64
import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image

from live import KEY, ROOT, LiveServer, environment

DEMO = ROOT / "litevl" / "demo"
DOCUMENT = ROOT.parent / "shared" / "usage-document.md"
MODEL = "litevl-demo"
QUESTIONS = ("使用中文回答，图中方框处应该是数字多少?", "请描述下视频内容")


@pytest.fixture(scope="module")
def client(server: LiveServer) -> OpenAI:
    return OpenAI(api_key=KEY, base_url=server.base_url, max_retries=0)


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The sample picture as PNG: the document sends one and calls it `image/jpeg`."""
    file = tmp_path_factory.mktemp("media") / "demo.png"
    Image.open(DEMO / "sample.jpg").resize((160, 160)).quantize(64).save(file, optimize=True)
    return file.read_bytes()


@pytest.fixture(scope="module")
def media_url(png: bytes) -> Iterator[str]:
    """A web server with the document's two media: a picture and a clip."""
    files = {"/demo.png": png, "/video_demo.mp4": (DEMO / "sample.mp4").read_bytes()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(files[self.path])))
            self.end_headers()
            self.wfile.write(files[self.path])

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}"
        web.shutdown()
        thread.join()


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def run(script: str, folder: Path, **changes: str) -> str:
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment(folder, **changes),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_curl_call_in_the_documents_shape_is_answered(
    server: LiveServer, png: bytes, tmp_path: Path
) -> None:
    body = f"""{{
        "model": "{MODEL}",
        "messages": [
        {{"role": "system", "content": "You are a helpful assistant."}},
        {{"role": "user", "content": [
            {{"type": "image_url",
              "image_url": {{"url": f"data:image/jpeg;base64,{as_base64(png)}"}},}},
            {{"type": "text", "text": "How many sheep are there in the picture?"}}
        ]}}
        ]
    }}"""
    answer = run(
        f"curl -sS -i -X Post {server.base_url}/chat/completions -d @- "
        f"-H 'Content-Type: application/json' -H 'Authorization: {KEY}' <<'BODY'\n{body}\nBODY",
        tmp_path,
    )
    head, _, text = answer.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200") and "x-litevl-json-repaired:" in head.lower()
    reply = json.loads(text)
    assert reply["choices"][0]["message"]["content"]
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == 36


def printed(client: OpenAI, part: Any, question: str) -> str:
    """What the document's loop prints."""
    stream: Any = client.chat.completions.create(
        messages=[{"role": "user", "content": [{"type": "text", "text": question}, part]}],
        model=client.models.list().data[0].id,
        max_completion_tokens=64,
        stream=True,
    )
    return "".join(str(chunk.choices[0].delta.content) for chunk in stream)


def test_the_sdk_loop_prints_an_answer_about_a_picture_and_no_none(
    client: OpenAI, png: bytes
) -> None:
    url = f"data:image/jpeg;base64,{as_base64(png)}"
    text = printed(client, {"type": "image_url", "image_url": {"url": url}}, "图中有几只羊？")
    assert text and "None" not in text


def test_the_sdk_loop_prints_an_answer_about_a_clip_and_no_none(client: OpenAI) -> None:
    url = f"data:video/mp4;base64,{as_base64((DEMO / 'sample.mp4').read_bytes())}"
    text = printed(client, {"type": "video_url", "video_url": {"url": url}}, "请描述下视频内容")
    assert text and "None" not in text


def test_a_picture_by_url_equals_the_same_bytes_inline(
    client: OpenAI, png: bytes, media_url: str
) -> None:
    question = "Describe the picture."
    answers = {
        printed(client, {"type": "image_url", "image_url": {"url": url}}, question)
        for url in (f"{media_url}/demo.png", f"data:image/png;base64,{as_base64(png)}")
    }
    assert len(answers) == 1


def test_streamed_equals_whole(client: OpenAI, png: bytes) -> None:
    url = f"data:image/png;base64,{as_base64(png)}"
    part: Any = {"type": "image_url", "image_url": {"url": url}}
    whole = client.chat.completions.create(
        messages=[{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}],
        model=MODEL,
        max_completion_tokens=64,
    )
    assert printed(client, part, "What is it?") == whole.choices[0].message.content


def test_sixteen_streams_at_once_equal_the_same_requests_alone(client: OpenAI, png: bytes) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{as_base64(png)}"}}
    clip_url = f"data:video/mp4;base64,{as_base64((DEMO / 'sample.mp4').read_bytes())}"
    clip = {"type": "video_url", "video_url": {"url": clip_url}}
    words = {"type": "text", "text": "Hello!"}
    questions = [
        "How many sheep?",
        "What colour is it?",
        "请描述这张图片",
        "请描述下视频内容",
        "Hi",
    ]
    cases: list[tuple[Any, str]] = [
        ([picture, clip, words][i % 3], f"{questions[i % 5]} {i}") for i in range(16)
    ]
    alone = [printed(client, *case) for case in cases]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda case: printed(client, *case), cases))
    assert together == alone


def test_the_banners_curl_line_answers_about_the_sample_picture(
    server: LiveServer, tmp_path: Path
) -> None:
    line = server.banner[server.banner.index("curl ") :]
    reply = json.loads(run(f"{line.strip()} -sS", tmp_path, API_KEY=KEY))
    assert reply["choices"][0]["message"]["content"]


def test_the_banner_shows_no_key(server: LiveServer) -> None:
    assert KEY not in server.banner and "key" in server.banner


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="the usage document is not beside this checkout")
class TestTheDocumentItself:
    """The text of the document, changed only in address, key, model, base64 and media."""

    def block(self, language: str) -> str:
        found = re.search(rf"```{language}\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
        assert found
        return found[1]

    def test_its_curl_call_is_answered(
        self, server: LiveServer, png: bytes, tmp_path: Path
    ) -> None:
        script = self.block("shell")
        for name, value in {
            "${ServerIP}:8000": f"127.0.0.1:{server.port}",
            "${ApiKey}": KEY,
            "${ModelName}": MODEL,
            "<图片的 base64 编码格式>": as_base64(png),
        }.items():
            assert name in script
            script = script.replace(name, value)
        assert "-X Post" in script and 'f"data:' in script
        reply = json.loads(run(script, tmp_path))
        assert reply["choices"][0]["message"]["content"]

    def test_its_script_prints_two_answers_and_no_none(
        self, client: OpenAI, server: LiveServer, png: bytes, media_url: str, tmp_path: Path
    ) -> None:
        script = self.block("python")
        script = script.replace("${ApiKey}", KEY).replace("${ServerUrl}", server.base_url)
        script, changed = re.subn(
            r'"https://[^"]*/(demo\.png|video_demo\.mp4)"', rf'"{media_url}/\1"', script
        )
        assert changed == 2
        file = tmp_path / "document.py"
        file.write_text(script)
        output = run(f"{sys.executable} {file}", tmp_path)
        picture = {"url": f"data:image/jpeg;base64,{as_base64(png)}"}
        clip = {"url": f"data:video/mp4;base64,{as_base64((DEMO / 'sample.mp4').read_bytes())}"}
        answers = [
            printed(client, {"type": "image_url", "image_url": picture}, QUESTIONS[0]),
            printed(client, {"type": "video_url", "video_url": clip}, QUESTIONS[1]),
        ]
        assert all(answers) and "None" not in output
        assert output == "".join(answers)
