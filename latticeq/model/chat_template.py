"""The chat template of a model folder: from a conversation to the text that the model was made for.

A template is a Jinja program. Where it is looked for, in this order, as transformers does:

- ``chat_template.jinja``;
- ``chat_template`` in ``tokenizer_config.json``: a text, or a list of named ones, of which
  ``default`` is taken.

It is given ``messages``, each with ``role`` and ``content``, ``add_generation_prompt``, the special
tokens of the tokenizer by their roles (``bos_token``, ``eos_token``, ...), and None for ``tools``
and ``documents``. It runs in `latticeq.model.template_sandbox`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latticeq.errors import FormatError, InputError, LatticeqError, context
from latticeq.model.template_sandbox import Raised, compile_template
from latticeq.model.tokenizer import read_object

__all__ = ["ChatTemplate", "Message"]

Message = dict[str, str]
"""A turn: ``role``, which is "system", "user" or "assistant", and ``content``."""

_MAX_CHARACTERS = 1 << 18  # the longest that models have come with are a tenth of this
_FILE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"


class ChatTemplate:
    r"""A compiled chat template.

    Parameters
    ----------
    source : str
        The Jinja program.
    tokens : mapping, optional
        Special tokens by their roles, such as ``bos_token``.
    where : str
        What messages call it.

    Raises
    ------
    FormatError
        If it is not valid Jinja, or longer than any template is.
    MissingDependencyError
        If jinja2 is not installed.

    See Also
    --------
    ChatTemplate.from_folder : the usual way to make one.

    Examples
    --------
    >>> source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    >>> ChatTemplate(source).render([{"role": "user", "content": "hi"}])
    '[user] hi\n'
    """

    def __init__(
        self, source: str, tokens: Mapping[str, str] | None = None, where: str = "chat_template"
    ) -> None:
        self._tokens = dict(tokens or {})
        self._where = where
        with context(where):
            if len(source) > _MAX_CHARACTERS:
                raise FormatError(
                    f"a chat template of {len(source)} characters; at most {_MAX_CHARACTERS} are "
                    "taken"
                )
            try:
                self._render = compile_template(source)
            except LatticeqError:
                raise
            except Exception as error:  # from inside Python's compiler, too
                line = getattr(error, "lineno", None)
                place = "" if line is None else f"line {line}: "
                raise FormatError(
                    f"{place}the chat template is not valid Jinja: {_words(error)}"
                ) from error

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """Read the template and the special tokens of a model folder.

        Raises
        ------
        FormatError
            If there is no template, or it or a file is invalid.
        MissingDependencyError
            If jinja2 is not installed.
        """
        folder = Path(folder)
        config = read_object(folder / _CONFIG)
        # Where the first file lacks a token, transformers of some years ago wrote it to the other.
        tokens = _tokens(read_object(folder / "special_tokens_map.json")) | _tokens(config)
        path = folder / _FILE
        if path.is_file():
            return cls(_read(path), tokens, str(path))
        path = folder / _CONFIG
        with context(str(path)):
            source = _from_config(config)
        return cls(source, tokens, str(path))

    def render(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        """Return a conversation as text.

        Parameters
        ----------
        messages : sequence of dict
            Each with ``role`` and ``content``.
        reply : bool
            End with what begins the assistant's next turn.

        Raises
        ------
        InputError
            If the template itself refuses the conversation.
        FormatError
            If the template fails, reaches for what the sandbox does not give, or takes more time
            or memory than any conversation needs.
        """
        variables: dict[str, Any] = dict(self._tokens)
        variables |= {"messages": [dict(message) for message in messages], "tools": None}
        variables |= {"documents": None, "add_generation_prompt": reply}
        with context(self._where):
            try:
                return self._render(**variables)
            except Raised as error:
                roles = ", ".join(message["role"] for message in messages)
                raise InputError(
                    f"the chat template refuses this conversation ({roles}): {error}. If it has no "
                    "place for a system prompt, leave that out"
                ) from error
            except FormatError as error:
                raise FormatError(f"the chat template was stopped: {error}") from error
            except Exception as error:  # whatever the operations in a template can raise
                raise FormatError(f"the chat template failed: {_words(error)}") from error


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _read(path: Path) -> str:
    with context(str(path)):
        if path.stat().st_size > 4 * _MAX_CHARACTERS:  # bytes of a character in UTF-8
            raise FormatError(f"is no chat template: at most {_MAX_CHARACTERS} characters")
        try:
            return path.read_text("utf-8")
        except ValueError as error:
            raise FormatError(f"is not UTF-8 text: {error}") from error


def _from_config(config: Mapping[str, Any]) -> str:
    """Return the template that a ``tokenizer_config.json`` holds."""
    found = config.get("chat_template")
    if found is None:
        raise FormatError(
            f"has no chat_template, and there is no {_FILE} beside it. Copy the one or the other "
            "from the original model's folder; if that has none, the model was not made to chat, "
            "and `latticeq generate` continues a text with it"
        )
    if isinstance(found, str):
        return found
    named = _named(found)
    if "default" not in named:
        raise FormatError(
            f"chat_template has templates named {', '.join(named) or 'nothing'}, and none named "
            f"default; write the one that is to be used to {_FILE}"
        )
    return named["default"]


def _named(found: object) -> dict[str, str]:
    """Return a list of ``{"name": ..., "template": ...}`` as a mapping."""
    named = {}
    for item in found if isinstance(found, list) else [found]:
        fields = item if isinstance(item, dict) else {}
        name, source = fields.get("name"), fields.get("template")
        if not isinstance(name, str) or not isinstance(source, str):
            raise FormatError(
                "chat_template must be a text, or a list of objects with a name and a template"
            )
        named[name] = source
    return named


def _tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return special tokens by their roles; some files keep each in an object."""
    found = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            found[name] = content
    return found
