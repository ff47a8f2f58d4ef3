"""Conversations: what is taken in anew, what is kept and what ends a reply, what does not fit."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from latticeq.errors import InputError
from latticeq.model.chat_template import ChatTemplate
from latticeq.model.conversation import Conversation, one_turn, stop_ids
from latticeq.model.loader import load
from latticeq.model.token_cache import Decoder
from latticeq.model.tokenizer import Tokenizer
from tests.chat_templates import ALTERNATING, CHATML, PLAIN, TRIMMED
from tests.tiny_model import byte_config, write_byte_model

END, START = 256, 257


def byte_tokenizer(*stops: int) -> Tokenizer:
    """Return bytes, and ChatML's two marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<|im_start|>")])
    return Tokenizer(backend, frozenset(stops))


class Scripted(Decoder):
    """A model that says one scripted reply after the other, and notes what it was given."""

    class Cache(list):
        def truncate(self, length):
            assert length <= len(self)
            del self[length:]

    def __init__(self, tokenizer, *replies, context=500):
        self.context = context
        self.caches = []
        self.taken_in = []
        self._replies = [[*tokenizer.tokenize(reply), END] for reply in replies]
        self._left = []

    def new_cache(self, context=None):
        self.caches.append(self.Cache())
        return self.caches[-1]

    def prefill(self, ids, cache):
        cache.extend(ids)
        if len(ids) > 1:  # a prompt, and no token of a reply
            self.taken_in.append(len(ids))
            self._left = self._replies.pop(0)
        return np.eye(258, dtype=np.float32)[self._left.pop(0)]


def talk(template, *replies, system=None, context=500):
    tokenizer = byte_tokenizer(END)
    model = Scripted(tokenizer, *replies, context=context)
    return model, Conversation(model, tokenizer, ChatTemplate(template), system)


def say(conversation, text, **options):
    """Return a reply's text, why it ended, and the counts of tokens."""
    reply = conversation.reply(text, **options)
    ids = []
    while True:
        try:
            ids.append(next(reply.tokens))
        except StopIteration as end:
            text = byte_tokenizer().detokenize(ids)
            return text, end.value, reply.prompt_tokens, reply.kept_tokens


