"""The house rules of CONTRIBUTING.md, held by reading the source: imports, sizes, documents.

A rule is a function from source text to complaints, so that a planted bad text can prove that it
bites; its test then holds it over the whole tree. What ruff and mypy hold is not repeated here.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import settings_table
from litevl import __version__
from litevl.config import Config, flag
from size import functions

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "torchvision", "transformers", "accelerate", "qwen_vl_utils")

# Who may import whom. "" is the package itself, which holds the version.
NOUNS = {
    "", "addresses", "cache", "sequence", "health", "config", "errors", "logs", "machine",
    "progress", "turns",
}  # fmt: skip
ALONE = ("", "cache", "errors", "health", "logs", "machine", "progress", "turns")
MAY_IMPORT: dict[str, set[str]] = {
    **{room: set() for room in ALONE},
    "sequence": {"errors"},
    "config": {"", "errors"},
    "addresses": {"config"},
    "media": NOUNS,
    "models": NOUNS,
    "engine": NOUNS | {"models"},
    "api": NOUNS | {"media"},
    "banner": NOUNS,
    "settings": NOUNS,
    "serve": NOUNS | {"api", "banner"},
    "ask": NOUNS,
    "info": NOUNS | {"engine", "models"},
    "check": NOUNS | {"engine", "media", "models"},
    "cli": NOUNS
    | {"api", "engine", "media", "models", "ask", "check", "info", "serve", "settings"},
    "__main__": {"cli"},
}
LATE_IMPORTS = {"litevl.cli", "litevl.media.decode", "litevl.models.hub"}  # the last: an extra
FORBIDDEN_NAMES = {"utils", "helpers", "common", "types", "manager"}
WITHOUT_ASSERT = ("api", "media", "config", "settings", "cli", "serve", "ask", "banner", "logs")

# Where `except Exception` may stand, how often, and why.
BROAD_EXCEPTS = {
    "litevl.serve": 1,  # a start that fails ends the process with one line
    "litevl.engine.engine": 2,  # a step or token that fails ends whose fault it is, not the thread
    "litevl.api.middleware": 1,  # the ASGI edge: a bug is a 500 with our error shape
    "litevl.api.exchange": 1,  # the body of a stream: a failure is its last frame
    "litevl.media.decode": 2,  # the child: readers throw anything at broken bytes and broken tags
}


def module_name(path: Path) -> str:
    """`litevl/api/app.py` -> `litevl.api.app`; a package is named without `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(*folders: str) -> dict[str, str]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {module_name(path): path.read_text(encoding="utf-8") for path in paths}


PACKAGE = sources("litevl")
PROJECT = PACKAGE | sources("tests", "training", "benchmarks")


def room(module: str) -> str:
    """`litevl.api.app` -> `api`; `litevl` -> ``."""
    return f"{module}.".split(".")[1]


# Imports ---------------------------------------------------------------------------------------


def imported(source: str, known: Collection[str]) -> set[str]:
    """The modules of litevl that a text imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in known else node.module for name in names}
    return {name for name in found if name == "litevl" or name.startswith("litevl.")}


def wrong_imports(module: str, source: str) -> list[str]:
    own = room(module)
    targets = sorted(imported(source, PACKAGE))
    return [
        f"{module} imports {target}"
        for target in targets
        if room(target) != own and room(target) not in MAY_IMPORT[own]
    ]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a ring; empty when there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        ring: list[str] = error.args[1]
        return ring
    return []


def late_imports(source: str) -> set[int]:
    """Lines of imports inside functions."""
    return {
        node.lineno
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }


def import_without_heavy(
    folder: Path, modules: Collection[str]
) -> subprocess.CompletedProcess[str]:
    """Import modules in a process of their own where torch and its kin cannot be imported."""
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
        "for name in sys.argv[1:]: importlib.import_module(name)"
    )
    command = [sys.executable, "-c", code, *modules]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def is_light(module: str) -> bool:
    return module in {"litevl.engine.scheduler", "litevl.engine.blocks"} or room(module) in {
        "", "addresses", "cache", "errors", "health", "logs", "machine", "turns", "sequence",
        "config", "settings", "progress", "media", "api", "ask", "banner", "serve", "cli",
    }  # fmt: skip


def test_every_module_stands_in_a_known_room() -> None:
    assert {room(module) for module in PACKAGE} - {"demo"} <= set(MAY_IMPORT)


@pytest.mark.parametrize("module", PACKAGE)
def test_imports_between_rooms_run_one_way(module: str) -> None:
    assert wrong_imports(module, PACKAGE[module]) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("litevl.api.app", "from litevl.engine.engine import Engine"),
        ("litevl.api.app", "def f() -> None:\n    import litevl.models.loader"),
        ("litevl.media.fetch", "from litevl.api import ports"),
        ("litevl.engine.engine", "from litevl import media"),
        ("litevl.models.loader", "from litevl.engine import blocks"),
        ("litevl.sequence", "from litevl.config import Config"),
        ("litevl.errors", "from litevl import __version__"),
    ],
)
def test_an_import_against_the_rows_is_found(module: str, source: str) -> None:
    assert wrong_imports(module, source)


def test_no_modules_import_one_another_in_a_ring() -> None:
    graph = {module: imported(source, PACKAGE) for module, source in PACKAGE.items()}
    assert cycle(graph) == []


def test_a_ring_of_imports_is_found() -> None:
    texts = {"litevl.api.a": "import litevl.api.b", "litevl.api.b": "from litevl.api import a"}
    assert cycle({name: imported(text, texts) for name, text in texts.items()})


def test_the_web_half_and_the_scheduler_import_without_torch() -> None:
    result = import_without_heavy(ROOT, [module for module in PACKAGE if is_light(module)])
    assert result.returncode == 0, result.stderr


def test_torch_behind_another_module_is_found(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("import behind\n", encoding="utf-8")
    (tmp_path / "behind.py").write_text("import torch\n", encoding="utf-8")
    assert import_without_heavy(tmp_path, ["planted"]).returncode != 0


def test_imports_stand_at_the_top_save_where_they_start_what_is_heavy() -> None:
    assert {module for module, source in PACKAGE.items() if late_imports(source)} <= LATE_IMPORTS


def test_an_import_inside_a_function_is_found() -> None:
    planted = "import os\nclass A:\n    async def f(self) -> None:\n        from json import loads"
    assert late_imports(planted) == {4}


# Names and statements --------------------------------------------------------------------------


def names(source: str) -> set[str]:
    """Every name a text reads or imports."""
    nodes = list(ast.walk(ast.parse(source)))
    read = {node.id for node in nodes if isinstance(node, ast.Name)}
    read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return read | {node.name for node in nodes if isinstance(node, ast.alias)}


def count(source: str, kind: type[ast.AST]) -> int:
    return sum(isinstance(node, kind) for node in ast.walk(ast.parse(source)))


def broad_excepts(source: str) -> int:
    """Handlers that catch everything: bare, `Exception`, `BaseException`, or suppressed so."""
    found = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            caught = names(ast.unparse(node.type)) if node.type else {"Exception"}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            caught = names(ast.unparse(node))
        else:
            continue
        found += bool(caught & {"Exception", "BaseException"})
    return found


@pytest.mark.parametrize("module", PROJECT)
def test_types_need_no_type_checking_block(module: str) -> None:
    assert "TYPE_CHECKING" not in names(PROJECT[module])


def test_a_type_checking_block_is_found() -> None:
    assert "TYPE_CHECKING" in names("from typing import TYPE_CHECKING\nif TYPE_CHECKING: ...")
    assert "TYPE_CHECKING" in names("import typing\nif typing.TYPE_CHECKING: ...")


def test_modules_are_named_after_what_they_hold() -> None:
    assert {part for module in PROJECT for part in module.split(".")} & FORBIDDEN_NAMES == set()


@pytest.mark.parametrize("module", PROJECT)
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(ast.parse(PROJECT[module]))


@pytest.mark.parametrize("module", PROJECT)
def test_no_function_changes_a_global(module: str) -> None:
    assert count(PROJECT[module], ast.Global) == 0


def test_a_global_statement_is_found() -> None:
    assert count("def f() -> None:\n    global x\n    x = 1", ast.Global) == 1


@pytest.mark.parametrize("module", [m for m in PACKAGE if room(m) in WITHOUT_ASSERT])
def test_what_a_client_or_operator_can_cause_is_never_asserted(module: str) -> None:
    assert count(PACKAGE[module], ast.Assert) == 0


def test_an_assert_is_found() -> None:
    assert count("def f(x: int) -> None:\n    assert x", ast.Assert) == 1


@pytest.mark.parametrize("module", PACKAGE)
def test_broad_excepts_stand_only_where_there_is_a_reason(module: str) -> None:
    assert broad_excepts(PACKAGE[module]) == BROAD_EXCEPTS.get(module, 0)


@pytest.mark.parametrize(
    "source",
    [
        "try: ...\nexcept: ...",
        "try: ...\nexcept Exception as error: ...",
        "try: ...\nexcept (ValueError, BaseException): ...",
        "import contextlib\nwith contextlib.suppress(OSError, Exception): ...",
    ],
)
def test_a_broad_except_is_found(source: str) -> None:
    assert broad_excepts(source) == 1


def test_a_narrow_except_is_left_alone() -> None:
    assert broad_excepts("try: ...\nexcept (OSError, ValueError): ...") == 0


# Sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", PROJECT)
def test_no_function_is_longer_than_60_lines(module: str) -> None:
    assert [each for each in functions(PROJECT[module]) if each.lines > 60] == []


@pytest.mark.parametrize("module", PROJECT)
def test_no_file_is_longer_than_450_lines(module: str) -> None:
    assert len(PROJECT[module].splitlines()) <= 450


def test_a_function_is_measured_from_its_def_to_its_end() -> None:
    planted = "@decorated\ndef outer():\n    def inner():\n        pass\n    return inner\n"
    assert [(each.name, each.lines) for each in functions(planted)] == [("outer", 4), ("inner", 2)]


# Documents -------------------------------------------------------------------------------------


DOCUMENTS = ["README.md", "README.zh.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
DOCUMENTS += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]


def document(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def named_files(text: str) -> set[str]:
    """Python files that a document names, as it writes them."""
    return set(re.findall(r"[\w./-]*\w\.py\b", text))


def exists(name: str) -> bool:
    """A path from the root or from the package; a bare name may stand in any room."""
    here = (ROOT / name).is_file() or (ROOT / "litevl" / name).is_file()
    return here or ("/" not in name and any(f".{name}".endswith(f".{m}.py") for m in bare_names()))


def bare_names() -> Iterator[str]:
    return (module.rpartition(".")[2] for module in PROJECT)


def tree_files(text: str) -> set[str]:
    """Files of the tree that a document draws from a line `litevl/` on, as paths from the root.

    A line that begins with `name/` opens a folder for the lines indented deeper than itself.
    """
    block = re.search(r"^( *)litevl/.*\n(?:(?!```).*\n)*", text, re.MULTILINE)
    found: set[str] = set()
    folders: list[tuple[int, str]] = []
    for line in block.group().splitlines() if block else ():
        indent = len(line) - len(line.lstrip())
        folders = [(depth, name) for depth, name in folders if depth < indent]
        if opened := re.match(r" *(\w+/)", line):
            folders.append((indent, opened.group(1)))
        found |= {"".join(n for _, n in folders) + file for file in re.findall(r"\w+\.py\b", line)}
    return found


