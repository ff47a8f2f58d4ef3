"""Chat templates that use what real ones use, and a folder's files to hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PLAIN = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"
"""Few characters, for models whose tokens are bytes."""

TRIMMED = "{% for m in messages %}{{ m.role[0] }}:{{ m.content | trim }}\n{% endfor %}a:"

HEADERS = """
{{- bos_token }}
{#- the system message, or a default one #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" }}
{%- if tools is not none %}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{{- system_message + "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim }}
        {{- '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""

ALTERNATING = """
{%- if messages[0].role == "system" %}
    {%- set system, rest = messages[0].content, messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- set users = rest | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0, seen=[]) %}
{%- for message in rest %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- set ns.seen = ns.seen + [message.role] %}
{%- endfor %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message.role == "user" %}
        {%- if loop.last and system is defined %}
            {{- "[INST]" ~ system ~ "\\n\\n" ~ message.content ~ "[/INST]" }}
        {%- else %}
            {{- "[INST]%s[/INST]" | format(message.content) }}
        {%- endif %}
    {%- else %}
        {%- generation %}{{ message.content ~ eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
{{- ns.seen | join(",") ~ (users | length) }}
"""

PARTS = """
{%- macro part(name, body='') -%}
  <{{ name }}>{{ body }}{{ caller() if caller else '' }}</{{ name }}>
{%- endmacro %}
{%- for message in messages recursive %}
    {%- if message is mapping %}
        {%- if loop.index0 > 6 %}{% break %}{% endif %}
        {%- if not message.content %}{% continue %}{% endif %}
        {%- call part(message.role) %}{{ loop(message.content.split(' ')) }}{% endcall %}
    {%- else %}
        {{- message | upper if loop.first else message | lower }}
        {%- if not loop.last %}{{ ' ' }}{% endif %}
        {{- '.' if loop.length > 2 and loop.nextitem is not defined }}
    {%- endif %}
{%- else %}
    nothing
{%- endfor %}
{%- set facts = {'roles': messages | map(attribute='role') | unique | sort, 'n': 2 ** 3} %}
{%- for key, value in facts.items() if value %}
    {{- key }}={{ value | tojson }};{{ value is iterable }};{{ [1, 2, 3][::-1] }}
{%- endfor %}
{%- filter replace('o', '0') %} foo {{ 'x' * 3 }} {% endfilter %}
{%- set captured %}{{ messages | length }} of {{ range(3) | sum }}{% endset %}
{{- captured | trim }}{{ "%02d" % 7 }}{{ '{:>4}'.format('a') }}{{ 7 // 2 }}{{ -7 % 3 }}
{%- set ns = namespace(found=false) %}
{%- for m in messages[::-1] %}
    {%- if m.role == 'user' and not ns.found %}{% set ns.found = m.content %}{% endif %}
{%- endfor %}{{ ns.found | default('none', true) }}{{ undefined_thing }}
{{ "<&>'" }}{{ {'a': "<é'>"} | tojson }}{{ ['b', 'a'] | sort | join('|') | title }}
"""

REAL = {
    "chatml": CHATML,
    "plain": PLAIN,
    "trimmed": TRIMMED,
    "headers": HEADERS,
    "alternating": ALTERNATING,
    "parts": PARTS,
}


def write_chat_files(folder: Path, template: Any = CHATML, **config: Any) -> Path:
    """Write ``tokenizer_config.json`` with a template, and whatever else is given."""
    folder.mkdir(parents=True, exist_ok=True)
    document = config if template is None else config | {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(document), "utf-8")
    return folder
