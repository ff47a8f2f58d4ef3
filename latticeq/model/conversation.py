"""A conversation with a model: turns as text, and a cache that is kept from one to the next.

Every turn the whole conversation is rendered and tokenized anew, because a template may write an
older turn in another way than it was when it was new. What the ids have in common with those in the
cache is not taken in again (`latticeq.model.token_cache`); in most templates that is everything but
the last reply's last token, its end, and the new message.

A message that does not fit is refused, and nothing is ever forgotten to make room for it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from latticeq.errors import InputError, LatticeqError
from latticeq.model.chat_template import ChatTemplate, Message
from latticeq.model.generate import StopReason, generate
from latticeq.model.token_cache import Decoder, TokenCache
from latticeq.model.tokenizer import Tokenizer

__all__ = ["Conversation", "Reply", "one_turn", "stop_ids"]


@dataclass(frozen=True)
class Reply:
    """A reply that is being made.

    Attributes
    ----------
    tokens : generator
        Yields its tokens, and returns why it ended.
    prompt_tokens : int
        Tokens of the conversation before it, its message included.
    kept_tokens : int
        Those of them that are in the cache already.
    """

    tokens: Generator[int, None, StopReason]
    prompt_tokens: int
    kept_tokens: int


class Conversation:
    """Turns of a user and of a model.

    Parameters
    ----------
    model : Decoder
        Such as a `Llama`.
    tokenizer : Tokenizer
    template : ChatTemplate
        All three of one folder.
    system : str, optional
        The system prompt; without it, the template may have one of its own.

    Attributes
    ----------
    system : str or None
        As given; it may be changed at any time.
    turns : list of tuple
        What the user and the model said.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        system: str | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._stop_ids = stop_ids(tokenizer, template)
        self._cache = TokenCache(model)
        self.system = system
        self.turns: list[tuple[str, str]] = []

    @property
    def context(self) -> int:
        """The most tokens that the conversation may have."""
        return self._model.context

    @property
    def cached(self) -> tuple[int, ...]:
        """The tokens in the cache."""
        return self._cache.ids

    def prompt(self, text: str) -> list[int]:
        """Return the tokens of the conversation with a new message, and what begins its reply.

        Raises
        ------
        InputError, FormatError
            As `ChatTemplate.render`.
        """
        messages = [] if self.system is None else [_message("system", self.system)]
        for user, reply in self.turns:
            messages += [_message("user", user), _message("assistant", reply)]
        messages.append(_message("user", text))
        return self._tokenizer.tokenize(self._template.render(messages))

    def reply(self, text: str, **options: Any) -> Reply:
        """Return the reply to a message; when its tokens were made, both belong to what was said.

        A reply that ends early, because the caller stops asking or by `interrupted`, is kept as far
        as it came; if it has no token yet, the message is not kept either.

        Parameters
        ----------
        text : str
            What the user says.
        **options
            Those of `latticeq.model.generate.generate`; `stop_ids` and `cache` are set here.

        Raises
        ------
        InputError
            If the message does not fit into the context with all that was said before,
            if the template refuses it, or if an option is out of range.
        FormatError
            If the template fails.
        LatticeqError
            While tokens are made: if the model's logits are not numbers.
        """
        prompt = self.prompt(text)
        if len(prompt) >= self.context:
            own = len(self._tokenizer.tokenize(text))
            raise InputError(
                f"this message of {own} tokens, with what was said before and what frames it, "
                f"makes a conversation of {len(prompt)} tokens; the model's context is "
                f"{self.context}, and the reply needs at least one of them. Nothing was forgotten "
                "to make room: take turns back, start anew, or send a shorter message"
            )
        tokens = generate(
            self._model, prompt, stop_ids=self._stop_ids, cache=self._cache, **options
        )
        return Reply(self._added(text, tokens), len(prompt), self._cache.common(prompt))

    def undo(self) -> bool:
        """Take back the last turn; return False if there is none."""
        if self.turns:
            self.turns.pop()
            return True
        return False

    def reset(self) -> None:
        """Take back all turns; the system prompt stays."""
        self.turns.clear()

    def _added(
        self, text: str, tokens: Generator[int, None, StopReason]
    ) -> Generator[int, None, StopReason]:
        """Yield the same; what came is a turn, however it ended, but not if an error ended it."""
        ids: list[int] = []
        reason: StopReason = "interrupted"
        try:
            while True:
                token = next(tokens)
                ids.append(token)
                yield token
        except StopIteration as end:
            reason = end.value
        except (GeneratorExit, KeyboardInterrupt):
            self._add(text, ids, reason)
            raise
        self._add(text, ids, reason)
        return reason

    def _add(self, text: str, ids: list[int], reason: StopReason) -> None:
        if ids or reason != "interrupted":
            self.turns.append((text, self._tokenizer.detokenize(ids)))


def one_turn(tokenizer: Tokenizer, template: ChatTemplate, text: str) -> list[int]:
    """Return the tokens of a conversation that begins with a message and expects a reply."""
    return tokenizer.tokenize(template.render([_message("user", text)]))


def stop_ids(tokenizer: Tokenizer, template: ChatTemplate) -> frozenset[int]:
    """Return the ids that end a reply: the tokenizer's, and the one that ends a turn here.

    Some models' files name only the token that ends a text, which then follows the turn's end.
    """
    mark = "the reply"
    try:
        text = template.render([_message("user", "a"), _message("assistant", mark)], reply=False)
    except LatticeqError:  # a template with wishes of its own says so when a message is sent
        return tokenizer.stop_ids
    _, found, after = text.rpartition(mark)
    ids = tokenizer.tokenize(after.lstrip()) if found else []
    ends_turn = ids[:1] if ids and tokenizer.is_added(ids[0]) else []
    return tokenizer.stop_ids.union(ends_turn)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
