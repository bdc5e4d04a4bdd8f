"""How a reply is drawn and where it ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.inference.chat import Reply, ReplyText, Sampling


@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3), st.integers(1, 9))
def test_a_reply_ends_before_the_first_stop_text_and_its_pieces_are_its_text(text, stop, limit):
    """Pieces are certain: no text is sent that a stop text takes back."""
    whole = text[:limit]
    ended = next((n for n in range(limit + 1) if any(each in whole[:n] for each in stop)), None)
    expected = whole if ended is None else min((whole[: whole.find(s)] for s in stop if s in whole[:ended]), key=len)
    logits = {letter: torch.nn.functional.one_hot(torch.tensor(number), 4) for number, letter in enumerate("abc")}
    reply = Reply(
        text=ReplyText(lambda ids: "".join("abc"[token] for token in ids), stop), max_tokens=limit, stop_ids={3}
    )
    pieces = []
    for letter in text:
        pieces.append(reply.take(logits[letter]))
        if reply.finish_reason:
            break
    else:
        pieces.append(reply.take(torch.tensor([0, 0, 0, 1])))
    assert "".join(pieces) == reply.text.sent == expected
    assert reply.finish_reason == ("length" if len(text) >= limit and ended is None else "stop")


def test_a_character_of_many_tokens_is_one_piece():
    tokenizer = ChatTokenizer.train(["a red circle"], 300)
    text = "für 3 €: 🦊"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text)
    reply = ReplyText(tokenizer.decode)
    assert [piece for piece in map(reply.add, ids) if piece] == list(text)
    cut = ReplyText(tokenizer.decode)
    assert [cut.add(token) for token in ids[-4:-1]] == [""] * 3 and cut.finish() == tokenizer.decode(ids[-4:-1])


def test_tokens_are_drawn_with_their_probability_from_the_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    drawn = torch.tensor([Sampling(temperature=1.0, seed=seed).choose(logits, 0) for seed in range(2000)])
    shares = drawn.bincount(minlength=4) / 2000
    assert (shares - torch.tensor([0.5, 0.3, 0.15, 0.05])).abs().max() < 0.04  # 3.5 standard deviations
    assert {Sampling(temperature=1.0, top_p=0.5, seed=seed).choose(logits, 0) for seed in range(50)} == {0}
    assert {Sampling(temperature=1.0, top_p=0.51, seed=seed).choose(logits, 0) for seed in range(99)} == {0, 1}
    cold = {Sampling(temperature=0.01, seed=seed).choose(logits, 0) for seed in range(50)}
    assert cold == {0} == {Sampling(temperature=0.0, seed=seed).choose(logits, 0) for seed in range(9)}


@pytest.mark.parametrize("number", [0, 1])
def test_a_draw_is_a_function_of_seed_and_place(number):
    logits = torch.zeros(1000)
    draws = [Sampling(temperature=1.0, seed=seed).choose(logits, number) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != Sampling(temperature=1.0, seed=1).choose(logits, number + 1)
