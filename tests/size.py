"""Counts the package: lines a room against DESIGN's guide, and how long its functions are.

Run by `make size` on the standard library alone; `tests/test_house.py` uses `functions`. The guide
is no limit: a room that outgrows it should first be asked what could be deleted.
"""

import ast
import signal
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

PACKAGE = Path(__file__).parent.parent / "litevl"
LANGUAGES = (".py", ".js", ".css", ".html")
GUIDE = {"engine": 2000, "models": 1200, "media": 700, "api": 2200, "root": 600}


@dataclass(frozen=True, slots=True, order=True)
class Function:
    """A function or method and the lines from its `def` to its end."""

    lines: int
    name: str


def functions(source: str) -> list[Function]:
    """Every function in a source text, nested ones and methods too, in the order of the text."""
    found = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    found.sort(key=lambda node: node.lineno)
    return [
        Function((node.end_lineno or node.lineno) - node.lineno + 1, node.name) for node in found
    ]


def main() -> None:
    lines = dict.fromkeys(GUIDE, 0)
    spans: list[tuple[Function, str]] = []
    for path in sorted(each for each in PACKAGE.rglob("*") if each.suffix in LANGUAGES):
        source = path.read_text(encoding="utf-8")
        place = path.relative_to(PACKAGE)
        room = place.parts[0] if len(place.parts) > 1 else "root"
        lines[room] = lines.get(room, 0) + len(source.splitlines())
        if path.suffix != ".py":
            continue
        spans += [(function, place.as_posix()) for function in functions(source)]

    print(f"{'room':<10}{'lines':>7}{'guide':>7}")
    for room, count in lines.items():
        print(f"{room:<10}{count:>7}{GUIDE.get(room, 0):>7}")
    print(f"{'litevl':<10}{sum(lines.values()):>7}{sum(GUIDE.values()):>7}")

    lengths = [function.lines for function, _ in spans]
    ninetieth = round(quantiles(lengths, n=10)[-1])
    print(f"\n{len(lengths)} functions: median {median(lengths):g} lines, 90 % within {ninetieth}")
    for function, place_name in sorted(spans, reverse=True)[:10]:
        print(f"{function.lines:>5}  {place_name}  {function.name}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `make size | head`
    main()
