"""Tokenizer: characters to ids, ids to embeddings."""

import string

import numpy as np
import pytest
import torch

from russellgrad import Tensor
from russellgrad.backend import Backend
from russellgrad.tokenizer import Tokenizer
from russellgrad.tokenizer_constants import n_words, pad_token_id, vocabulary, vocabulary_map
from tests.helpers import assert_close, rng


def abc(**options: object) -> Tokenizer:
    return Tokenizer.from_text("abc", max_seq_len=6, embed_dim=4, **options)


def test_default_vocabulary_covers_tiny_shakespeare() -> None:
    assert set("\n !$&',-.3:;?" + string.ascii_letters) <= set(vocabulary)
    assert len(set(vocabulary)) == n_words == pad_token_id == len(vocabulary_map)
    assert all(vocabulary[i] == character for character, i in vocabulary_map.items())


def test_forward_gives_embeddings_ids_and_padding(backend: Backend) -> None:
    tokenizer = abc()
    embeddings, ids, padding = tokenizer(["abca", "b"])
    assert embeddings.shape == (2, 4, 4)
    assert ids.numpy().tolist() == [[0, 1, 2, 0], [1, 3, 3, 3]]
    assert padding.numpy().tolist() == [[False] * 4, [False, True, True, True]]
    assert not tokenizer(["ab", "bc"])[2].numpy().any()


def test_embedding_gradients_of_repeated_letters_match_pytorch(backend: Backend) -> None:
    tokenizer = abc()
    table, places = (torch.tensor(p.numpy(), requires_grad=True) for p in tokenizer.parameters())
    embeddings, ids, _ = tokenizer(["abacaa", "cc", "b"])
    expected = table[torch.tensor(ids.numpy())] + places[:6]
    assert_close(embeddings, expected)
    upstream = rng().normal(size=embeddings.shape)
    embeddings.backward(Tensor(upstream))
    expected.backward(torch.tensor(upstream))
    assert_close(tokenizer.token_embedding.grad, table.grad)
    assert tokenizer.positional_encoding is not None
    assert_close(tokenizer.positional_encoding.grad, places.grad)


def test_ids_are_accepted_as_lists_arrays_and_tensors(backend: Backend) -> None:
    tokenizer = abc()
    expected, _, mask = tokenizer(["ab", "c"])
    rows = [[0, 1], [2, 3]]
    for batch in (rows, np.array(rows), np.array(rows, dtype=np.uint8), Tensor(np.array(rows)), ("ab", "c")):
        embeddings, _, padding = tokenizer(batch)
        assert_close(embeddings, expected)
        assert padding.numpy().tolist() == mask.numpy().tolist()


def test_encode_decode_round_trip() -> None:
    tokenizer = Tokenizer(n_words, 100, 2, pad_token_id)
    text = 'KING: "Speak!"\n(Exit.) 3 & $~'
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([*tokenizer.encode("hi"), pad_token_id, pad_token_id]) == "hi"
    with pytest.raises(IndexError, match=r"id 97 is out of range; ids must be in \[0, 96\]"):
        tokenizer.decode([97])


def test_targets_are_the_next_tokens(backend: Backend) -> None:
    assert abc().targets(["abc", "b"]) == [[1, 2, 3], [3, 3, 3]]


def test_characters_outside_the_vocabulary_raise_or_are_dropped(backend: Backend) -> None:
    with pytest.raises(ValueError, match="character 'd' at position 2 is not in the vocabulary of 3"):
        abc()(["ab", "acd"])
    lenient = abc(strict=False)
    assert lenient.encode("a-d-b") == [0, 1]
    with pytest.raises(ValueError, match="'xyz' has no character of the vocabulary"):
        lenient(["a", "xyz"])


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ("abc", TypeError, r"a single string; wrap it in a list"),
        ([], ValueError, "the batch is empty"),
        (["a", ""], ValueError, "the text '' is empty"),
        (["abcabca"], ValueError, "7 tokens is longer than max_seq_len=6"),
        ([[0, 4]], IndexError, r"id 4 is out of range; ids must be in \[0, 4\)"),
        ([[0, -1]], IndexError, "id -1 is out of range"),
        ([[0.5, 1.0]], TypeError, "ids must be integers, got dtype float64"),
        ([[0, 1], [2]], ValueError, "the rows of ids differ in length; fill the shorter ones with padding"),
        ([0, 1], ValueError, r"ids must be \(batch, length\), got shape \(2,\)"),
        ([[3, 3]], ValueError, "all 2 ids are padding"),
        (np.zeros((2, 0), int), ValueError, "all 0 ids are padding"),
    ],
)
def test_bad_batches_raise(backend: Backend, batch: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        abc()(batch)


def test_ids_of_another_tokenizer_raise(backend: Backend) -> None:
    ids = abc().ids(["abca"])
    assert abc().ids(ids) is ids
    assert Tokenizer.from_text("abcd", 6, 4).ids(ids) is ids
    for other in (Tokenizer.from_text("ab", 6, 4), Tokenizer.from_text("abc", 3, 4)):
        with pytest.raises(ValueError, match="Tokenizer: ids below 4 of 4 tokens, made by a tokenizer with another"):
            other(ids)


@pytest.mark.parametrize(
    ("arguments", "vocabulary", "message"),
    [
        ((4, 6, 8, 4), "abc", "vocab_size is 4, but the vocabulary has 3 characters"),
        ((3, 6, 8, 0), "abc", "pad_token_id must be vocab_size, 3, got 0"),
        ((4, 6, 8, 4), "abca", "contains a character twice"),
        ((3, 0, 8, 3), "abc", "sizes must be positive"),
        ((0, 6, 8, 0), "", "sizes must be positive"),
    ],
)
def test_bad_arguments_raise(arguments: tuple[int, int, int, int], vocabulary: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer(*arguments, vocabulary=vocabulary)
