"""Messages into the text that a model continues."""

import itertools
from datetime import date
from types import SimpleNamespace

import pytest

from pice.core import Message, Prompt, Role
from pice.engine.llama import sandbox
from pice.engine.llama.template import CHATML, ChatTemplate, folded, merged
from pice.errors import InputError, ModelLoadError

pytest.importorskip("jinja2", reason="jinja2 comes with llama-cpp-python")

ASKED = Prompt(messages=(Message("system", "Be brief."), Message("user", "Why {{ 1 + 1 }}?")))

ALTERNATES = """
{%- if messages[0].role == 'system' %}{% set first = messages[0].content %}{% set loop_messages = messages[1:] %}
{%- else %}{% set loop_messages = messages %}{% endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message.role == 'user') == (loop.index0 % 2 == 1) %}
        {{-  raise_exception('roles must take turns') }}{% endif %}
    {%- if message.role == 'user' %}
        {{- '[INST]' }}{{ first ~ '/' if loop.last and first is defined }}{{ message.content + '[/INST]' }}
    {%- else %}{{ message.content + eos_token }}{% endif %}
{%- endfor %}"""
NO_SYSTEM = """
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}
    {%- if (message.role == 'user') == (loop.index0 % 2 == 1) %}
        {{-  raise_exception('roles must take turns') }}{% endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<turn>' + role + '\\n' + message.content | trim + '</turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"""
DATED = """
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y %H:%M') %}{% endif %}
{{- bos_token }}<h>system<e>Today: {{ date_string }}{% if tools is not none %}tools!{% endif %}
{%- for message in messages %}<h>{{ message['role'] }}<e>{{ message['content'] | trim }}{% endfor %}<h>assistant<e>"""
SWITCHED = """
{%- macro turn(role, text) %}<im>{{ role }}\n{{ text }}</im>\n{% endmacro %}
{%- for message in messages %}
    {%- set text = message.content %}
    {%- if message.role == 'assistant' and '</think>' in text %}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- turn(message.role, text) }}
{%- endfor %}
{{- '<im>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"""


def render(source: str, *turns: tuple[Role, str]) -> str:
    template = ChatTemplate(source, bos="<s>", eos="</s>", today=lambda: date(2026, 3, 4))
    return template.render(Prompt(tuple(Message(role, content) for role, content in turns)))


def test_chatml_renders_every_message_as_it_is_and_opens_the_answer() -> None:
    assert ChatTemplate(CHATML, bos="", eos="").render(ASKED) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy {{ 1 + 1 }}?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_is_given_the_special_tokens_and_told_not_to_think() -> None:
    source = (
        "{{ bos_token }}{{ messages[0].content | tojson }}{{ enable_thinking }}{{ thinking }}{{ reasoning_effort }}"
        "{{ tools is none }}{{ eos_token }}"
    )
    assert ChatTemplate(source, bos="<s>", eos="</s>").render(ASKED) == '<s>"Be brief."FalseFalselowTrue</s>'


def test_template_that_knows_no_system_role_gets_its_words_in_front_of_the_users() -> None:
    assert render(NO_SYSTEM, ("system", "Brief."), ("user", "Why?")) == (
        "<turn>user\nBrief.\n\nWhy?</turn>\n<turn>model\n"
    )


def test_template_whose_roles_alternate_gets_neighbours_as_one_message() -> None:
    assert render(ALTERNATES, ("system", "S"), ("user", "a"), ("user", "b")) == "<s>[INST]S/a\n\nb[/INST]"
    assert render(ALTERNATES, ("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")) == (
        "<s>[INST]a[/INST]b\n\nc</s>[INST]d[/INST]"
    )


def test_template_that_takes_neither_gets_both_changes() -> None:
    assert render(NO_SYSTEM, ("system", "S"), ("user", "a"), ("user", "b")) == (
        "<turn>user\nS\n\na\n\nb</turn>\n<turn>model\n"
    )


def test_messages_that_no_change_helps_are_refused_in_the_templates_first_words() -> None:
    with pytest.raises(InputError, match="refuses these messages: no system here"):
        render(NO_SYSTEM, ("system", "S"), ("assistant", "a"), ("user", "b"))


def test_conversation_that_a_template_takes_is_not_rearranged() -> None:
    assert (
        render("{% for m in messages %}{{ m.role[0] }}{% endfor %}", ("user", ""), ("user", ""), ("system", ""))
        == "uus"
    )


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("system", "S"), ("user", "a")], [("user", "S\n\na")]),
        ([("user", "a"), ("system", "S"), ("user", "b")], [("user", "S\n\na"), ("user", "b")]),
        ([("system", "S"), ("assistant", "a")], [("user", "S"), ("assistant", "a")]),
        ([("system", "S"), ("system", "T"), ("user", "a")], [("user", "S\n\nT\n\na")]),
        ([("user", "a")], [("user", "a")]),
    ],
)
def test_system_words_are_folded_into_the_users(
    turns: list[tuple[Role, str]], expected: list[tuple[Role, str]]
) -> None:
    assert [(each.role, each.content) for each in folded([Message(*turn) for turn in turns])] == expected


