"""The command line: where settings come from, and what an operator is told when a start fails."""

import json
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from litevl.banner import load_keys, mask
from litevl.cli import main, read_config
from litevl.config import Config
from litevl.errors import ConfigError
from live import command, environment, serve


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LITEVL_PORT", "LITEVL_API_KEY", "VLLM_API_KEY", "LITEVL_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def read(*arguments: str) -> Config:
    return read_config(["serve", *arguments])


def failure(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*arguments)
    return str(caught.value)


def test_every_type_of_flag_is_read() -> None:
    config = read(
        "some/model",
        *("--port", "9000", "--fps", "1.5", "--served-model-name", "a,b", "--dtype", "float16"),
        *("--no-api-key", "--limit-mm-per-prompt", "image=3", "--max-model-len", "512"),
    )
    assert (config.model, config.port, config.fps) == ("some/model", 9000, 1.5)
    assert (config.served_model_name, config.dtype) == (("a", "b"), "float16")
    assert config.limit_mm_per_prompt == {"image": 3, "video": 2}
    assert (config.no_api_key, config.max_model_len) == (True, 512)


def test_command_line_over_environment_over_file_over_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "litevl.toml"
    file.write_text('port = 1\nmax-num-seqs = 2\nhost = "::1"\nserved_model_name = ["x", "y"]\n')
    monkeypatch.setenv("LITEVL_PORT", "3")
    monkeypatch.setenv("LITEVL_MAX_NUM_SEQS", "4")
    config = read("--config", str(file), "--port", "5")
    assert (config.port, config.max_num_seqs, config.host) == (5, 4, "::1")
    assert (config.served_model_name, config.seed) == (("x", "y"), 0)


def test_vllms_key_variable_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "theirs")
    assert read().api_key == ("theirs",)
    monkeypatch.setenv("LITEVL_API_KEY", "ours")
    assert read().api_key == ("ours",)


def test_an_unknown_flag_is_answered_with_the_nearest() -> None:
    assert "did you mean --max-model-len?" in failure("--max-modle-len", "4")


def test_an_unknown_name_in_the_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "litevl.toml"
    file.write_text("prot = 8000\n")
    assert "did you mean port?" in failure("--config", str(file))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "many"], "--port takes a whole number, got 'many'"),
        (["--port", "70000"], "--port must lie in 0..65535"),
        (["--fps", "nan"], "--fps must be positive"),
        (["--dtype", "int4"], "--dtype takes auto|float32|bfloat16|float16"),
        (["--limit-mm-per-prompt", "sound=1"], "knows image and video"),
        (["--limit-mm-per-prompt", "image"], "--limit-mm-per-prompt takes image=N,video=N"),
        (["--media-networks", "10.0.0.1/8"], "--media-networks takes networks"),
        (["--max-num-seqs", "0"], "--max-num-seqs must be at least 1"),
        (["--gpu-memory-utilization", "1.5"], "must lie in (0, 1]"),
        (["--min-pixels", "9", "--max-pixels", "8"], "more than --max-pixels"),
    ],
)
def test_an_impossible_value_is_named(arguments: list[str], words: str) -> None:
    assert words in failure(*arguments)


def test_a_public_address_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="no key is set"):
        load_keys(Config(host="0.0.0.0"))
    assert load_keys(Config(host="0.0.0.0", no_api_key=True)).values == ()
    assert load_keys(Config(host="127.0.0.1")).values == ()


def test_a_missing_key_file_is_made_for_its_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "state" / "key"
    keys = load_keys(Config(host="0.0.0.0", api_key_file=str(file)))
    assert keys.values == tuple(file.read_text().split()) and len(keys.values[0]) >= 32
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_keys(Config(api_key_file=str(file))) == keys
    assert keys.values[0] not in mask(keys.values[0])


def test_help_is_instant_and_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from litevl.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, "serve" in done.stdout) == (0, True)


def test_a_taken_port_is_one_line_and_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another --port" in capsys.readouterr().err


def test_a_certificate_makes_it_https_and_a_wrong_one_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(__file__).parent / "tls"  # self-signed, for 127.0.0.1
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    with serve("--ssl-certfile", cert, "--ssl-keyfile", key, folder=tmp_path) as server:
        context = ssl.create_default_context(cafile=cert)
        assert httpx.get(f"{server.address}/health", verify=context).status_code == 200
        asked = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 5}
        url = f"{server.base_url}/chat/completions"
        answer = httpx.post(url, json=asked, verify=context, timeout=60)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert f"curl https://127.0.0.1:{server.port}" in server.banner
    assert main(["serve", "--port", "0", "--ssl-certfile", key, "--ssl-keyfile", key]) == 1
    assert "--ssl-certfile" in capsys.readouterr().err
    assert main(["serve", "--port", "0", "--ssl-certfile", cert]) == 1
    assert "go together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        (None, "holds no config.json"),
    ],
)
def test_a_model_that_cannot_be_served_ends_the_start_with_a_reason(
    tmp_path: Path, config: dict[str, object] | None, words: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        command("--port", "0", str(folder)),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
