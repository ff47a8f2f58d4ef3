"""The verb ``chat`` and ``generate --chat``: whole sessions through pipes and at terminals."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest

from latticeq.cli import chat
from latticeq.cli.main import main
from latticeq.model import template_sandbox
from latticeq.model.chat_template import ChatTemplate
from latticeq.model.loader import load
from latticeq.model.tokenizer import Tokenizer
from tests.chat_templates import PLAIN, write_chat_files
from tests.tiny_llama import random_weights
from tests.tiny_model import Outcome, byte_config, latticeq, write_byte_model

Capture = pytest.CaptureFixture[str]

SHORT = ("--max-tokens", "8", "--temperature", "0")


def write_model(folder: Path, template: object = PLAIN, **config: object) -> Path:
    write_byte_model(folder, byte_config(**config))
    return write_chat_files(folder, template)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that chats, not to be changed."""
    return write_model(tmp_path_factory.mktemp("chat") / "model", max_position_embeddings=2000)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    """Put lines on stdin."""

    def put(*lines: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    return put


def by_hand(folder: Path, *texts: str, system: str | None = None, max_tokens: int = 8) -> list[str]:
    """Return the replies that a session must give, each from a fresh cache."""
    model, tokenizer = load(folder), Tokenizer.from_folder(folder)
    template = ChatTemplate.from_folder(folder)
    said = [] if system is None else [{"role": "system", "content": system}]
    replies = []
    for text in texts:
        said.append({"role": "user", "content": text})
        prompt = tokenizer.tokenize(template.render(said))
        ids = model.generate(prompt, max_tokens=max_tokens, stop_ids=tokenizer.stop_ids)
        replies.append(tokenizer.detokenize(ids))
        said.append({"role": "assistant", "content": replies[-1]})
    return replies


def test_a_session_through_a_pipe(folder: Path, typed) -> None:
    texts = ("Hello", "Ünïcode 日本語?", "Good bye")
    typed("", *texts, "  ")
    outcome = latticeq("chat", folder, "--system", "Be brief.", *SHORT)
    assert outcome.code == 0, outcome.err
    replies = by_hand(folder, *texts, system="Be brief.")
    turns = outcome.result["turns"]
    assert [turn["user"] for turn in turns] == list(texts)
    assert [turn["reply"] for turn in turns] == replies
    assert outcome.out.rpartition('{"turns"')[0] == "".join(f"{reply}\n" for reply in replies)
    for before, turn in pairwise(turns):  # a reply that is no UTF-8 has other tokens when repeated
        assert before["prompt_tokens"] <= turn["kept_tokens"] < turn["prompt_tokens"]
    assert turns[0]["kept_tokens"] == 0
    assert outcome.result["system"] == "Be brief."
    assert outcome.result["context"] == 2000
    assert outcome.result["cached_tokens"] <= turns[-1]["prompt_tokens"] + turns[-1]["tokens"]
    assert "> " not in outcome.out


def test_streams_of_bytes_are_whole_characters(folder: Path) -> None:
    command = [sys.executable, "-m", "latticeq", "chat", str(folder), "--json"]
    done = subprocess.run(
        [*command, "--temperature", "1.5", "--max-tokens", "200", "--seed", "3"],
        input="日本語\nagain\n".encode(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    *shown, last = done.stdout.decode("utf-8").split("\n")[:-1]
    turns = json.loads(last)["turns"]
    assert "\n".join(shown) == "\n".join(turn["reply"] for turn in turns)
    assert len(turns) == 2


def test_commands(folder: Path, typed) -> None:
    typed("a", "/undo", "b", "/reset", "/system Be kind.", "c", "/system", "/reset", "d", "/undo")
    outcome = latticeq("chat", folder, *SHORT)
    assert outcome.code == 0, outcome.err
    turns = outcome.result["turns"]
    assert [turn["reply"] for turn in turns] == [
        *(by_hand(folder, text)[0] for text in "ab"),
        *by_hand(folder, "c", system="Be kind."),
        *by_hand(folder, "d"),
    ]
    assert turns[1]["kept_tokens"] == len("u:")
    for words in ("taken back", "everything is taken back", "system prompt: Be kind.", "none but"):
        assert words in outcome.err
    typed("/undo", "/help", "//slash", "/exit", "never")
    outcome = latticeq("chat", folder, *SHORT)
    assert [turn["user"] for turn in outcome.result["turns"]] == ["/slash"]
    assert "nothing to take back" in outcome.err
    for command in chat.COMMANDS:
        assert f"  {command} " in outcome.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "there is no command /nonsense; there are /help, /system"),
        ("/usr/bin is a folder", "there is no command /usr/bin; .* is written with two"),
        ("/reset now", "/reset takes no text; 'now' was given"),
    ],
)
def test_a_wrong_command_through_a_pipe_ends_the_session(
    folder: Path, typed, line: str, message: str
) -> None:
    typed(line, "Hello")
    outcome = latticeq("chat", folder, *SHORT)
    assert outcome.code == 2
    assert re.search(message, outcome.err)
    assert outcome.out == ""


