"""The command line: where settings come from, and what an operator is told when a start fails."""

import json
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

import litevl.serve
from fakes import CARD
from litevl.banner import banner, load_keys, mask
from litevl.cli import _run, main
from litevl.config import Config, flag, grouped
from litevl.errors import ConfigError
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import MediaItem
from live import LiveServer, environment, serve
from tiny_models import FAMILIES, Family, make_checkpoint


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LITEVL_PORT", "LITEVL_API_KEY", "VLLM_API_KEY", "LITEVL_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def read(*arguments: str) -> Config:
    """The settings that `litevl serve ARGUMENTS` would serve with."""
    seen: list[Config] = []

    def note(config: Config, load: object) -> int:
        seen.append(config)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litevl.serve, "serve", note)
        _run(["serve", *arguments])
    return seen[0]


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


@pytest.mark.parametrize(
    "arguments",
    [["--port", "x"], ["--port", "70000"], ["--config", "/gone"], ["--public-url", "https://"]],
)
def test_a_setting_that_cannot_be_read_is_one_line_and_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"litevl: {arguments[0]} ") and said.count("\n") == 1


def test_a_switch_in_the_environment_is_true_or_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITEVL_NO_API_KEY", "maybe")
    assert "--no-api-key takes true or false, got 'maybe'" in failure()


def test_a_public_address_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="no key is set"):
        load_keys(Config(host="0.0.0.0"))
    assert load_keys(Config(host="0.0.0.0", no_api_key=True)).api_key == ()
    assert load_keys(Config(host="127.0.0.1")).api_key == ()
    with pytest.raises(ConfigError, match=r"--public-url https://a\.b is .* no key is set"):
        load_keys(Config(public_url="https://a.b"))
    assert load_keys(Config(public_url="https://a.b", no_api_key=True)).api_key == ()


def test_a_missing_key_file_is_made_for_its_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "state" / "key"
    keys = load_keys(Config(host="0.0.0.0", api_key_file=str(file))).api_key
    assert keys == tuple(file.read_text().split()) and len(keys[0]) >= 32
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_keys(Config(api_key_file=str(file))).api_key == keys
    assert keys[0] not in mask(keys[0])


def test_a_made_key_is_not_written_through_a_link(tmp_path: Path) -> None:
    file, theirs = tmp_path / "key", tmp_path / "theirs"
    file.symlink_to(theirs)
    load_keys(Config(api_key_file=str(file)))
    assert not theirs.exists() and not file.is_symlink()


