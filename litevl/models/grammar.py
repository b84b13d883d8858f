"""llguidance: what an answer must look like -> token masks.

A `Grammar` is written in llguidance's dialect of Lark and compiled for the model's vocabulary;
each request gets a mask of its own, which `engine/logits.py` fills and `engine/engine.py` moves on.
Compiled in worker threads, used by the engine thread. Knows no HTTP and no tensors.
"""

import json
import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from litevl.errors import InvalidValueError
from litevl.sequence import ChoiceGrammar, Grammar, JsonGrammar, TokenMask, Tool, ToolGrammar

logger = logging.getLogger("litevl.grammar")

MAX_CACHED = 16  # compiled grammars; all but the largest compile in milliseconds anyway
MAX_CHARACTERS = 128 * 1024  # of one grammar in Lark, schemas included: about a second
# llguidance's own limits do not bound what it does with patterns while it compiles: 800 in one
# object, each compared with each, or the intersection of 35 took more than half a minute.
MAX_PATTERNS = 100
MAX_PATTERNS_COMBINED = 12
MAX_BOUND = 2**53  # of numbers: llguidance takes larger ones for another, without a word
MAX_REASON = 200  # characters of what llguidance says against a schema

# By llguidance's own figures one `fill` costs at most about 20 ms at these, and a mask 200 MB.
# Rows as wide as a step may be, since an object of 500 optional properties needs more than the
# default; errors that quote no schema.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_items_in_row=50_000,
    max_lexer_states=100_000,
    max_grammar_size=500_000,
    verbose_errors=False,
)

# With forcing, every mask costs time in proportion to all the text that is certain to come, which
# a schema of fifty characters can make a megabyte.
PREAMBLE = '%llguidance {"no_forcing": true}'

COMPACT = {"item_separator": ",", "key_separator": ":"}
SPACED = {"item_separator": ", ", "key_separator": ": "}  # as templates write calls: `tojson`

_COMBINING = {"allOf", "anyOf", "oneOf", "$ref"}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COMBINED = {"properties", "patternProperties", "additionalProperties", "items", "pattern"}


class Grammars:
    """One served model's. Safe to use from several threads."""

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: frozenset[int]
    ) -> None:
        """`vocab_size` is the model's, which may be larger than the tokenizer's."""
        ends = sorted(eos_token_ids)
        self._tokenizer = LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=ends)
        added = tokenizer.get_added_tokens_decoder().items()
        self._added = {token.content: token_id for token_id, token in added}
        self._compiled = lru_cache(MAX_CACHED)(self._compile)

    def compile(self, grammar: Grammar, *, after_thinking: bool, param: str) -> TokenMask:
        """A fresh mask; `after_thinking` lets anything pass until the open `<think>` is closed.

        Slow where the grammar is new. Raises `InvalidValueError` for `param` where it cannot be.
        """
        try:
            return _Mask(self._compiled(grammar, after_thinking).deep_copy())
        except InvalidValueError as error:
            error.param = param
            raise

    def _compile(self, grammar: Grammar, after_thinking: bool) -> LLMatcher:
        """A matcher at its beginning, to be copied and never moved."""
        lark = "\n".join(self._lark(grammar, after_thinking))
        if len(lark) > MAX_CHARACTERS:
            raise _refusal(f"it is too large, {len(lark)} characters of at most {MAX_CHARACTERS}")
        source = LLMatcher.grammar_from_lark(lark)
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # a schema that only refers to itself fails here
        if matcher.is_error():
            raise _refusal(_reason(matcher.get_error()))
        return matcher

    def _lark(self, grammar: Grammar, after_thinking: bool) -> Iterator[str]:
        yield PREAMBLE
        if after_thinking:
            # Newlines are bounded: a model could go on with them for ever.
            yield 'start: thought ("\\n" | "\\n\\n")? answer'
            yield from self._thought("</think>")
        else:
            yield "start: answer"
        if isinstance(grammar, JsonGrammar):
            yield f"answer: {_json(_schema(grammar.schema), COMPACT)}"
        elif isinstance(grammar, ChoiceGrammar):
            yield "answer: CHOICE?" if "" in grammar.options else "answer: CHOICE"
            yield f"CHOICE: {_one_of(grammar.options)}"
        else:
            yield from self._calls(grammar)

    def _thought(self, end: str) -> Iterator[str]:
        text = _text_without(end)
        if end in self._added:
            yield f"thought: THOUGHT? {self._token(end)}"
            yield f"THOUGHT: {text}"
        else:
            yield "thought: THOUGHT"
            yield f"THOUGHT: ({text}) {_quoted(end)}"  # one terminal, as in `_xml_parameter`

    def _calls(self, grammar: ToolGrammar) -> Iterator[str]:
        if not grammar.tools:
            raise _refusal("there is no tool to call")
        begin, end = self._token("<tool_call>"), self._token("</tool_call>")
        yield 'answer: call ("\\n" call)*' if grammar.is_parallel else "answer: call"
        yield f"call: {begin} body {end}"
        yield "body: " + " | ".join(f"body_{i}" for i in range(len(grammar.tools)))
        write = _hermes_body if grammar.format == "hermes" else _xml_body
        for i, tool in enumerate(grammar.tools):
            yield from write(tool, f"body_{i}")

    def _token(self, text: str) -> str:
        """A control token where the tokenizer has it, else its text."""
        return f"<[{self._added[text]}]>" if text in self._added else _quoted(text)


