"""Chat templates come from others: what they may compute has an end, and they reach nothing."""

from __future__ import annotations

import resource
import sys
import time

import pytest
from clock import in_time

from archc.dsl.errors import ChatTemplateFails
from archc.generate.chat import conversation
from archc.template import render
from archc.tokenizer import Tokenizer

TURNS = [{"role": "user", "content": "hello"}]
GROW = (
    "{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x = n.x OP n.x %}{% endfor %}"
)
HOSTILE = {
    "loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% set x = j %}{% endfor %}{% endfor %}",
    "a list of loops": "{% set r = [1, 2, 3] * 9 %}"
    + "{% for i in r %}" * 9 + "{% endfor %}" * 9,
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a power": "{{ 10 ** 10 ** 8 }}",
    "a long text": "{{ 'a' * 10 ** 9 }}",
    "a folded text": "{{ 'a' * 10000000000 }}",
    "doubling": GROW.replace("OP", "~"),
    "sums": GROW.replace("OP", "+"),
    "squares": GROW.replace("'ab'", "9").replace("OP", "*"),
    "a wide field": "{{ '%999999999999d' % 1 }}",
    "a wide format": "{{ '{:>99999999999}'.format(1) }}",
    "a centre": "{{ 'a' | center(10 ** 12) }}",
    "a replacement": "{% set a = 'a' * 99999 %}{{ a.replace('a', a) | length }}",
    "a large range": "{{ range(10 ** 12) | list }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "a frame": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "an import": "{% import 'os' as os %}",
    "a file": "{% include '/etc/passwd' %}",
    "a key": "{{ messages[0].nothing.more }}",
    "a division": "{{ 1 // 0 }}",
    "a date": "{{ strftime_now(3) }}",
    "syntax": "{% for %}",
    "its own error": "{{ raise_exception('no') }}",
}  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited by Linux")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_template_fails_by_name(case: str) -> None:
    before, started = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    with pytest.raises(ChatTemplateFails):
        conversation(Tokenizer(None, chat_template=HOSTILE[case]), TURNS, "template")
    assert in_time(time.process_time() - started, 3)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_long_conversation_has_enough_steps() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'U' * 2 }}{{ m.content | trim }}"
        "{% else %}{{ m.content | tojson }}{% endif %}{% endfor %}"
    )
    turns = TURNS * 2000
    assert render(source, messages=turns) == "UUhello" * 2000
