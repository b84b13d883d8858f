"""Grammars over real tokenizers: whatever a model may choose, the answer is what was asked for."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from grammar_bench import PARAM, Bench
from litevl.errors import InvalidValueError
from litevl.models.grammar import MAX_CHARACTERS
from litevl.sequence import (
    ChoiceGrammar,
    JsonGrammar,
    SamplingParams,
    Sequence,
    Tool,
    ToolFormat,
    ToolGrammar,
)
from rig import Rig, greedy, run_all
from tiny_models import make_checkpoint

DEMO = Path(__file__).parent.parent / "litevl/demo/tokenizer.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3_vl", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Bench:
    """Qwen's `<tool_call>` and `<think>` are tokens here."""
    return Bench(Tokenizer.from_file(str(folder / "tokenizer.json")))


@pytest.fixture(scope="module")
def demo() -> Bench:
    """They are plain text here."""
    return Bench(Tokenizer.from_file(str(DEMO)))


@pytest.fixture(params=["tiny", "demo"])
def bench(request: pytest.FixtureRequest) -> Bench:
    found: Bench = request.getfixturevalue(request.param)
    return found


# JSON ------------------------------------------------------------------------------------------


def closed(required: bool = True, /, **properties: Any) -> dict[str, Any]:
    names = list(properties) if required else []
    shape = {"properties": properties, "required": names, "additionalProperties": False}
    return {"type": "object"} | shape


SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {"type": "object"},
    "anything": {},
    "nested": closed(a=closed(b=closed(c={"type": "integer"}), d={"type": "null"}), e=closed()),
    "optional": closed(False, a={"type": "boolean"}, b={"type": "number"}, c={"const": "é"}),
    "enums": closed(kind={"enum": ["red", "蓝色", 3, None, {"a": [1]}]}, x={"const": 'q"\\\n'}),
    "arrays": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"type": "string"}, {}], "items": {"type": "null"}},
    "numbers": closed(
        n={"type": "number", "minimum": -2.5, "exclusiveMaximum": 7},
        i={"type": "integer", "minimum": 3, "maximum": 120},
        m={"type": "integer", "multipleOf": 5},
    ),
    "strings": closed(
        plate={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"},
        word={"type": "string", "pattern": "^[一-龥]{1,3}é?$"},
        short={"type": "string", "minLength": 2, "maxLength": 5},
        day={"type": "string", "format": "date"},
    ),
    "either": {"anyOf": [closed(a={"type": "string"}), closed(b={"type": "number"})]},
    "both": {"allOf": [{"type": "integer", "minimum": 4}, {"maximum": 9}]},
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": closed(
                name={"type": "string"},
                children={"type": "array", "items": {"$ref": "#/$defs/node"}},
            )
        },
    },
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "required": ["id"]},
    "own options": {"type": "object", "x-guidance": {"whitespace_flexible": True, "lenient": True}},
}


def is_compact(document: str) -> bool:
    return not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', '""', document))


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("hurry_after", [0, 4, 30])
def test_a_document_validates_wherever_chance_leads_and_can_always_be_finished(
    bench: Bench, name: str, hurry_after: int
) -> None:
    schema = SCHEMAS[name]
    validator = Draft202012Validator(schema)
    for seed in range(4):
        mask = bench.compile(JsonGrammar(json.dumps(schema)))
        document = bench.walk(mask, seed, hurry_after=hurry_after)
        validator.validate(json.loads(document))
        assert is_compact(document)


def test_control_tokens_come_in_no_string(tiny: Bench) -> None:
    mask = tiny.compile(JsonGrammar('{"type": "string"}'))
    mask.accept(tiny.bytes_ids['"'])
    allowed = set(tiny.allowed(mask))
    assert len(allowed) > 200
    assert not allowed & set(tiny.tokenizer.get_added_tokens_decoder())


