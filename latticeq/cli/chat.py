"""The verb ``latticeq chat``: talk with a model, turn by turn.

At a terminal, an error about one message is said and the session goes on. Lines from a pipe end
with the first error and its exit code: what follows could not mean what it was written to mean.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli.chat_lines import line_reader
from latticeq.cli.console import say
from latticeq.cli.device import add_device_argument, load_model
from latticeq.cli.interrupts import Interrupts
from latticeq.cli.runtime import add_runtime_argument
from latticeq.cli.sampling import add_sampling_arguments
from latticeq.cli.streaming import Pace, stream
from latticeq.errors import InputError, LatticeqError

if TYPE_CHECKING:
    from latticeq.model.conversation import Conversation
    from latticeq.model.tokenizer import Tokenizer

__all__ = ["HELP", "add_arguments", "run"]

HELP = "talk with a model, turn by turn"

COMMANDS = {
    "/help": "list these commands",
    "/system": "followed by a text: use it as the system prompt from now on; alone: use none",
    "/undo": "take back your last message and its reply",
    "/reset": "take back everything but the system prompt",
    "/exit": "end the session; so do Ctrl-D, and Ctrl-C where nothing is being said",
}

_ENDINGS = {
    "length": "the reply ends at --max-tokens",
    "context": "the reply ends where the context of {context} tokens is full; {hint}",
    "interrupted": "stopped",
}

_HINT = "/undo takes back the last message and its reply, /reset everything"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.description = (
        f"{HELP}. Messages are lines, typed or from a pipe; Ctrl-C stops a "
        "reply. Lines that begin with / are commands, which /help lists."
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a model folder")
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="the system prompt: what the model is to be (default: what its chat template says)",
    )
    # Small models lose the thread where unlikely words are drawn.
    add_sampling_arguments(parser, max_tokens=512, temperature=0.2)
    add_runtime_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Stream replies to stdout until the lines end; return what was said, and how fast."""
    import numpy as np

    from latticeq.cli.progress import compile_notice
    from latticeq.model.chat_template import ChatTemplate
    from latticeq.model.conversation import Conversation
    from latticeq.model.generate import check_sampling
    from latticeq.model.tokenizer import Tokenizer

    check_sampling(args.max_tokens, args.temperature, args.top_p)
    template = ChatTemplate.from_folder(args.folder)
    tokenizer = Tokenizer.from_folder(args.folder)
    if not args.device:
        compile_notice()
    model, runtime = load_model(args)
    conversation = Conversation(model, tokenizer, template, args.system)
    options = {name: getattr(args, name) for name in ("max_tokens", "temperature", "top_p")}
    # One generator for all turns: a repeated question may get another answer.
    options["seed"] = np.random.default_rng(args.seed)
    session = _Session(conversation, tokenizer, options)
    session.talk()
    return {
        "turns": session.turns,
        "system": conversation.system,
        "cached_tokens": len(conversation.cached),
        "context": conversation.context,
        "dtype": model.dtype,
        "runtime": runtime,
    }


class _Session:
    """A conversation, and what happened in it: a dict for each reply in `turns`."""

    def __init__(
        self, conversation: Conversation, tokenizer: Tokenizer, options: dict[str, Any]
    ) -> None:
        self.turns: list[dict[str, Any]] = []
        self._paces: list[Pace] = []
        self._conversation = conversation
        self._tokenizer = tokenizer
        self._options = options

    def talk(self) -> None:
        """Read lines and answer them until they end."""
        read, typed = line_reader(), sys.stdin.isatty()
        if typed:
            say("/help lists commands; Ctrl-C stops a reply; Ctrl-D ends the session")
        while True:
            try:
                line = read()
            except (EOFError, KeyboardInterrupt):
                break
            try:
                if not self._take(line):
                    break
            except LatticeqError as error:
                if not typed:
                    raise
                say(f"{error} ({_HINT})" if self._conversation.turns else str(error))
        if typed:
            self._say_summary()

    def _take(self, line: str) -> bool:
        """Answer a message or follow a command; return False if that ends the session."""
        if not line.strip():
            return True
        if line.startswith("//"):  # a message that begins with a slash
            self._answer(line[1:])
        elif line.startswith("/"):
            return self._follow(*line.rstrip().partition(" ")[::2])
        else:
            self._answer(line)
        return True

    def _follow(self, command: str, text: str) -> bool:
        conversation = self._conversation
        if command not in COMMANDS:
            raise InputError(
                f"there is no command {command}; there are {', '.join(COMMANDS)}. A message that "
                "begins with a slash is written with two"
            )
        if text and command != "/system":
            raise InputError(f"{command} takes no text; {text!r} was given")
        if command == "/help":
            say("\n".join(f"  {name:<9}{words}" for name, words in COMMANDS.items()))
        elif command == "/system":
            conversation.system = text.strip() or None
            say(f"system prompt: {conversation.system or 'none but what the template may have'}")
        elif command == "/undo":
            say("taken back" if conversation.undo() else "there is nothing to take back")
        elif command == "/reset":
            conversation.reset()
            say("everything is taken back")
        return command != "/exit"

    def _answer(self, text: str) -> None:
        """Show the reply to a message as it is made."""
        start = time.perf_counter()
        with Interrupts() as interrupted:
            reply = self._conversation.reply(
                text, progress=True, interrupted=interrupted, **self._options
            )
            said, times, reason = stream(reply.tokens, self._tokenizer.stream())
        self._paces.append(Pace(start, times))
        self.turns.append(
            {
                "user": text,
                "reply": said,
                "prompt_tokens": reply.prompt_tokens,
                "kept_tokens": reply.kept_tokens,
                **self._paces[-1].as_dict(),
                "finish_reason": reason,
            }
        )
        if reason in _ENDINGS:
            ending = _ENDINGS[reason].format(context=self._conversation.context, hint=_HINT)
            say(f"({ending})" if times else f"({ending}; the message was not kept)")

    def _say_summary(self) -> None:
        times = [pace.times for pace in self._paces if pace.times]
        seconds = sum(each[-1] - each[0] for each in times)
        steps = sum(map(len, times)) - len(times)
        speed = f" at {steps / seconds:.1f} a second" if seconds else ""
        held = f"{len(self._conversation.cached)} of {self._conversation.context}"
        say(
            f"{len(self.turns)} replies, {sum(map(len, times))} tokens{speed}; {held} tokens of "
            "context in use"
        )