def test_only_new_tokens_are_taken_in():
    model, conversation = talk(CHATML, "Hi!", "Fine.", "Bye.", system="Be brief.")
    frame = ChatTemplate(CHATML)
    tokenizer, held = byte_tokenizer(), 0
    for text, reply in (("Hello", "Hi!"), ("How are you?", "Fine."), ("Bye", "Bye.")):
        prompt = conversation.prompt(text)
        assert say(conversation, text, max_tokens=50) == (reply, "stop", len(prompt), held)
        assert model.taken_in.pop() == len(prompt) - held
        held = len(prompt) + len(reply)
        assert conversation.cached == tuple(prompt + tokenizer.tokenize(reply))
        assert list(conversation.cached) == model.caches[0]
    assert conversation.turns == [("Hello", "Hi!"), ("How are you?", "Fine."), ("Bye", "Bye.")]
    said = [{"role": "system", "content": "Be brief."}]
    for user, reply in conversation.turns[:2]:
        said += [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    said.append({"role": "user", "content": "Bye"})
    assert prompt == tokenizer.tokenize(frame.render(said))
    assert len(model.caches) == 1


def test_a_template_that_rewrites_old_turns_is_followed():
    model, conversation = talk(TRIMMED, " Hi! ", "Fine.")
    say(conversation, "Hello", max_tokens=50)
    _, _, prompt, kept = say(conversation, "So?", max_tokens=50)
    text = byte_tokenizer().detokenize(conversation.cached)
    assert text == "u:Hello\na:Hi!\nu:So?\na:Fine."
    assert kept == len("u:Hello\na:")
    assert model.taken_in[-1] == prompt - kept


def test_a_system_prompt_that_moves_to_the_last_message_is_followed():
    model, conversation = talk(ALTERNATING, "Hi!", "Fine.", system="S")
    say(conversation, "A", max_tokens=50)
    assert byte_tokenizer().detokenize(conversation.cached).startswith("[INST]S\n\nA[/INST]")
    _, _, prompt, kept = say(conversation, "B", max_tokens=50)
    text = byte_tokenizer().detokenize(conversation.cached)
    assert text.startswith("[INST]A[/INST]Hi![INST]S\n\nB[/INST]")
    assert kept == len("[INST]")
    assert model.taken_in[-1] == prompt - kept


def test_turns_are_taken_back_and_the_system_prompt_changes():
    _, conversation = talk(PLAIN, "1", "2", "3", "4")
    for text in ("a", "b"):
        say(conversation, text)
    assert conversation.undo()
    assert say(conversation, "c")[3] == len("u:a\na:1\nu:")
    assert conversation.turns == [("a", "1"), ("c", "3")]
    conversation.reset()
    assert not conversation.undo()
    conversation.system = "S"
    say(conversation, "d")
    assert byte_tokenizer().detokenize(conversation.cached) == "s:S\nu:d\na:4"


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_came():
    _, conversation = talk(PLAIN, "long reply", "ok")
    asked = itertools.chain([False] * 4, itertools.repeat(True))
    assert say(conversation, "a", interrupted=lambda: next(asked))[:2] == ("long", "interrupted")
    assert conversation.turns == [("a", "long")]
    assert byte_tokenizer().detokenize(conversation.cached) == "u:a\na:lon"
    assert say(conversation, "b")[:2] == ("ok", "stop")
    assert byte_tokenizer().detokenize(conversation.cached) == "u:a\na:long\nu:b\na:ok"


def test_a_message_without_a_reply_is_not_kept():
    _, conversation = talk(PLAIN, "x", "ok")
    assert say(conversation, "a", interrupted=lambda: True)[:2] == ("", "interrupted")
    assert conversation.turns == []
    assert say(conversation, "b")[0] == "ok"
    assert conversation.turns == [("b", "ok")]


@pytest.mark.parametrize("count", [0, 3])
def test_a_caller_that_stops_asking_keeps_what_came(count):
    _, conversation = talk(PLAIN, "long reply")
    tokens = conversation.reply("a").tokens
    taken = [next(tokens) for _ in range(count)]
    tokens.close()
    assert len(taken) == count
    assert conversation.turns == ([("a", "lon")] if count else [])


def test_an_empty_reply_is_one():
    _, conversation = talk(PLAIN, "")
    assert say(conversation, "a")[:2] == ("", "stop")
    assert conversation.turns == [("a", "")]


def test_a_message_that_does_not_fit_is_refused_with_the_figures():
    model, conversation = talk(PLAIN, "one", "two", context=40)
    say(conversation, "a" * 20)
    before = conversation.cached
    words = (
        r"this message of 6 tokens, with .* makes a conversation of 40 tokens; the model's "
        r"context is 40, .* Nothing was forgotten .* take turns back, start anew, or send a shorter"
    )
    with pytest.raises(InputError, match=words):
        conversation.reply("b" * 6)
    assert conversation.turns == [("a" * 20, "one")]
    assert conversation.cached == before
    assert say(conversation, "b" * 5)[:2] == ("tw", "context")  # one place, and one never fed back
    assert model.caches[0] == list(conversation.cached)


def test_what_ends_a_turn_ends_a_reply_whatever_the_files_say():
    tokenizer = byte_tokenizer(7)
    assert stop_ids(tokenizer, ChatTemplate(CHATML)) == {7, END}
    spaced = CHATML.replace("<|im_end|>", " <|im_end|>")
    assert stop_ids(tokenizer, ChatTemplate(spaced)) == {7, END}
    assert stop_ids(tokenizer, ChatTemplate(PLAIN)) == {7}
    assert stop_ids(tokenizer, ChatTemplate("{{ raise_exception('no') }}")) == {7}
    assert stop_ids(tokenizer, ChatTemplate("<|im_end|>{{ messages[0].content }}")) == {7}


def test_one_turn():
    ids = one_turn(byte_tokenizer(), ChatTemplate(CHATML), "Hi")
    assert [i for i in ids if i > 255] == [START, END, START]
    assert byte_tokenizer().detokenize(ids) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_real_model_says_on_a_kept_cache_what_it_says_on_a_fresh_one(tmp_path):
    config = byte_config("llama", max_position_embeddings=2000, head_dim=16)
    folder = write_byte_model(tmp_path, config)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    model, tokenizer = load(folder), Tokenizer.from_folder(folder)
    template = ChatTemplate(TRIMMED)
    conversation = Conversation(model, tokenizer, template)
    for text in ("Hello there", "And now?", "Ünïcode 日本語", "Good bye"):
        prompt = conversation.prompt(text)
        reply = conversation.reply(text, max_tokens=40)
        ids = list(reply.tokens)
        assert ids == model.generate(prompt, max_tokens=40, stop_ids={1})
        assert reply.kept_tokens > 0 or not conversation.turns[1:]
        assert conversation.turns[-1] == (text, tokenizer.detokenize(ids))
