"""A chat template from anywhere can neither reach out of its sandbox nor fill memory or time."""

import time
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeq.errors import FormatError, LatticeqError
from latticeq.model import template_budget
from latticeq.model.chat_template import ChatTemplate
from latticeq.model.template_budget import Budget, size
from tests.chat_templates import REAL

HELLO = [{"role": "user", "content": "Hello"}]

REACHING = [
    "{{ messages.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ ('{0.__class__}' | attr('format'))(1) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ ['{0.__class__}'] | map('format', 1) | list or (''.__class__) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ namespace.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.__init__.__globals__ }}",
    "{{ joiner.__init__ }}",
    "{% for m in messages %}{{ loop.__class__ }}{% endfor %}",
    "{% macro f() %}{% endmacro %}{{ f._func }}",
    "{{ (messages | map('string')).gi_frame }}{{ messages.__len__() }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages[0].clear() }}",
    "{% include 'tokenizer_config.json' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
]


@pytest.mark.parametrize("source", REACHING)
def test_what_reaches_out_is_refused(source):
    messages = [dict(HELLO[0])]
    with pytest.raises(FormatError, match=r"chat_template: the chat template failed: \w+Error: "):
        ChatTemplate(source).render(messages)
    assert messages == HELLO


DOUBLING = "{%% set ns = namespace(x='aa') %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.x }}"
LONG = "{% set s = 'a' * 1000000 %}"
LINES = "{% set s = '\\n\\t' * 100000 %}"

FILLING = [
    "{{ 'a' * 10**10 }}",
    "{{ ['a'] * 1000000000 }}",
    "{{ ([1] * 1000000) * 1000 }}",
    "{{ (10 ** 10) ** (10 ** 10) }}",
    DOUBLING % "{% set ns.x = ns.x ~ ns.x %}",
    DOUBLING % "{% set ns.x = ns.x + ns.x %}",
    DOUBLING % "{% set ns.x = [ns.x, ns.x] %}",
    DOUBLING % "{% set ns.x = (ns.x, ns.x) %}",
    DOUBLING % "{% set ns.x = {'a': ns.x, 'b': ns.x} %}",
    DOUBLING % "{% set ns.x = dict(a=ns.x, b=ns.x) %}",
    DOUBLING % "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}",
    DOUBLING % "{% set ns.x = ns.x | tojson | tojson %}",
    DOUBLING % "{% set ns.x = [ns.x, ns.x] | string %}",
    DOUBLING % "{% set ns.x = ns.x.join([ns.x, ns.x]) %}",
    DOUBLING % "{% set ns.x = '%s%s' % (ns.x, ns.x) %}",
    DOUBLING % "{% set ns.x = '%s%s' | format(ns.x, ns.x) %}",
    DOUBLING % "{% set ns.x = '{0}{0}'.format(ns.x) %}",
    DOUBLING % "{% filter replace('a', 'aa') %}{{ ns.x }}{% endfilter %}{% set ns.x = ns.x * 2 %}",
    "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ '1'.zfill(1000000000) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{:\u0660\u0660\u0660\u0660\u06601000000000}'.format(1) }}",
    "{{ '{x:>1000000000}'.format_map({'x': 1}) }}",
    "{{ '%s1000000000000000000000000000000000000000000d' % 1 }}",
    LONG + "{{ s.replace('', s) }}",
    LONG + "{{ s | replace('a', s) }}",
    LONG + "{{ s.join(s) }}",
    LONG + "{{ s | list | join(s) }}",
    LONG + "{{ s.translate({97: s}) }}",
    LONG + "{{ s.encode('punycode') }}",
    LINES + "{{ s | indent(100000) }}",
    LINES + "{{ s | indent(s) }}",
    LINES + "{{ s | wordwrap(1, wrapstring=s) }}",
    LINES + "{{ s.expandtabs(1000000) }}",
    "{{ range(100000) | list | tojson(indent=1000000) }}",
    "{{ ([range(100000) | list] * 100000) | sum(start=[]) }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ messages | map('center', 1000000000) | list }}",
    "{{ ('http://a.b ' * 10000) | urlize(target='a' * 10000) }}",
    "{{ [1] | batch(1000000000, 'a') | list }}",
    "{{ range(1000000000) | list }}",
    "{% for i in range(100000) %}{% for j in range(100000) %}aaaaaaaaaa{% endfor %}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}{{ range(9999) | list }}{% endfor %}{% endset %}",
    "{{ lipsum(n=100000) }}",
]

ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{{ r | map('string') | map('length') | sum }}" * 20,
    "{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% for x in [1] recursive %}{{ loop(x if x is iterable else [[x], [x]]) }}{% endfor %}",
]