def test_only_neighbours_of_one_role_are_merged() -> None:
    turns = [Message("user", "a"), Message("user", "b"), Message("assistant", "c"), Message("user", "d")]
    assert merged(turns) == (Message("user", "a\n\nb"), Message("assistant", "c"), Message("user", "d"))


def test_date_is_given_without_a_time_of_day() -> None:
    assert render(DATED, ("user", " a ")) == "<s><h>system<e>Today: 04 Mar 2026 00:00<h>user<e>a<h>assistant<e>"


def test_thinking_is_switched_off_and_left_out_of_former_turns() -> None:
    turns: list[tuple[Role, str]] = [("user", "a"), ("assistant", "<think>x</think>\n\nb"), ("user", "c")]
    assert render(SWITCHED, *turns) == (
        "<im>user\na</im>\n<im>assistant\nb</im>\n<im>user\nc</im>\n<im>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% generation %}a{{ 'b' }}{% endgeneration %}", "ab"),
        ("{% for n in range(9) if n != 2 %}{% if n == 4 %}{% break %}{% endif %}{{ n }}{% endfor %}", "013"),
        ("{% for n in range(3) %}{% if n == 1 %}{% continue %}{% endif %}{{ n }}{% endfor %}", "02"),
        ("{{ {'b': 1, 'a': 'é'} | tojson(indent=1, sort_keys=true) }}", '{\n "a": "é",\n "b": 1\n}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}{{ 'é' | tojson(ensure_ascii=true) }}", '[1,2]"\\u00e9"'),
        ("{% for n in 'ab' %}{{ loop.index ~ n ~ loop.last ~ loop.length }} {% endfor %}", "1aFalse2 2bTrue2 "),
        ("{% set ns = namespace(n=0) %}{% for n in (1, 2) %}{% set ns.n = ns.n + n %}{% endfor %}{{ ns.n }}", "3"),
        ("{% for n in nowhere %}x{% else %}none{% endfor %}", "none"),
        ("{% for t in [[[1], []]] recursive %}({{ loop(t) if t is iterable else t }}){% endfor %}", "(((1))())"),
        ("{{ '%s-%02d' % ('a', 7) }}{{ 7 % 4 }}{{ 'ab' * 2 }}{{ 2 ** 5 }}{{ [1] + [2] }}", "a-073abab32[1, 2]"),
    ],
)
def test_what_real_templates_use_works(source: str, text: str) -> None:
    assert render(source, ("user", "a")) == text


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "must be str|can only concatenate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
    ],
    ids=["refused by the template", "wrong types", "out of the sandbox", "changes its input"],
)
def test_messages_that_a_template_refuses_are_the_callers_error(source: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        ChatTemplate(source, bos="", eos="").render(ASKED)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "steps|recursion"),
        ("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}", "steps"),
        ("{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}", "steps|recursion"),
        ("{{ 'a' * 10 ** 9 }}", "larger"),
        ("{{ 10 ** 9 * [1] }}", "larger"),
        ("{{ 10 ** (10 ** 10) }}", "bits"),
        ("{{ '%1000000000d' % 1 }}", "field"),
        ("{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "larger"),
        ("{% set n = namespace(a='a') %}{% for a in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}", "larger"),
        ("{% set n = namespace(a='a') %}{% for a in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}", "larger"),
        ("{% set n = namespace(a=3) %}{% for a in range(60) %}{% set n.a = n.a * n.a %}{% endfor %}", "bits"),
    ],
)
def test_template_that_never_ends_or_makes_too_much_is_stopped(source: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        render(source, ("user", "a"))


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% set x = 'a' * 16000000 %}{% endfor %}",
        "{% for a in range(2000) %}{% for b in range(90) | sort %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    ],
    ids=["operators", "loops", "calls"],
)
def test_template_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """By a clock that goes on a little with each look."""
    looks = itertools.count()
    monkeypatch.setattr(sandbox, "time", SimpleNamespace(monotonic=lambda: 0.1 * next(looks)))
    with pytest.raises(InputError, match="longer than 2 s"):
        render(source, ("user", "a"))


def test_template_of_millions_of_characters_is_none() -> None:
    with pytest.raises(ModelLoadError, match="has 1000001 characters"):
        ChatTemplate("a" * 1_000_001, bos="", eos="")


def test_refusal_of_a_template_is_shown_in_part() -> None:
    with pytest.raises(InputError) as refused:
        render("{{ raise_exception('no' * 9999) }}", ("user", "a"))
    assert len(str(refused.value)) < 600


def test_steps_are_counted_anew_for_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_STEPS", 10)
    template = ChatTemplate("{% for n in range(6) %}{{ n }}{% endfor %}", bos="", eos="")
    assert [template.render(ASKED) for _ in range(3)] == ["012345"] * 3


def test_prompt_without_messages_is_refused() -> None:
    with pytest.raises(InputError, match="at least one message"):
        ChatTemplate(CHATML, bos="", eos="").render(Prompt(messages=()))


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'a' | center(9) }}", "{% generation %}", "{{ (" * 5000])
def test_template_that_cannot_be_read_makes_the_model_unusable(source: str) -> None:
    with pytest.raises(ModelLoadError, match="chatml"):
        ChatTemplate(source, bos="", eos="")
