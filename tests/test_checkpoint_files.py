"""Checkpoints that bring code of their own, or a processor that nobody knows."""

import json
from pathlib import Path

import pytest

from litevl.cli import main
from tiny_models import make_checkpoint

CODE_OF_ITS_OWN = {
    "processor_config.json": ("processor_class", "AutoProcessor"),
    "preprocessor_config.json": ("image_processor_type", "AutoImageProcessor"),
    "video_preprocessor_config.json": ("video_processor_type", "AutoVideoProcessor"),
}


@pytest.mark.parametrize("command", ["info", "check", "serve"])
@pytest.mark.parametrize("name", CODE_OF_ITS_OWN)
def test_a_checkpoints_code_never_runs_nor_is_anybody_asked_to_let_it(
    command: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = make_checkpoint("qwen2_vl", tmp_path / "model")
    file, (key, factory) = folder / name, CODE_OF_ITS_OWN[name]
    known = json.loads(file.read_text()) if file.exists() else {}
    known |= {key: "Mine", "auto_map": {factory: "mine.Mine"}}
    file.write_text(json.dumps(known))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    asked: list[str] = []

    def yes(question: str) -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", yes)
    port = ["--port", "0"] if command == "serve" else []
    assert main([command, str(folder), "--device", "cpu", *port]) == 1
    assert (asked, (tmp_path / "ran").exists()) == ([], False)
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("litevl: ") and "runs no checkpoint's code" in last


def test_a_processor_that_transformers_does_not_know_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint("qwen2_vl", tmp_path / "model")
    (folder / "processor_config.json").write_text('{"processor_class": "Mine"}')
    capsys.readouterr()  # transformers writes a bar as it saves
    assert main(["info", str(folder), "--device", "cpu"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