UNUSABLE = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "look-around": {"type": "string", "pattern": "^(?!a)"},
    "Unknown format": {"type": "string", "format": "secret"},
    "Unsatisfiable": {"type": "integer", "minimum": 5, "maximum": 3},
    "nothing satisfies it": {"$ref": "#"},
    "does not exist": {"$ref": "#/$defs/none"},
    "oneOf constraints are not supported.": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    "too large, 6": {"const": "x" * 600_000},
    "schema too large": {
        "allOf": [{"anyOf": [closed(**{f"a{i}": {}}), closed(**{f"b{i}": {}})]} for i in range(20)]
    },
    "it has 800 patterns": {"patternProperties": {f"^a{i}[a-z]*$": {} for i in range(800)}},
    "it has 40 patterns": {"allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(40)]},
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_what_cannot_be_enforced_is_refused_in_one_line_that_says_why(
    tiny: Bench, reason: str
) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(reason)) as caught:
        tiny.compile(JsonGrammar(json.dumps(UNUSABLE[reason])))
    message = caught.value.message
    assert len(message) < 300 and "\n" not in message and "xxxx" not in message
    assert caught.value.param == PARAM


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/canary"},
        {"$ref": "#/$defs/canary"},
        {"type": "canary"},
        {"type": "string", "format": "canary"},
        {"type": "string", "pattern": "(?=canary)"},
        {"type": "string", "pattern": "(canary"},
        {"type": "string", "pattern": "canary[^\\s\\S]"},
        {"type": "string", "pattern": "^canary$", "minLength": 50},
        {"type": "string", "pattern": "canary^b$c"},
        {"patternProperties": {"^canary$": {}, "(canary|b)*": {}}},
        {"type": "number", "multipleOf": 7777e-30},
        {"type": "integer", "minimum": 7777, "maximum": 77},
        {"enum": [], "properties": {"canary": {"not": {"const": "canary"}}}},
        {"properties": {"canary": {"minimum": "canary"}}, "required": "canary"},
        {"type": "object", "properties": {"canary": {"$ref": "canary:canary"}}},
    ],
    ids=str,
)
def test_a_refusal_repeats_nothing_of_the_schema(tiny: Bench, schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError) as caught:
        tiny.compile(JsonGrammar(json.dumps(schema)))
    assert "canary" not in caught.value.message and "77" not in caught.value.message


@pytest.mark.parametrize("keyword", ["minimum", "exclusiveMaximum", "multipleOf"])
@pytest.mark.parametrize("bound", [2**53 + 1, -(10**50), 1e300])
def test_a_bound_that_would_be_taken_for_another_is_refused(
    tiny: Bench, keyword: str, bound: float
) -> None:
    """2^53 + 1 let 2^53 pass, and 10^50 let 2^63 - 1 pass."""
    schema = {"type": "integer", "maximum": 5} | {keyword: bound}
    with pytest.raises(InvalidValueError, match=r"beyond 2\^53"):
        tiny.compile(JsonGrammar(json.dumps(schema)))


@pytest.mark.parametrize("text", ["", "{", "[]", "true", '{"items":' * 9000 + "{}" + "}" * 9000])
def test_what_is_no_schema_is_refused(tiny: Bench, text: str) -> None:
    with pytest.raises(InvalidValueError, match="JSON"):
        tiny.compile(JsonGrammar(text))


def test_an_object_may_have_many_optional_properties(tiny: Bench) -> None:
    schema = closed(False, **{f"property_{i}": {"type": "boolean"} for i in range(1000)})
    document = tiny.walk(tiny.compile(JsonGrammar(json.dumps(schema))), 1, hurry_after=40)
    Draft202012Validator(schema).validate(json.loads(document))


# Choices ---------------------------------------------------------------------------------------


def test_a_choice_is_exactly_one_of_its_texts(bench: Bench) -> None:
    options = ("yes", "yes, please", 'nö"\\\n', " 蓝色", "<|im_end|>", "")
    seen = {bench.walk(bench.compile(ChoiceGrammar(options)), seed) for seed in range(60)}
    assert seen <= set(options)
    assert len(seen) >= 4


def test_a_choice_from_nothing_is_refused(tiny: Bench) -> None:
    with pytest.raises(InvalidValueError, match="one text at least"):
        tiny.compile(ChoiceGrammar(()))


def test_choices_are_many_but_not_without_end(tiny: Bench) -> None:
    options = tuple(f"option {i}" for i in range(2000))
    assert tiny.walk(tiny.compile(ChoiceGrammar(options)), 3) in options
    with pytest.raises(InvalidValueError, match="too large"):
        tiny.compile(ChoiceGrammar(("x" * MAX_CHARACTERS,)))


# Tools -----------------------------------------------------------------------------------------

