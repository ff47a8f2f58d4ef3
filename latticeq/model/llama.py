"""The Llama forward pass, over linears of any kind.

Each block, on the residual stream x of shape (T, D):

- x += o_proj(attention(rope(q_proj(n)), rope(k_proj(n)), v_proj(n))),  n = rms_norm(x)
- x += down_proj(silu(gate_proj(m)) * up_proj(m)),                      m = rms_norm(x)

with pre-normalisation, rotary positions on queries and keys, H query heads that share G key-value
heads, and a head that may be the embedding matrix. Linears carry a bias only where the architecture
has one, so this one file serves Llama, Mistral and Qwen2.

Token ids in, hidden states or logits out; text only where `Llama.generate` is given some. A `Block`
runs on its own, so that calibration can stream through a model that does not fit in memory.

Shape letters: T new tokens, S cached tokens, D model width, F feed-forward width, H heads, G kv
heads, K head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from latticeq.errors import InputError
from latticeq.linear.base import Linear, Table, apply_shared
from latticeq.model.config import LlamaConfig
from latticeq.model.generate import generate
from latticeq.model.kernels import nll_rows, rms_norm, rotate, swiglu
from latticeq.model.kv.cache import KVCache
from latticeq.model.kv.coding import KVCoding
from latticeq.model.kv.new import new_cache
from latticeq.model.one_token import OneToken
from latticeq.model.rope import frequencies, rotary
from latticeq.model.thread_share import ThreadShare
from latticeq.model.token_cache import Decoder
from latticeq.model.tokenizer import Tokenizer

__all__ = ["BLOCK_LINEARS", "BLOCK_NORMS", "Block", "Llama"]

BLOCK_LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
BLOCK_NORMS = ("input_layernorm", "post_attention_layernorm")

_LOGITS_BYTES = 32 * 2**20  # of logits at a time where only their likelihood is wanted


class Block:
    """One layer: attention and feed-forward, each added to the residual stream.

    Parameters
    ----------
    config : LlamaConfig
    linears : mapping of str to Linear
        One for each name of `BLOCK_LINEARS`.
    norms : mapping of str to (D,) float32
        One for each name of `BLOCK_NORMS`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        linears: Mapping[str, Linear],
        norms: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self.config = config
        self.linears = dict(linears)
        self.norms = dict(norms)
        self._qkv = [linears[name] for name in BLOCK_LINEARS[:3]]
        self._gate_up = [linears[name] for name in BLOCK_LINEARS[4:6]]

    @cached_property
    def _one_token(self) -> OneToken | None:
        return OneToken(self) if OneToken.fits(self) else None

    def __call__(
        self,
        x: NDArray[np.float32],
        turns: tuple[NDArray[np.float32], NDArray[np.float32]],
        cache: KVCache,
        layer: int,
    ) -> NDArray[np.float32]:
        """Run over the next T tokens of a sequence.

        Parameters
        ----------
        x : (T, D) float32
            The residual stream; changed in place.
        turns : pair of (T, K/2) float32
            Cosine and sine at the tokens' positions, see `rotary`.
        cache : KVCache
            Keys and values of the tokens before; those of `x` are appended, not yet counted.
        layer : int
            This block's place in the cache.

        Returns
        -------
        (T, D) float32
            `x`.
        """
        if len(x) == 1 and self._one_token is not None:
            return self._one_token(x, turns, cache, layer)
        normed = self.normed("input_layernorm", x)
        mixed = self.mix(normed, turns, cache, layer)
        x += self.linears["self_attn.o_proj"](mixed)  # (T, D)
        normed = self.normed("post_attention_layernorm", x)
        inner = self.gated(normed)
        x += self.linears["mlp.down_proj"](inner)  # (T, D)
        return x

    def normed(self, norm: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the residual stream after a normalisation of `BLOCK_NORMS`: (T, D) -> (T, D)."""
        out = np.empty_like(x)
        rms_norm(x, self.norms[norm], self.config.rms_norm_eps, out)
        return out

    def mix(
        self,
        normed: NDArray[np.float32],
        turns: tuple[NDArray[np.float32], NDArray[np.float32]],
        cache: KVCache,
        layer: int,
    ) -> NDArray[np.float32]:
        """Return what attention makes of normed tokens, the input of o_proj: (T, D) -> (T, H K)."""
        config = self.config
        q, k, v = apply_shared(self._qkv, normed)  # (T, H K), (T, G K), (T, G K)
        q = q.reshape(len(q), config.num_attention_heads, config.head_dim)  # (T, H, K)
        k = k.reshape(len(k), config.num_key_value_heads, config.head_dim)  # (T, G, K)
        rotate(q, *turns)
        rotate(k, *turns)
        return cache.attend(layer, q, k, v.reshape(k.shape))  # (T, H K)

    def gated(self, normed: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the input of down_proj, silu(gate) * up: (T, D) -> (T, F)."""
        gate, up = apply_shared(self._gate_up, normed)  # (T, F), (T, F)
        swiglu(gate, up)
        return gate


class Llama(Decoder):
    """A model that maps token ids to logits.

    Parameters
    ----------
    config : LlamaConfig
    embedding : Table
        V x D.
    blocks : sequence of Block
    norm : (D,) float32
        The last normalisation.
    head : Linear
        V x D; `embedding` itself if they are tied.
    kv : KVCoding, optional
        How caches keep keys and values; as floats if omitted.
    cache_dtype : np.dtype or type
        Of such floats: float32 or float16.
    context : int, optional
        The default size of a cache; the model's longest if omitted.
    folder : Path, optional
        Where it was loaded from; its tokenizer is there.
    """

    def __init__(
        self,
        config: LlamaConfig,
        embedding: Table,
        blocks: Sequence[Block],
        norm: NDArray[np.float32],
        head: Linear,
        *,
        kv: KVCoding | None = None,
        cache_dtype: DTypeLike = np.float32,
        context: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.embedding = embedding
        self.blocks = list(blocks)
        self.norm = norm
        self.head = head
        self.context = config.longest_context if context is None else context
        self.thread_share = ThreadShare()
        self.kv = kv
        self.cache_dtype = np.dtype(cache_dtype)
        self._turn = frequencies(config)  # (K/2,)

    @property
    def context_limit(self) -> str:
        """What `context` is, in words for errors."""
        is_longest = self.context == self.config.longest_context
        return self.config.context_limit if is_longest else "the context that was asked for"

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices; a tied head counts once."""
        ends = {id(table): table.nbytes for table in (self.embedding, self.head)}
        return sum(ends.values()) + sum(linear.nbytes for linear in self._block_linears())

    @property
    def bits_per_weight(self) -> float:
        """Effective bits per weight over the linears of all blocks, with all side information."""
        weights = sum(f.in_features * f.out_features for f in self._block_linears())
        return 8 * sum(f.nbytes for f in self._block_linears()) / weights

    @property
    def dtype(self) -> str:
        """How the matrices are stored: each dtype that occurs, joined by ``+``."""
        tables: list[Linear] = [self.embedding, self.head]
        return "+".join(sorted({f.dtype for f in [*self._block_linears(), *tables]}))

    def _block_linears(self) -> list[Linear]:
        return [linear for block in self.blocks for linear in block.linears.values()]

    def new_cache(self, context: int | None = None) -> KVCache:
        """Return an empty cache for `context` tokens, by default the model's ``context``."""
        longest = self.context if context is None else context
        return new_cache(self.config, longest, self.kv, dtype=self.cache_dtype)

    def hidden(self, ids: ArrayLike, cache: KVCache) -> NDArray[np.float32]:
        """Run the blocks over the next tokens of a sequence.

        Parameters
        ----------
        ids : (T,) int
            At least one token.
        cache : KVCache
            Holds the tokens before; the new ones are added.

        Returns
        -------
        (T, D) float32
            Hidden states after the last normalisation, which the head turns into logits.

        Raises
        ------
        InputError
            If an id is not in the vocabulary or the cache has no room.
        """
        tokens = self._checked(ids)
        cache.check_room(len(tokens))
        x = self.embedding.rows(tokens)  # (T, D)
        turns = rotary(self._turn, cache.length, len(tokens))  # (T, K/2) each
        for layer, block in enumerate(self.blocks):
            x = block(x, turns, cache, layer)  # (T, D)
        cache.advance(len(tokens))
        normed = np.empty_like(x)  # (T, D)
        rms_norm(x, self.norm, self.config.rms_norm_eps, normed)
        return normed

    def prefill(self, ids: ArrayLike, cache: KVCache) -> NDArray[np.float32]:
        """Take in the next T tokens at once; return the logits after the last: (V,) float32."""
        with self.thread_share if np.size(ids) == 1 else nullcontext():
            last = self.head(self.hidden(ids, cache)[-1:])  # (1, V)
        return last.reshape(-1)

    def decode_step(self, token: int, cache: KVCache) -> NDArray[np.float32]:
        """Take in one token; return the logits after it: (V,) float32."""
        return self.prefill([token], cache)

    def logits(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Return the logits after every token of one sequence: (T,) int -> (T, V) float32.

        All of them are in memory at once; `nll` is for long texts.
        """
        tokens = self._checked(ids)
        return self.head(self.hidden(tokens, self.new_cache(len(tokens))))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the folder that the model was loaded from.

        Raises
        ------
        InputError
            If it was not loaded from a folder.
        FormatError
            If the folder has no tokenizer.
        """
        if self.folder is None:
            raise InputError("this model was not loaded from a folder, so give token ids, not text")
        return Tokenizer.from_folder(self.folder)

    @overload
    def generate(self, prompt: str, **options: Any) -> str: ...

    @overload
    def generate(self, prompt: Sequence[int], **options: Any) -> list[int]: ...

    def generate(self, prompt: str | Sequence[int], **options: Any) -> str | list[int]:
        """Return what follows a prompt: text for text, token ids for token ids.

        Parameters
        ----------
        prompt : str or sequence of int
        **options
            Those of `latticeq.model.generate.generate`. For text, ``stop_ids`` are by default the
            tokenizer's.
        """
        if not isinstance(prompt, str):
            return list(generate(self, prompt, **options))
        options.setdefault("stop_ids", self.tokenizer.stop_ids)
        ids = generate(self, self.tokenizer.tokenize_prompt(prompt), **options)
        return self.tokenizer.detokenize(ids)

    def nll(self, hidden: NDArray[np.float32], targets: ArrayLike) -> NDArray[np.float64]:
        """Return the negative log-likelihood of each target, in nats.

        Parameters
        ----------
        hidden : (T, D) float32
            From `hidden`.
        targets : (T,) int
            The token that followed each.

        Returns
        -------
        (T,) float64

        Notes
        -----
        Logits exist for a few rows at a time, never (T, V).
        """
        follow = self._followers(hidden, targets)
        step = max(1, _LOGITS_BYTES // (4 * self.config.vocab_size))
        out = np.empty(len(hidden), np.float64)  # (T,)
        for first in range(0, len(hidden), step):
            rows = slice(first, first + step)
            nll_rows(self.head(hidden[rows]), follow[rows], out[rows])
        return out

    def _followers(self, hidden: Any, targets: ArrayLike) -> NDArray[np.int64]:
        """Return the targets of hidden states, checked to be one for each."""
        follow = self._checked(targets)
        if len(follow) != len(hidden):
            raise InputError(
                f"{len(hidden)} hidden states and {len(follow)} targets were given; "
                "each state needs the token that followed it"
            )
        return follow

    def _checked(self, ids: ArrayLike) -> NDArray[np.int64]:
        tokens = np.asarray(ids)
        if tokens.ndim != 1 or len(tokens) == 0 or tokens.dtype.kind not in "iu":
            raise InputError(
                f"ids are {tokens.dtype} of shape {tokens.shape}; they must be a sequence of at "
                "least one integer"
            )
        vocabulary = self.config.vocab_size
        if tokens.min() < 0 or tokens.max() >= vocabulary:
            raise InputError(
                f"ids run from {tokens.min()} to {tokens.max()}; the model's vocabulary has ids 0 "
                f"to {vocabulary - 1}. Tokenizer and model must be of one folder"
            )
        return tokens.astype(np.int64)