def test_at_a_terminal_an_error_is_said_and_the_session_goes_on(
    folder: Path, typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed("/nonsense", "x" * 2000, "Hello", "x" * 2000)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    outcome = latticeq("chat", folder, *SHORT)
    assert outcome.code == 0
    assert [turn["reply"] for turn in outcome.result["turns"]] == by_hand(folder, "Hello")
    assert "there is no command /nonsense" in outcome.err
    first, second = re.findall(r"makes a conversation of (\d+) tokens; .*", outcome.err)
    assert int(first) == 2005 < int(second)
    assert outcome.err.count("/undo takes back the last message") == 1  # not before there is one
    assert outcome.err.count("> ") == 5  # stdout is no terminal, so prompts go to stderr
    assert "1 replies, 8 tokens" in outcome.err


def test_a_full_context_through_a_pipe(tmp_path: Path, typed) -> None:
    folder = write_model(tmp_path / "model", max_position_embeddings=24)
    typed("Hello", "So?")
    outcome = latticeq("chat", folder, "--max-tokens", 50, "--temperature", 0)
    assert outcome.code == 2
    assert "the reply ends where the context of 24 tokens is full; /undo takes" in outcome.err
    assert "this message of 3 tokens, with what was said before" in outcome.err
    assert "the model's context is 24" in outcome.err


def test_a_reply_ends_at_its_limit_and_says_so(folder: Path, typed) -> None:
    typed("Hello")
    outcome = latticeq("chat", folder, *SHORT)
    assert outcome.result["turns"][0]["finish_reason"] == "length"
    assert "(the reply ends at --max-tokens)" in outcome.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--temperature", "-1"], 2, "temperature is -1"),
        (["--top-p", "0"], 2, "top_p is 0"),
        (["--max-tokens", "0"], 2, "max_tokens is 0"),
    ],
)
def test_bad_options_are_refused_before_the_first_line(
    folder: Path, typed, options: list[str], code: int, message: str
) -> None:
    typed("Hello")
    outcome = latticeq("chat", folder, *options)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
    assert sys.stdin.read() == "Hello\n"


def test_input_that_is_no_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), "latin-1"))
    outcome = latticeq("chat", folder, *SHORT)
    assert outcome.code == 2
    assert "what came from stdin is not UTF-8 text" in outcome.err


VERBS = (("chat",), ("generate", "--chat", "--prompt", "Hello"))


@pytest.mark.parametrize("words", VERBS, ids=["chat", "generate"])
def test_templates_that_cannot_be_used(tmp_path: Path, typed, words: tuple[str, ...]) -> None:
    verb, *options = words
    folder = write_model(tmp_path / "model", None)
    for template, code, message in (
        (None, 1, "tokenizer_config.json: has no chat_template"),
        ("{% if %}", 1, "tokenizer_config.json: line 1: the chat template is not valid Jinja"),
        ("{{ raise_exception('never') }}", 2, "refuses this conversation (user): never"),
        ("{{ messages.__class__ }}", 1, "the chat template failed: SecurityError"),
        ("{{ 'a' * 10**9 }}", 1, "the chat template was stopped: it makes a text"),
    ):
        typed("Hello")
        outcome = latticeq(verb, write_chat_files(folder, template), *options)
        assert (outcome.code, outcome.out) == (code, ""), message
        assert message in outcome.err