PARAMETERS: dict[str, dict[str, Any]] = {
    "find": {
        "type": "object",
        "properties": {
            "what": {"type": "string"},
            "kind": {"type": "string", "enum": ["new", "old one"]},
            "box": {"$ref": "#/$defs/box"},
            "limit": {"type": ["integer", "null"]},
        },
        "required": ["what", "box"],
        "additionalProperties": False,
        "$defs": {
            "box": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
        },
    },
    "find_all": closed(where=closed(city={"type": "string"})),
    "stop": {},
}
TOOLS = tuple(
    Tool(name=name, parameters=json.dumps(schema), definition="{}")
    for name, schema in PARAMETERS.items()
)
ENDING: dict[ToolFormat, str] = {"hermes": "", "xml": "\n</parameter>\n"}


def split_calls(answer: str) -> list[str]:
    """The bodies of calls that are all of an answer, a newline between them."""
    found = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", answer, re.DOTALL)
    assert "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in found) == answer
    return found


def read_hermes(body: str) -> tuple[str, dict[str, Any]]:
    call = json.loads(body)
    assert list(call) == ["name", "arguments"] and "\n" not in body
    return call["name"], call["arguments"]


def read_xml(body: str) -> tuple[str, dict[str, Any]]:
    found = re.fullmatch(r"<function=(\w+)>\n(.*)</function>", body, re.DOTALL)
    assert found
    name, text = found.groups()
    pairs = re.findall(r"<parameter=(\w+)>\n(.*?)\n</parameter>\n", text, re.DOTALL)
    written = (f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in pairs)
    assert "".join(written) == text
    properties = PARAMETERS[name].get("properties", {})
    is_text = {key for key, schema in properties.items() if schema.get("type") == "string"}
    return name, {key: value if key in is_text else json.loads(value) for key, value in pairs}


READ: dict[ToolFormat, Callable[[str], tuple[str, dict[str, Any]]]] = {
    "hermes": read_hermes,
    "xml": read_xml,
}


@pytest.mark.parametrize("format", ["hermes", "xml"])
def test_calls_are_of_the_tools_each_with_its_own_arguments(
    bench: Bench, format: ToolFormat
) -> None:
    counts: list[int] = []
    names: set[str] = set()
    for seed in range(40):
        mask = bench.compile(ToolGrammar(TOOLS, format))
        answer = bench.walk(mask, seed, hurry_after=60, ending=ENDING[format])
        calls = [READ[format](body) for body in split_calls(answer)]
        for name, arguments in calls:
            Draft202012Validator(PARAMETERS[name]).validate(arguments)
            order = list(PARAMETERS[name].get("properties", {}))
            known = [order.index(key) for key in arguments if key in order]
            assert all(before < after for before, after in pairwise(known))
        counts.append(len(calls))
        names |= {name for name, _ in calls}
    assert names == set(PARAMETERS)
    assert min(counts) == 1 and max(counts) > 1


@pytest.mark.parametrize("format", ["hermes", "xml"])
def test_one_call_is_one_call(bench: Bench, format: ToolFormat) -> None:
    grammar = ToolGrammar(TOOLS[2:], format, is_parallel=False)
    answers = [bench.walk(bench.compile(grammar), seed) for seed in range(20)]
    assert all(len(split_calls(answer)) == 1 for answer in answers)


def test_a_call_opens_with_the_control_token_where_there_is_one(tiny: Bench, demo: Bench) -> None:
    grammar = ToolGrammar(TOOLS, "hermes")
    assert tiny.allowed(tiny.compile(grammar)) == [tiny.id("<tool_call>")]
    assert demo.bytes_ids["<"] in demo.allowed(demo.compile(grammar))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"properties": {"a": {"not": {}}}}, "Unimplemented keys"),
        ({"properties": {"a": 3}}, "must be a JSON object"),
        ({"properties": []}, "wrong type"),
        ({"properties": {"a": {"type": "string", "enum": []}}}, "one text at least"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, "need properties"),
    ],
)
def test_parameters_that_cannot_be_enforced_are_refused(
    tiny: Bench, parameters: dict[str, Any], reason: str
) -> None:
    tool = Tool(name="x", parameters=json.dumps(parameters), definition="{}")
    with pytest.raises(InvalidValueError, match=reason):
        tiny.compile(ToolGrammar((tool,), "xml"))


def test_a_call_of_no_tool_is_refused(tiny: Bench) -> None:
    with pytest.raises(InvalidValueError, match="no tool"):
        tiny.compile(ToolGrammar((), "hermes"))