class _Mask:
    """Where one answer stands in its grammar: a `TokenMask`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        """Allow what may come next; ends alone after the last; nothing where llguidance gave up.

        A row without an allowed token fails, and its request alone: to end it as if it were
        complete would hand out a document that does not validate.
        """
        self._matcher.unsafe_compute_mask_ptr(bitmask.ctypes.data, bitmask.nbytes)
        if self._matcher.is_error():
            logger.warning("a grammar was given up: %s", self._matcher.stop_reason())
            bitmask[:] = 0

    def accept(self, token_id: int) -> None:
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)


# Lark ------------------------------------------------------------------------------------------


def _hermes_body(tool: Tool, rule: str) -> Iterator[str]:
    """`{"name": "x", "arguments": {...}}` on a line of its own."""
    name = json.dumps(tool.name, ensure_ascii=False)
    before = _quoted(f'\n{{"name": {name}, "arguments": ')
    yield f'{rule}: {before} {_json(_arguments(tool), SPACED)} "}}\\n"'


def _xml_body(tool: Tool, rule: str) -> Iterator[str]:
    """`<function=x>`, its parameters in the order of the schema, `</function>`."""
    schema = _arguments(tool)
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise _refusal("properties or required is of the wrong type")
    if not properties and schema.keys() & _COMBINING:
        raise _refusal("this model's calls need properties at the top of the parameters")
    shared = {key: value for key, value in schema.items() if key in ("$defs", "definitions")}
    rules = []
    for i, (key, value) in enumerate(properties.items()):
        rules.append(f"{rule}_{i}" if key in required else f"{rule}_{i}?")
        yield from _xml_parameter(key, value, shared, f"{rule}_{i}")
    begin, end = _quoted(f"\n<function={tool.name}>\n"), _quoted("</function>\n")
    yield f"{rule}: {begin} {' '.join(rules)} {end}"


def _xml_parameter(key: str, value: Any, shared: dict[str, Any], rule: str) -> Iterator[str]:
    """Text for what is declared a string, of which only `const` and `enum` count; else JSON."""
    if not isinstance(value, dict):
        raise _refusal("the schema of a parameter must be a JSON object")
    begin, end = _quoted(f"<parameter={key}>\n"), _quoted("\n</parameter>\n")
    if value.get("type") != "string":
        yield f"{rule}: {begin} {_json(shared | value, SPACED)} {end}"
        return
    options = [value["const"]] if "const" in value else value.get("enum")
    text = _text_without("</parameter>") if options is None else _one_of(options)
    # Text and end are one terminal: as two, the text would swallow the beginning of the end.
    yield f"{rule}: {begin} {rule.upper()}"
    yield f"{rule.upper()}: ({text}) {end}"


def _json(schema: dict[str, Any], separators: dict[str, str]) -> str:
    """A document of a schema; the caller's own `x-guidance` does not count."""
    options = separators | {"whitespace_flexible": False}
    return f"%json {json.dumps(schema | {'x-guidance': options})}"


