"""Templates are found where transformers finds them, and say what plain jinja2 says."""

import json
import subprocess
import sys
from datetime import datetime
from typing import Any, ClassVar

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from latticeq.errors import FormatError, InputError, MissingDependencyError
from latticeq.model import template_sandbox
from latticeq.model.chat_template import ChatTemplate
from tests.chat_templates import CHATML, PLAIN, REAL, write_chat_files

HELLO = [{"role": "user", "content": "Hello"}]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def roles(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


class Generation(Extension):
    """The tag ``generation`` as a tag that does nothing."""

    tags: ClassVar = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def oracle(source: str, messages: list[dict[str, str]], **more: Any) -> str:
    """Render with jinja2 alone, set up as transformers does."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = lambda x, **options: json.dumps(
        x, **{"ensure_ascii": False} | options
    )
    environment.globals.update(raise_exception=refuse)
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    return environment.from_string(source).render(given | TOKENS | more)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.mark.parametrize("name", REAL)
@given(texts=st.lists(TEXT, min_size=1, max_size=9), system=st.none() | TEXT)
def test_the_bounds_change_nothing_that_templates_say(name, texts, system):
    messages = roles(*texts, system=system)
    rendered = ChatTemplate(REAL[name], TOKENS).render(messages)
    assert rendered == oracle(REAL[name], messages)
    assert messages == roles(*texts, system=system)


def test_a_long_conversation_is_within_the_bounds():
    messages = roles(*["a word and another. " * 400] * 151, system="Be brief. " * 1000)
    for name, source in REAL.items():
        rendered = ChatTemplate(source, TOKENS).render(messages)
        assert rendered == oracle(source, messages), name
        assert name == "parts" or len(rendered) > 1_200_000


def test_a_rendering_written_out():
    messages = roles("Hi", "Hello!", "Bye", system="Be brief.")
    assert ChatTemplate(CHATML).render(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ChatTemplate(CHATML).render(roles("Hi"), reply=False).endswith("Hi<|im_end|>\n")


def test_what_templates_rely_on():
    today = "{{ strftime_now('%Y') }}"
    assert ChatTemplate(today).render(HELLO) == str(datetime.now().year)
    source = "  {% if true %}\n    x\n  {% endif %}\n{{ tools is none }}{{ documents is none }}"
    assert ChatTemplate(source).render(HELLO) == "    x\nTrueTrue"
    assert ChatTemplate("{{ '<b>' | tojson }}{{ '<b>' }}").render(HELLO) == '"<b>"<b>'


def test_special_tokens_are_given(tmp_path):
    source = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ add_bos_token }}"
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True}
    folder = write_chat_files(tmp_path, source, **config, unk_token=None)
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<p>", "bos_token": "old"}')
    assert ChatTemplate.from_folder(folder).render(HELLO) == "<s>|</s>|<p>||"


def test_the_jinja_file_comes_before_the_config(tmp_path):
    write_chat_files(tmp_path, "config {{ bos_token }}", bos_token="<s>")
    assert ChatTemplate.from_folder(tmp_path).render(HELLO) == "config <s>"
    (tmp_path / "chat_template.jinja").write_text("file {{ bos_token }} é\r\n", "utf-8")
    assert ChatTemplate.from_folder(tmp_path).render(HELLO) == "file <s> é"
    (tmp_path / "tokenizer_config.json").unlink()
    assert ChatTemplate.from_folder(tmp_path).render(HELLO) == "file  é"


def test_the_default_of_named_templates_is_taken(tmp_path):
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert ChatTemplate.from_folder(write_chat_files(tmp_path, named)).render(HELLO) == "d"
    write_chat_files(tmp_path, named[:1])
    with pytest.raises(
        FormatError, match=r"config\.json: .*named tool_use, and none named default"
    ):
        ChatTemplate.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, r"tokenizer_config\.json: has no chat_template, .*no chat_template\.jinja beside"),
        ([], "templates named nothing"),
        (7, "chat_template must be a text, or a list of objects"),
        ([{"name": "default"}], "chat_template must be a text, or a list of objects"),
        ("{% for m in messages %}", r"tokenizer_config\.json: line 1: .*not valid Jinja"),
        ("\n\n{{ 1 +", r"line 3: the chat template is not valid Jinja: TemplateSyntaxError"),
        ("{{ x | nonsense }}", "No filter named 'nonsense'"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "not valid Jinja: RecursionError"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "not valid Jinja"),
        ("{% for a in b %}" * 40 + "{% endfor %}" * 40, "not valid Jinja"),
        ("x" * (1 << 18) + "y", "a chat template of 262145 characters; at most 262144"),
    ],
)
def test_bad_templates_are_named_with_their_file(tmp_path, template, words):
    with pytest.raises(FormatError, match=words):
        ChatTemplate.from_folder(write_chat_files(tmp_path, template))


def test_a_missing_template_says_what_to_do(tmp_path):
    with pytest.raises(FormatError, match="Copy the one or the other from the original model's"):
        ChatTemplate.from_folder(tmp_path)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match=r"chat_template\.jinja: is not UTF-8 text"):
        ChatTemplate.from_folder(tmp_path)
    path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(FormatError, match=r"chat_template\.jinja: is no chat template"):
        ChatTemplate.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(FormatError, match=r"tokenizer_config\.json: cannot be read as JSON"):
        ChatTemplate.from_folder(tmp_path)


def test_a_template_that_refuses_is_quoted():
    template = ChatTemplate(REAL["alternating"], TOKENS, "folder/chat_template.jinja")
    with pytest.raises(
        InputError,
        match=r"folder/chat_template\.jinja: the chat template refuses this conversation "
        r"\(user, user\): roles must alternate\. If it has no place for a system prompt",
    ):
        template.render(roles("a")[:1] * 2)


def test_a_template_that_fails_says_how():
    with pytest.raises(FormatError, match=r"failed: TypeError: can only concatenate str"):
        ChatTemplate("{{ 'a' + 1 }}").render(HELLO)
    with pytest.raises(FormatError, match=r"failed: UndefinedError: 'x' is undefined"):
        ChatTemplate("{{ x.y }}").render(HELLO)


def test_one_rendering_does_not_spend_the_next_ones_budget(monkeypatch):
    monkeypatch.setattr("latticeq.model.template_budget._STEPS", 50)
    template = ChatTemplate("{% for i in range(40) %}x{% endfor %}")
    for _ in range(5):
        assert template.render(HELLO) == "x" * 40


def test_without_jinja2_the_extra_is_named(monkeypatch):
    def missing(name: str) -> str:
        raise template_sandbox.PackageNotFoundError(name)

    monkeypatch.setattr(template_sandbox, "version", missing)
    with pytest.raises(MissingDependencyError, match=r"pip install 'latticeq\[chat\]'"):
        ChatTemplate(PLAIN)


@pytest.mark.parametrize(
    ("found", "is_refused"), [("3.1.5", True), ("2.11.3", True), ("3.1.6", False), ("3.2", False)]
)
def test_a_jinja2_with_a_leaky_sandbox_is_refused(monkeypatch, found, is_refused):
    monkeypatch.setattr(template_sandbox, "version", lambda name: found)
    if is_refused:
        with pytest.raises(MissingDependencyError, match=rf"jinja2 {found} is installed.*3\.1\.6"):
            ChatTemplate(PLAIN)
    else:
        assert ChatTemplate(PLAIN).render(HELLO) == "u:Hello\na:"


def test_nothing_but_a_template_imports_jinja2():
    code = (
        "import sys, latticeq.cli.chat, latticeq.model.conversation, latticeq.cli.generate\n"
        "assert not {'jinja2', 'prompt_toolkit'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