# Thinking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Hm. ", "<tool_call> in words, {}\n\n", ""])
def test_anything_passes_until_the_thought_ends(bench: Bench, text: str) -> None:
    mask = bench.compile(JsonGrammar(json.dumps(SCHEMAS["both"])), after_thinking=True)
    plain = [bench.bytes_ids[character] for character in text]
    end = bench.tokenizer.encode("</think>\n\n", add_special_tokens=False).ids
    for token in [*plain, *end]:
        allowed = bench.allowed(mask)
        assert token in allowed and not set(bench.ends) & set(allowed)
        mask.accept(token)
    assert bench.allowed(mask) == sorted(bench.bytes_ids[digit] for digit in "456789")


def test_a_thought_of_chance_is_followed_by_the_document(bench: Bench) -> None:
    schema = SCHEMAS["strings"]
    for seed in range(10):
        mask = bench.compile(JsonGrammar(json.dumps(schema)), after_thinking=True)
        _, _, answer = bench.walk(mask, seed, ending="</think>").partition("</think>")
        Draft202012Validator(schema).validate(json.loads(answer))
        assert len(answer) - len(answer.lstrip("\n")) <= 2


# Masks -----------------------------------------------------------------------------------------


def test_masks_of_one_grammar_do_not_disturb_each_other(tiny: Bench) -> None:
    grammar = JsonGrammar(json.dumps(SCHEMAS["tree"]))
    alone = [tiny.walk(tiny.compile(grammar), seed) for seed in range(3)]
    begun = tiny.compile(grammar)
    for character in '{"name":"a':
        assert tiny.bytes_ids[character] in tiny.allowed(begun)
        begun.accept(tiny.bytes_ids[character])
    assert [tiny.walk(tiny.compile(grammar), seed) for seed in range(3)] == alone
    for character in '","children":[]}':
        assert tiny.bytes_ids[character] in tiny.allowed(begun)
        begun.accept(tiny.bytes_ids[character])
    assert tiny.allowed(begun) == sorted(tiny.ends)


def test_threads_that_compile_at_once_agree(folder: Path) -> None:
    fresh = Bench(Tokenizer.from_file(str(folder / "tokenizer.json")))
    grammar = JsonGrammar(json.dumps(SCHEMAS["strings"]))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: fresh.walk(fresh.compile(grammar), 5), range(16)))
    assert len(set(answers)) == 1


def test_after_the_end_there_is_only_the_end(tiny: Bench) -> None:
    mask = tiny.compile(ChoiceGrammar(("a",)))
    mask.accept(tiny.bytes_ids["a"])
    for token in (tiny.ends[1], tiny.ends[0], tiny.bytes_ids["a"]):
        assert tiny.allowed(mask) == sorted(tiny.ends)
        mask.accept(token)
    assert tiny.allowed(mask) == sorted(tiny.ends)


def test_a_token_that_was_forbidden_leaves_nothing_allowed(tiny: Bench) -> None:
    mask = tiny.compile(ChoiceGrammar(("ab",)))
    mask.accept(tiny.bytes_ids["x"])
    assert tiny.allowed(mask) == []
    mask.accept(tiny.bytes_ids["a"])
    assert tiny.allowed(mask) == []


def test_rows_with_and_without_a_grammar_share_a_batch(folder: Path) -> None:
    rig = Rig(folder)
    bench = Bench(Tokenizer.from_file(str(folder / "tokenizer.json")), unused=0)
    assert bench.vocab_size == rig.model.vocab_size
    schema = SCHEMAS["numbers"]
    prompt = rig.image_prompt([5, (1, 4, 4), 3])

    def bound(name: str, temperature: float) -> Sequence:
        ends = frozenset(bench.ends)
        params = SamplingParams(max_tokens=300, temperature=temperature, stop_token_ids=ends)
        mask = bench.compile(JsonGrammar(json.dumps(schema)))
        return Sequence(request_id=name, prompt=prompt, params=params, mask=mask)

    def run(*sequences: Sequence) -> dict[str, list[int]]:
        engine, _ = rig.engine()
        for sequence in sequences:
            engine.add(sequence)
        return run_all(engine)

    alone = run(greedy(prompt, "free", 30))
    batch = run(bound("a", 0.7), greedy(prompt, "free", 30), bound("b", 1.5))
    assert batch["free"] == alone["free"]
    for name in ("a", "b"):
        assert batch[name][-1] in bench.ends
        Draft202012Validator(schema).validate(json.loads(bench.tokenizer.decode(batch[name][:-1])))