@pytest.mark.parametrize("source", FILLING + ENDLESS)
def test_what_fills_memory_or_does_not_end_is_stopped(source, monkeypatch):
    monkeypatch.setattr(template_budget, "_SECONDS", 1.0)
    start = time.perf_counter()
    with pytest.raises(FormatError, match=r"the chat template (was stopped: it|failed: )"):
        ChatTemplate(source).render(HELLO)
    assert time.perf_counter() - start < 6  # of which the bounds take one, on an idle machine


@pytest.mark.parametrize("source", FILLING)
def test_what_fills_memory_is_stopped_before_it_does(source, monkeypatch):
    monkeypatch.setattr(template_budget, "_SECONDS", 0.5)
    monkeypatch.setattr(template_budget, "_CHARACTERS", 1 << 14)
    tracemalloc.start()
    try:
        with pytest.raises(LatticeqError):
            ChatTemplate(source.replace("1000000 %", "10000 %")).render(HELLO)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_a_jungle_of_names_and_marks_is_an_error_or_a_text():
    marks = ["{{", "}}", "{%", "%}", "{#", "#}", "-", "|", "~", "(", ")", "[", "]", "'", "\n", " "]
    words = ["for", "in", "messages", "if", "else", "endif", "endfor", "set", "ns", ".", "=", "*"]
    words += ["macro", "call", "endcall", "1", "99999", "range", "loop", "namespace", "tojson"]
    words += ["join", "indent", "__class__", "filter", "raise_exception", "generation", "recursive"]

    @given(st.lists(st.sampled_from(marks + words), max_size=40).map(" ".join))
    def run(source: str) -> None:
        with suppress(LatticeqError):
            assert isinstance(ChatTemplate(source).render(HELLO), str)

    run()


@given(st.data())
def test_real_templates_with_a_piece_changed_are_an_error_or_a_text(data):
    source = data.draw(st.sampled_from(list(REAL.values())))
    at = data.draw(st.integers(0, len(source)))
    count = data.draw(st.integers(0, 8))
    piece = data.draw(st.text(st.sampled_from("{}%#-|~()[]'\" .*9amr_"), max_size=6))
    with suppress(LatticeqError):
        rendered = ChatTemplate(source[:at] + piece + source[at + count :]).render(HELLO)
        assert isinstance(rendered, str)


NESTED = st.recursive(
    st.text(max_size=5) | st.integers(-9, 9) | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=30,
)


@given(NESTED, st.integers(0, 60))
def test_a_size_counts_everything_and_stops_above_its_limit(value, limit):
    def count(item):
        if isinstance(item, str):
            return 1 + len(item)
        if isinstance(item, dict):
            return 1 + sum(map(count, item)) + sum(map(count, item.values()))
        if isinstance(item, int):
            return 1 + len(f"{abs(item):b}".lstrip("0"))
        return 1 + (sum(map(count, item)) if isinstance(item, list) else 0)

    whole = count(value)
    assert size(value, 10**6) == whole
    assert (size(value, limit) > limit) == (whole > limit)


def test_a_budget_grows_with_what_is_given():
    budget = Budget()
    with pytest.raises(FormatError, match="more than 1048592 characters"):
        budget.allow(3 << 20)
    budget.start("x" * (1 << 20))
    budget.allow(3 << 20)
    assert budget.bounded(iter([1, 2])) == [1, 2]