@pytest.mark.parametrize("words", VERBS, ids=["chat", "generate"])
def test_without_jinja2_the_extra_is_named(
    folder: Path, typed, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise template_sandbox.PackageNotFoundError(name)

    monkeypatch.setattr(template_sandbox, "version", missing)
    typed("Hello")
    outcome = latticeq(words[0], folder, *words[1:])
    assert outcome.code == 1
    assert "pip install 'latticeq[chat]'" in outcome.err


def test_a_system_prompt_that_a_template_refuses(tmp_path: Path, typed) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    folder = write_model(tmp_path / "model", refusing + PLAIN)
    typed("Hello")
    outcome = latticeq("chat", folder, "--system", "Be brief.", *SHORT)
    assert outcome.code == 2
    assert "no system. If it has no place for a system prompt, leave that out" in outcome.err


def test_generate_answers_a_prompt_as_a_turn(folder: Path, capsys: Capture) -> None:
    words = ["generate", str(folder), "--prompt", "Hello", "--max-tokens", "8"]
    assert main([*words, "--chat", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [result["text"]] == by_hand(folder, "Hello")
    assert result["prompt_tokens"] == len("u:Hello\na:")
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["prompt_tokens"] == len("Hello")


def test_a_quantized_model_with_a_coded_cache_chats(text: Path, tmp_path: Path, typed) -> None:
    source = write_model(tmp_path / "source", head_dim=16)
    words = ("--calibration", text, "--calibration-tokens", 512, "--regime", "w+kv")
    done = latticeq("quantize", source, tmp_path / "out", *words)
    assert done.code == 0, done.err
    typed("Hello", "And now?", "Bye")
    outcome = latticeq("chat", tmp_path / "out", *SHORT)
    assert outcome.code == 0, outcome.err
    turns = outcome.result["turns"]
    assert all(turn["kept_tokens"] >= len("u:Hello\na:") for turn in turns[1:])
    assert len(turns) == 3


class Session:
    """A session in a process of its own, read as it goes; it does not outlive its context."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "latticeq", "chat", str(folder), "--json", *options]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        self.out, self.err = b"", b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def write(self, line: str) -> None:
        self.process.stdin.write(line.encode() + b"\n")

    def read(self, is_enough) -> None:
        """Read stdout until a condition on it holds."""
        end = time.monotonic() + 300  # kernels may have to be compiled
        while not is_enough(self.out):
            assert time.monotonic() < end, self.out
            self.out += self._new(self.process.stdout)

    def read_errors(self, words: bytes, count: int) -> None:
        """Read until stderr has some words so often, and all of stdout that came before them."""
        end = time.monotonic() + 300
        while self.err.count(words) < count:
            assert time.monotonic() < end, self.err
            self.err += self._new(self.process.stderr, 0.1)
            self.out += self._new(self.process.stdout, 0)  # afterwards: a pipe holds no more

    def _new(self, stream, seconds: float = 1) -> bytes:
        """Return what there is to read, having waited for something for so long at most."""
        if not select.select([stream], [], [], seconds)[0]:
            return b""
        new = os.read(stream.fileno(), 1 << 16)
        assert new, self.err + self.process.stderr.read()
        return new

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def finish(self) -> Outcome:
        out, err = self.process.communicate(timeout=60)
        whole = (self.out + out).decode(), (self.err + err).decode()
        return Outcome(self.process.returncode, *whole)


def write_endless_model(folder: Path) -> Path:
    """Write a model that ends no reply: where one is stopped decides what the next one says."""
    config = byte_config(max_position_embeddings=10**6)
    weights = random_weights(config)
    end = config["eos_token_id"]
    weights["model.embed_tokens.weight"][end] = 0  # the head too: 255 other logits are not all < 0
    write_byte_model(folder, config, weights)
    return write_chat_files(folder, PLAIN)


posix = pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")


@posix
def test_ctrl_c_stops_a_reply_and_keeps_the_session(tmp_path: Path) -> None:
    folder = write_endless_model(tmp_path / "model")
    with Session(folder, "--max-tokens", "900000", "--temperature", "0") as session:
        session.write("Hello")
        session.read(lambda out: len(out) > 200)
        session.interrupt()
        session.read_errors(b"(stopped)", 1)  # a second Ctrl-C in one reply would end the session
        stopped = len(session.out)
        session.write("And now?")
        session.read(lambda out: len(out) > stopped + 200)
        session.interrupt()
        session.read_errors(b"(stopped)", 2)
        session.write("/exit")
        outcome = session.finish()
    assert outcome.code == 0, outcome.err
    turns = outcome.result["turns"]
    assert [turn["finish_reason"] for turn in turns] == ["interrupted"] * 2
    assert [turn["user"] for turn in turns] == ["Hello", "And now?"]
    assert turns[1]["kept_tokens"] >= turns[0]["prompt_tokens"]
    assert turns[1]["prompt_tokens"] > turns[0]["prompt_tokens"] + len(turns[0]["reply"])
    assert outcome.err.count("(stopped)") == 2


@posix
def test_ctrl_c_at_the_prompt_ends_the_session(folder: Path) -> None:
    with Session(folder, *SHORT) as session:
        session.write("Hello")
        session.read(lambda out: out.endswith(b"\n"))
        time.sleep(2)  # until the next line is waited for
        session.interrupt()
        outcome = session.finish()
    assert outcome.code == 0, outcome.err
    assert [turn["user"] for turn in outcome.result["turns"]] == ["Hello"]


@posix
def test_a_second_ctrl_c_in_a_reply_ends_everything(folder: Path, typed, monkeypatch) -> None:
    def twice(tokens, decoder):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return "", [], "interrupted"

    monkeypatch.setattr(chat, "stream", twice)
    typed("Hello")
    assert latticeq("chat", folder, *SHORT).code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


TERMINAL = "import os, sys; os.login_tty(int(sys.argv.pop(1))); "
HIDE = "import sys; sys.modules['prompt_toolkit'] = None; "
RUN = "import sys; from latticeq.cli.main import main; sys.exit(main(sys.argv[1:]))"


def type_keys(terminal: int, process: subprocess.Popen[bytes], keys: list[bytes]) -> bytes:
    """Type each of the keys when a session waits for them; return all that it wrote."""
    out, typed, limit = b"", 0, time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < limit:
            if select.select([terminal], [], [], 0.2)[0]:
                out += os.read(terminal, 1 << 16)
            elif typed < len(keys) and out.count(b"> ") > typed == out.count(b"max-tokens)"):
                time.sleep(0.3)
                os.write(terminal, keys[typed])
                typed += 1
    except OSError:  # its other side is closed
        process.wait(timeout=30)
    finally:
        process.kill()
    return out


@posix
@pytest.mark.parametrize("end", [b"\x03", b"\x04"], ids=["ctrl-c", "ctrl-d"])
@pytest.mark.parametrize("has_toolkit", [True, False], ids=["prompt_toolkit", "plain"])
def test_a_session_at_a_terminal(folder: Path, has_toolkit: bool, end: bytes) -> None:
    import pty

    if has_toolkit:
        pytest.importorskip("prompt_toolkit")
    code = RUN if has_toolkit else HIDE + RUN
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", TERMINAL + code, str(theirs)]
    command += ["chat", str(folder), *SHORT, "--json"]
    environment = os.environ | {"TERM": "dumb"}
    process = subprocess.Popen(command, env=environment, pass_fds=[theirs])
    os.close(theirs)
    out = type_keys(ours, process, [b"Hello\r", b"\x1b[A\r", end])  # with one arrow up
    assert process.wait(timeout=30) == 0, out.decode(errors="replace")
    os.close(ours)
    last = [line for line in out.decode().splitlines() if line.startswith("{")][-1]
    turns = json.loads(last)["turns"]
    assert [turn["user"] for turn in turns] == ["Hello", "Hello"]
    assert turns[0]["reply"] == by_hand(folder, "Hello")[0]
    assert b"/help lists commands" in out
    assert b"2 replies, 16 tokens" in out