def named_tests(text: str) -> set[str]:
    return set(re.findall(r"`(test_\w+)`", text))


def test_every_promise_names_tests_that_exist() -> None:
    known = {
        function.name
        for module, source in PROJECT.items()
        if module.startswith("tests.")
        for function in functions(source)
    }
    rows = [line for line in document("docs/behaviour.md").splitlines() if line.startswith("| ")]
    promises = [line for line in rows if not line.startswith(("| promise", "| ---"))]
    assert [line for line in promises if not named_tests(line)] == []
    assert named_tests(document("docs/behaviour.md")) - known == set()


def missing_flags(text: str) -> list[str]:
    flags = (flag(each.name) for each in fields(Config) if each.name != "model")  # MODEL is no flag
    return [each for each in flags if not re.search(rf"(?<![\w-]){each}(?![\w-])", text)]


def first_version(text: str) -> str:
    """The newest numbered release of a changelog."""
    found = re.search(r"^## \[(\d+\.\d+\.\d+)\]", text, re.MULTILINE)
    return found.group(1) if found else ""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_named_by_a_document_exist(name: str) -> None:
    assert [each for each in sorted(named_files(document(name))) if not exists(each)] == []


def test_a_named_file_that_does_not_exist_is_found() -> None:
    named = named_files("`litevl/api/chat.py`, `api/ports.py`, gone.py, `litevl/api/gone.py`.")
    assert named == {"litevl/api/chat.py", "api/ports.py", "gone.py", "litevl/api/gone.py"}
    assert exists("api/ports.py")
    assert exists("ports.py")
    assert not exists("gone.py")
    assert not exists("litevl/api/gone.py")


