import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.contract import UserError
from modules.networks.text_encoder import PADDING, UNKNOWN, TextEncoder, Vocabulary

CAPTIONS = ["a blue mug with white stripes", "A red chair", "a blue chair"]


def test_vocabulary_is_ranked_by_frequency_and_survives_a_file(tmp_path):
    vocabulary = Vocabulary.from_captions(CAPTIONS)
    assert vocabulary.words[:5] == ["<pad>", "<unk>", "a", "blue", "chair"]
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json").words == vocabulary.words


def test_vocabulary_keeps_the_most_frequent_words():
    assert Vocabulary.from_captions(CAPTIONS, max_words=4).words == ["<pad>", "<unk>", "a", "blue"]


def test_captions_are_padded_cut_and_unknown_words_marked():
    vocabulary = Vocabulary.from_captions(CAPTIONS)
    rows = vocabulary.encode(["", "a green chair!", "a " * 50], 4)
    assert rows[0].tolist() == [PADDING] * 4
    assert rows[1].tolist() == [2, UNKNOWN, 4, PADDING]
    assert rows[2].tolist() == [2] * 4


def test_longer_captions_are_cut_with_a_warning_and_a_count(caplog):
    encoder = TextEncoder(max_words=8, length=3, width=8, num_heads=2)
    encoder.vocabulary = Vocabulary.from_captions(["a red chair"])
    fits, longer = "a red, chair!", "a red chair with four legs"
    embedded, _ = encoder.embed([fits, longer])
    assert torch.equal(embedded[0], embedded[1])
    encoder.embed([longer])
    encoder.embed([longer + " more", fits])
    assert [record.getMessage()[:57] for record in caplog.records] == [
        "1 captions are longer than 3 words and are cut (1 so far)",
        "1 captions are longer than 3 words and are cut (2 so far)",
    ]
    assert encoder.cut == {longer, longer + " more"}


def test_words_without_a_caption_are_named():
    vocabulary = Vocabulary.from_captions(CAPTIONS)
    assert vocabulary.unknown_words("A blue Zeppelin with stripes, ñandú") == ["zeppelin", "ñandú"]
    assert vocabulary.unknown_words("") == []


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_no_text_crashes_the_tokenizer(text):
    rows = Vocabulary.from_captions(["une tasse é 漢"]).encode([text], 6)
    assert rows.shape == (1, 6)


def test_a_damaged_vocabulary_is_refused():
    with pytest.raises(UserError, match="not a vocabulary"):
        Vocabulary(["a", "b"])


def test_an_embedding_does_not_depend_on_the_rest_of_the_batch():
    torch.manual_seed(0)
    encoder = TextEncoder(max_words=16, length=6, width=8, num_layers=1, num_heads=2).eval()
    words = Vocabulary.from_captions(CAPTIONS).encode([*CAPTIONS, ""], 6)
    together = encoder(words)
    for i in range(len(words)):
        torch.testing.assert_close(encoder(words[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-6)


def test_word_order_and_padding_word_get_gradient():
    encoder = TextEncoder(max_words=16, length=6, width=8, num_layers=1, num_heads=2)
    encoder(torch.tensor([[2, 3, PADDING, PADDING, PADDING, PADDING]])).square().sum().backward()
    gradient = encoder.word_embedding.weight.grad
    assert gradient is not None
    assert gradient[[PADDING, 2, 3]].abs().amax(dim=1).min() > 0
    assert encoder.position_embedding.grad is not None
    swapped = encoder(torch.tensor([[3, 2, 0, 0, 0, 0]])) - encoder(
        torch.tensor([[2, 3, 0, 0, 0, 0]])
    )
    assert swapped.abs().max() > 1e-3