def _one_of(texts: Any) -> str:
    if not texts or not all(isinstance(text, str) for text in texts):
        raise _refusal("there must be one text at least to choose from")
    return " | ".join(map(_quoted, texts))


def _text_without(text: str) -> str:
    pattern = re.escape(text).replace("/", r"\/")
    return f"/(?s:.*)/ & ~/(?s:.*){pattern}(?s:.*)/"


def _quoted(text: str) -> str:
    """Lark's strings are JSON's."""
    return json.dumps(text)


# Schemas ---------------------------------------------------------------------------------------


def _arguments(tool: Tool) -> dict[str, Any]:
    return {"type": "object"} | _schema(tool.parameters)


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
        nodes = list(_objects(schema))
    except (ValueError, RecursionError):
        raise _refusal("it cannot be read as JSON, or is nested too deeply") from None
    if not isinstance(schema, dict):
        raise _refusal("a schema must be a JSON object")
    most = MAX_PATTERNS_COMBINED if any(map(_combines, nodes)) else MAX_PATTERNS
    if (count := sum(map(_num_patterns, nodes))) > most:
        raise _refusal(f"it has {count} patterns, of at most {most}")
    if any(map(_is_bounded_too_far, nodes)):
        raise _refusal("no number is bounded beyond 2^53")
    return schema


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects inside of a JSON value."""
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        for child in children:
            yield from _objects(child)


def _num_patterns(node: dict[str, Any]) -> int:
    by_name = node.get("patternProperties")
    return ("pattern" in node) + (len(by_name) if isinstance(by_name, dict) else 0)


def _is_bounded_too_far(node: dict[str, Any]) -> bool:
    bounds = [node.get(key) for key in _BOUNDS]
    return any(isinstance(each, int | float) and abs(each) > MAX_BOUND for each in bounds)


def _combines(node: dict[str, Any]) -> bool:
    """Whether several schemas hold for one value, whose patterns llguidance must intersect."""
    combining = node.keys() & _COMBINING
    return "allOf" in combining or len(combining) > 1 or bool(combining and node.keys() & _COMBINED)


_QUOTED = re.compile(r"""(['"`])(.*?)\1""")
_PATTERN_OR_NUMBER = re.compile(r"/.*/|-?\d[\d.e+-]*")
_UNSUPPORTED = frozenset(
    [
        "not",
        "if",
        "then",
        "else",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
        "propertyNames",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "unevaluatedItems",
        "unevaluatedProperties",
    ]
)


def _refusal(reason: str) -> InvalidValueError:
    return InvalidValueError(f"This cannot be enforced: {reason}.")


def _reason(error: str) -> str:
    """One short sentence of llguidance's error, without what it quotes of the caller's schema: the
    first, or a heading's verdict."""
    if error.startswith("NoExtension"):
        return "nothing satisfies it"
    lines = [line for line in error.splitlines() if line and not line.startswith("<")]
    line = next((line for line in lines if line.startswith("error: ")), (lines or [""])[0])
    prefixes = r"^(at \d+\(\d+\): |failed to compile JSON schema: |error: )+"
    line = re.sub(
        r"(Invalid type|Unknown format|Regex is empty): .*", r"\1", re.sub(prefixes, "", line)
    )
    line = _PATTERN_OR_NUMBER.sub("…", _QUOTED.sub(_keyword, line))
    return line.split(". ")[0][:MAX_REASON]


def _keyword(quoted: re.Match[str]) -> str:
    return quoted[0] if quoted[2] in _UNSUPPORTED else "…"
