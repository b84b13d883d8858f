"""Writes `docs/configuration.md` from `litevl/config.py`: `python tests/settings_table.py`.

`tests/test_house.py` holds the document up to date.
"""

from pathlib import Path
from typing import Any, get_type_hints

from litevl.config import Config, flag, grouped
from litevl.settings import BORROWED, help_of, metavar_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"

HEAD = """# Configuration

中文：本页由 `litevl/config.py` 自动生成，列出 `litevl serve` 的全部设置：命令行参数、环境变量和 TOML 键。

`litevl serve [MODEL]` takes a hub id, a local folder, or `demo`. Everything else is a setting, and each can be given in three ways;
the command line wins over the environment, the environment over the file, the file over the default.

```sh
litevl serve Qwen/Qwen2.5-VL-7B-Instruct --max-model-len 8192        # a flag
LITEVL_MAX_MODEL_LEN=8192 litevl serve Qwen/Qwen2.5-VL-7B-Instruct   # a variable: LITEVL_ and the flag's name
litevl serve --config litevl.toml                                    # a file, also LITEVL_CONFIG=litevl.toml
```

```toml
# litevl.toml: the names of the flags, with - or _; lists and tables where a flag has commas
model = "Qwen/Qwen2.5-VL-7B-Instruct"
max-model-len = 8192
served-model-name = ["qwen", "gpt-4o"]
limit-mm-per-prompt = { image = 8, video = 1 }
```

A flag without a value takes `true` or `false` in the environment and the file. Keys belong into the environment or a file that only
their user can read, not on a command line, which everybody on the machine sees. `litevl info` and `litevl check` take the settings of
the group Model, and read the others' variables too.

This page is written by `python tests/settings_table.py` from `litevl/config.py`; a test holds it up to date.
"""

TAIL = """
## Variables of others

| variable | does |
| --- | --- |
{borrowed}
| `HF_TOKEN` | who asks the hub, for gated and private models |
| `HF_ENDPOINT` | another hub, such as a mirror: `HF_ENDPOINT=https://hf-mirror.com` |
| `HF_HOME`, `HF_HUB_CACHE` | where downloads are kept |
| `HF_HUB_OFFLINE` | `1`: nothing is asked, what is in the cache must do |
| `MODELSCOPE_CACHE` | where downloads from ModelScope are kept |
| `CUDA_VISIBLE_DEVICES` | the card that is used; litevl uses one |
| `OMP_NUM_THREADS` | threads of the forward pass on the CPU |
| `XDG_STATE_HOME` | where the made key lies, in `litevl/` (default: `~/.local/state`) |
| `LITEVL_URL` | which server `litevl ask` talks to |
"""


def document() -> str:
    """The whole page."""
    hints = get_type_hints(Config)
    tables = "".join(
        f"\n## {title}\n\n| flag | takes | does |\n| --- | --- | --- |\n"
        + "".join(_row(each, hints[each.name]) for each in settings)
        for title, settings in grouped().items()
    )
    borrowed = "\n".join(
        f"| `{variable}` | as `LITEVL_{name.upper()}`, which wins |"
        for variable, name in BORROWED.items()
    )
    return HEAD + tables + TAIL.format(borrowed=borrowed)


def _row(setting: Any, hint: Any) -> str:
    takes = "" if hint is bool else f"`{metavar_of(setting.metadata['metavar'], hint)}`"
    takes = takes.replace("|", "\\|")  # a table's own sign
    return f"| `{flag(setting.name)}` | {takes} | {help_of(setting)} |\n"


def main() -> None:
    DOCUMENT.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