def test_the_tree_in_the_architecture_shows_every_module() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "litevl").rglob("*.py")}
    shown = tree_files(document("ARCHITECTURE.md"))
    assert sorted(shown - files) == []
    assert sorted(file for file in files - shown if "/__" not in file) == []


def test_a_tree_is_read_by_its_indentation() -> None:
    planted = (
        "litevl/   the package\n  cli.py   commands\n  api/   web\n    app.py  x   auth.py  y\n"
    )
    assert tree_files(planted) == {"litevl/cli.py", "litevl/api/app.py", "litevl/api/auth.py"}


def test_the_page_about_settings_is_what_the_config_says() -> None:
    assert document("docs/configuration.md") == settings_table.document()
    assert missing_flags(document("docs/configuration.md")) == []


def test_a_flag_that_is_only_part_of_another_is_missing() -> None:
    told = " ".join(flag(each.name) for each in fields(Config) if each.name != "api_key")
    assert "--api-key-file" in told
    assert missing_flags(told) == ["--api-key"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_documents_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document(name))
    folder = (ROOT / name).parent
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_shows_a_command_by_line_25(name: str) -> None:
    lines = document(name).splitlines()[:25]
    assert any(line.startswith(("```", "    make")) for line in lines)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_named_by_a_document_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", document("Makefile"), re.MULTILINE))
    told = set(re.findall(r"(?:`|^ *\$? *)make ([a-z-]+)", document(name), re.MULTILINE))
    assert told - targets == set()


def test_the_version_is_the_first_of_the_changelog() -> None:
    assert first_version(document("CHANGELOG.md")) == __version__


def test_the_unreleased_heading_is_not_a_version() -> None:
    assert first_version("## [Unreleased]\n\n## [1.2.3] - 2030-01-01\n## [1.2.2]\n") == "1.2.3"
