"""The quick look names every record that shares enough telling words, and hardly another one."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from intake import word_probes
from intake.word_probes import WordProbes

WORDS = st.text("abc0é图", min_size=1, max_size=20).map(lambda word: word.encode("utf-8"))
PROBES = st.tuples(WORDS, st.integers(0, 3), st.floats(0.1, 5))


def look(probes: list[tuple[bytes, int, float]], needed: list[float], texts: list[bytes]) -> list[bytes]:
    return list(WordProbes(probes, needed).suspects((text, text) for text in texts))


def test_a_record_is_named_that_has_enough_of_the_weight_in_any_order() -> None:
    probes = [(b"lighthouse", 0, 2.0), (b"keeper", 0, 1.5), (b"fog", 0, 1.0)]
    texts = [b"fog and keeper", b"keeper", b"a lighthouse  keeper", b"", b"fog fog fog", b"foggy keepers"]
    assert look(probes, [2.5], texts) == [texts[0], texts[2]]


def test_words_of_one_known_record_do_not_count_for_another() -> None:
    assert look([(b"fog", 0, 1.0), (b"keeper", 1, 1.0), (b"fog", 1, 1.0)], [2.0, 2.0], [b"fog"]) == []
    assert look([(b"fog", 0, 1.0), (b"keeper", 1, 1.0)], [2.0, 2.0], [b"fog keeper"]) == []


def test_words_are_told_apart_by_their_ends_and_their_length() -> None:
    texts = [b"telegraph", b"telegraphs", b"telegrapx", b"xelegraph", b"tele graph", b"telegrap", b"elegraph"]
    assert look([(b"telegraph", 0, 1.0)], [1.0], texts) == [b"telegraph"]


def test_a_text_of_many_pieces_is_looked_through_to_its_end() -> None:
    texts = [b"%d rain" % number * 50 for number in range(2000)]
    texts[1::400] = [b"%d lighthouse" % number for number in range(5)]
    assert sum(map(len, texts)) > 2 * word_probes.PIECE_BYTES
    assert look([(b"lighthouse", 0, 1.0)], [1.0], texts) == texts[1::400]


@given(
    st.lists(PROBES, min_size=1, max_size=12, unique_by=lambda probe: probe[:2]), st.lists(st.lists(WORDS))
)
def test_no_record_is_missed_that_has_enough_of_the_weight(
    probes: list[tuple[bytes, int, float]], records: list[list[bytes]]
) -> None:
    needed = [1.0] * 4
    texts = [b" ".join(words) + b" %d" % number for number, words in enumerate(records)]
    named = look(probes, needed, texts)
    for words, text in zip(records, texts, strict=True):
        found: dict[int, float] = defaultdict(float)
        for word, known, weight in probes:
            found[known] += weight * (word in words)
        if any(weight >= needed[known] for known, weight in found.items()):
            assert text in named