@pytest.mark.parametrize("text", ["\nsk-one\nsk-two\n", " \r\n\t sk-one \r\nsk-two", "sk-one"])
def test_the_line_to_paste_sends_the_first_key_of_any_file_that_is_read(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "the lab's key"
    file.write_text(text)
    config = load_keys(Config(api_key_file=str(file)))
    assert config.api_key[0] == "sk-one"
    line = next(each for each in banner(config, 80, CARD, {}).splitlines() if "-H" in each)
    script = "printf %s " + line.strip(" \\")
    printed = subprocess.check_output(["sh", "-c", script], text=True)
    assert printed == "-HAuthorization: sk-one"


@pytest.mark.parametrize(
    "note",
    [
        "sk-of-the-lab  # Bob's laptop",
        "# the lab's",
        "#lab",
        "sk-1 sk-2",
        "sk-1,sk-2",
        "sk-1\x0bsk-2",
        "sk-\x07",
    ],
)
def test_a_note_in_a_key_file_is_refused_and_no_word_of_it_is_a_key(
    tmp_path: Path, note: str
) -> None:
    file = tmp_path / "key"
    file.write_text(f"\r\n sk-one \r\nsk-two\n{note}\n")
    with pytest.raises(ConfigError, match="one a line, no notes"):
        load_keys(Config(api_key_file=str(file)))
    file.write_text(file.read_text().replace(note, ""))
    assert load_keys(Config(api_key_file=str(file))).api_key == ("sk-one", "sk-two")


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["check", "--help"], []])
def test_help_is_instant_since_it_imports_nothing_heavy(words: list[str]) -> None:
    heavy = ("torch", "transformers", "numpy", "starlette", "uvicorn", "huggingface_hub")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({heavy}))\n"
        f"from litevl.cli import main; sys.exit(main({words}))"
    )
    narrow = environment(Path()) | {"COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=narrow)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: litevl" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_help_tells_every_flag_under_its_title(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    told = capsys.readouterr().out
    for title, settings in grouped().items():
        assert f"\n{title}:\n" in told
        assert [each.name for each in settings if f" {flag(each.name)} " not in told] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["srve"], "unknown command srve; did you mean serve?"),
        (["launch"], "unknown command launch; there are serve, ask, info, check"),
        (["serve", "--prot", "1"], "unknown argument --prot; did you mean --port?"),
        (["check", "--port", "1"], "unknown argument --port"),
        (["serve", "--port"], "argument --port: expected one argument"),
        (["serve", "a", "b"], "unknown argument b"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line_and_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("litevl: ") and error.count("\n") == 1


def test_a_taken_port_is_one_line_and_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another --port" in capsys.readouterr().err


def test_an_address_of_another_machine_is_told_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "192.0.2.1", "--no-api-key"]) == 1
    assert "must be an address of this machine" in capsys.readouterr().err


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
    assert main(["serve", "--port", "0", "--ssl-certfile", cert]) == 2
    assert "go together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "litevl runs Qwen2-VL"),
        (None, "holds no config.json"),
        ("{", "cannot be read"),
        ({"model_type": "qwen2_vl", "text_config": {"num_hidden_layers": "many"}}, "is no good"),
    ],
)
def test_a_model_that_cannot_be_served_ends_the_start_with_a_reason(
    tmp_path: Path,
    config: dict[str, object] | str | None,
    words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if config:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
    assert main(["serve", "--port", "0", str(folder)]) == 1
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 3 and words in said[2]  # after the lines that it listens and starts


def test_a_good_start_says_nothing_but_phases_and_the_banner(server: LiveServer) -> None:
    lines = server.banner.splitlines()
    assert [line for line in lines if line and not line.startswith(("litevl: ", "  "))] == []
    phases = [line for line in lines if line.startswith("litevl: ")]
    assert [line.split()[1] for line in phases] == ["listening", "starting", "loading", "warming"]


# About a model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def giant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a model of 74 billion parameters, without its weights."""
    folder = make_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("giant") / "Giant-72B")
    (folder / "model.safetensors").write_bytes(b"")
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["layer_types"]
    config["text_config"] |= {
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "max_position_embeddings": 128000,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    }
    config["vision_config"] |= {"out_hidden_size": 8192}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_info_tells_what_a_model_needs_without_its_weights(
    giant: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(giant), "--device", "cpu"]) == 0
    told = dict(line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines()[3:-1])
    rows = {name: text.strip() for name, text in told.items()}
    assert rows["family"] == "Qwen2.5-VL (qwen2_5_vl)"
    assert rows["parameters"].startswith("72.7")  # Qwen2.5-72B has 72.7 billion
    assert rows["KV cache"].startswith("312.5 MiB for 1,000 tokens")  # 2 x 80 x 8 x 128 x 2 bytes
    assert "too little memory" in rows["this machine"]
    assert rows["80 GB card"] == "too small"
    assert rows["pictures"] == "28 x 28 pixels a token, 4 to 16,384 tokens each"
    assert rows["tools"] == "JSON in <tool_call>, spelled out by litevl"
    assert rows["sampling"].startswith("temperature 0.7, top_p 0.8, top_k 20")


def test_too_little_memory_is_told_with_numbers_before_weights_are_read(
    giant: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(giant), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "the weights need 27" in error and " GiB free" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_check_holds_litevl_against_transformers(
    family: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(family, tmp_path / family)
    assert main(["check", str(folder), "--device", "cpu"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines() if "equal" in line]
    names = ["text", "picture", "clip", "picture and clip", "all at once", "from the caches"]
    assert [line[1] for line in lines] == names


def test_check_finds_a_model_that_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Planted: the features of a picture come out in the wrong order."""
    encode = QwenVL.encode

    def wrong(self: QwenVL, items: list[MediaItem]) -> list[torch.Tensor]:
        return [features.flip(0) for features in encode(self, items)]

    monkeypatch.setattr(QwenVL, "encode", wrong)
    folder = make_checkpoint("qwen2_vl", tmp_path / "model")
    assert main(["check", str(folder), "--device", "cpu"]) == 1
    told = capsys.readouterr().out
    assert "text              equal" in told
    assert "picture           DIFFERS" in told


# Tells what the collector would not walk when the doors open, and then fails, which ends it.
WATCHED = f"""
import gc, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fakes import CARD, FakeEngine, FakeGrammars, FakeMedia, FakePreprocessor
from litevl.api.ports import Backend
from litevl.config import Config
from litevl.errors import ConfigError
from litevl.serve import serve

loaded = []

class Engine(FakeEngine):
    def start(self, deliver):
        print(any(each is loaded for each in gc.get_objects()), gc.get_freeze_count() > 10_000)
        raise ConfigError("seen")

def load(config, report):
    loaded.append([])
    return Backend(card=CARD, engine=Engine(), preprocessor=FakePreprocessor(),
                   grammars=FakeGrammars(), media=FakeMedia()), {{}}

sys.exit(serve(Config(no_api_key=True, port=0), load))
"""


def test_what_was_loaded_is_out_of_the_collectors_way_before_the_first_request() -> None:
    """A collection holds the interpreter; over a loaded model it took a second and more."""
    told = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True)
    assert (told.stdout, told.returncode) == ("False True\n", 1)
