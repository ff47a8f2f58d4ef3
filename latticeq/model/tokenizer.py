"""Text to token ids and back, and token ids to a stream of text.

The `tokenizers` library does the work on the folder's ``tokenizer.json``. What is decided here is
which ids end a generation, and when a piece of text may be shown: a token may end in the middle of
a UTF-8 character, and a character is shown whole or not yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.errors import FormatError, InputError, LatticeqError, context
from latticeq.model.tokenizer_growth import check_growth

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["StreamDecoder", "Tokenizer", "read_object"]

_REPLACEMENT = "\ufffd"  # what a decoder makes of bytes that are no character, or not yet one


class Tokenizer:
    """The tokenizer of a model folder.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
    stop_ids : frozenset of int
        Ids that end a generation.
    where : str
        What errors call it.

    See Also
    --------
    Tokenizer.from_folder : the usual way to make one.
    """

    def __init__(
        self, backend: Backend, stop_ids: frozenset[int], where: str = "tokenizer.json"
    ) -> None:
        self._backend = backend
        self._fails = (
            f"{where} may be damaged, copy it again from the original model: it fails on a text"
        )
        self._added = frozenset(backend.get_added_tokens_decoder())
        self.stop_ids = stop_ids

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json`` and the stop ids of a model folder.

        The stop ids are those of ``generation_config.json``, else of ``config.json``, else the
        ``eos_token`` of ``tokenizer_config.json``: chat models end a turn with a token that only
        the first of these names.

        Raises
        ------
        FormatError
            If a file is missing or invalid, the tokenizer could make texts far longer than they
            are, or no file names a stop id: generation would not end.
        """
        from tokenizers import Tokenizer as Backend

        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FormatError(
                f"{path} is missing; copy tokenizer.json, tokenizer_config.json and "
                "generation_config.json from the original model into the folder"
            )
        with context(str(path)), _library_errors("is not a valid tokenizer"):
            backend = Backend.from_file(str(path))
            check_growth(backend)
        # Both would silently change what is tokenized; this class promises the text as it is.
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, _stop_ids(Path(folder), backend), str(path))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def is_added(self, token_id: int) -> bool:
        """Tell whether an id is that of a whole token, such as the end of a turn, not of text."""
        return token_id in self._added

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text; special tokens spelled in it become their ids.

        No beginning-of-text token is added.

        Raises
        ------
        InputError
            If the text has lone surrogates, as arguments and files that are no UTF-8 give.
        FormatError
            If the tokenizer fails, as a damaged one may on some texts only.
        """
        with _library_errors(self._fails):
            try:
                return list(self._backend.encode(text, add_special_tokens=False).ids)
            except TypeError as error:
                raise InputError("the text is not valid Unicode; give it as UTF-8") from error

    def tokenize_prompt(self, text: str) -> list[int]:
        """Return the token ids of a text that a model is to continue.

        They begin with the tokens that the tokenizer puts before every text: Llama 2 and 3, Mistral
        and TinyLlama were trained with one (``<s>``, ``<|begin_of_text|>``) and write worse without
        it; SmolLM2 and Qwen2 have none. A text that spells it gets no second one.

        Raises
        ------
        InputError, FormatError
            As `tokenize`.
        """
        ids = self.tokenize(text)
        with _library_errors(self._fails):
            whole = self._backend.encode("a", add_special_tokens=True)
        n_first = next((i for i, is_it in enumerate(whole.special_tokens_mask) if not is_it), 0)
        first = list(whole.ids[:n_first])
        return ids if not ids or ids[:n_first] == first else first + ids

    def detokenize(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, special tokens spelled out.

        Bytes that are no UTF-8 become U+FFFD. Ids beyond the vocabulary give no text: a model may
        have more rows than its tokenizer has tokens.

        Raises
        ------
        InputError
            If an id is negative or no integer.
        FormatError
            If the tokenizer fails.
        """
        with _library_errors(self._fails):
            try:
                return str(self._backend.decode(list(ids), skip_special_tokens=False))
            except (OverflowError, TypeError) as error:
                raise InputError("token ids must be integers from 0 on") from error

    def stream(self) -> StreamDecoder:
        """Return a decoder that turns one id after another into text."""
        return StreamDecoder(self)


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """Turn what the `tokenizers` library raises into a `FormatError`.

    It raises bare `Exception`, and where its Rust code panics something that is not even one, so
    that nothing catches it by accident: after damage in a tokenizer.json both are to be expected.
    """
    try:
        yield
    except LatticeqError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FormatError(f"{what}: {error}") from error


class StreamDecoder:
    """Turn one token id after another into text, never showing part of a character.

    The concatenation of everything returned equals `Tokenizer.detokenize` of all ids: always with
    a byte-level tokenizer such as Llama 3's, and for valid UTF-8 with Llama 2's, whose decoder
    takes back a shown character when a stray byte follows.

    Parameters
    ----------
    tokenizer : Tokenizer

    Notes
    -----
    Ids are decoded in a window that begins one shown piece back, because some decoders treat the
    first token of a text differently (they strip its leading space). A trailing run of U+FFFD may
    still become characters, so it waits for the next token, or for `finish`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._n_context = 0  # ids at the window's start that only give context
        self._n_shown = 0  # characters of the window's text that were returned

    def push(self, token_id: int) -> str:
        """Add an id and return the text that is certain now, often empty or one word."""
        self._window.append(token_id)
        text = self._tokenizer.detokenize(self._window)
        certain = len(text.rstrip(_REPLACEMENT))
        piece = text[self._n_shown : certain]
        self._n_shown = max(self._n_shown, certain)
        if certain == len(text):
            # Everything is shown: the newest ids become the context, the older ones are done with.
            self._window = self._window[self._n_context :]
            self._n_context = len(self._window)
            self._n_shown = len(self._tokenizer.detokenize(self._window))
        return piece

    def finish(self) -> str:
        """Return what is left: U+FFFD for bytes that never became a character."""
        text = self._tokenizer.detokenize(self._window)[self._n_shown :]
        self._window, self._n_context, self._n_shown = [], 0, 0
        return text


def _stop_ids(folder: Path, backend: Backend) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        eos = read_object(folder / name).get("eos_token_id")
        if eos is None:
            continue
        ids = eos if isinstance(eos, list) else [eos]
        for token_id in ids:
            is_number = isinstance(token_id, int) and not isinstance(token_id, bool)
            is_id = is_number and 0 <= token_id < 1 << 32  # the library's ids have 32 bits
            if not is_id or backend.id_to_token(token_id) is None:
                raise FormatError(f"{folder / name}: eos_token_id is {eos!r}; it must be token ids")
        if ids:
            return frozenset(ids)
    path = folder / "tokenizer_config.json"
    eos = read_object(path).get("eos_token")
    token = eos.get("content") if isinstance(eos, dict) else eos
    token_id = backend.token_to_id(token) if isinstance(token, str) else None
    if token_id is None:
        raise FormatError(
            f"{folder}: no end token: neither generation_config.json nor config.json has "
            "eos_token_id, and tokenizer_config.json names no known eos_token; copy these files "
            "from the original model, or generation would never stop"
        )
    return frozenset([token_id])


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, empty if there is no such file.

    Raises
    ------
    FormatError
        If the file holds something else.
    """
    if not path.exists():
        return {}
    with context(str(path)):
        try:
            document = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"cannot be read as JSON: {error}") from error
        if not isinstance(document, dict):
            raise FormatError("must hold a JSON object")
        return document
