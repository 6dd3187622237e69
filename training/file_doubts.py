"""What makes a file doubtful without being wrong: facts about its records that want a person's look.

A test on held-out records cannot see these: what is held out of a file has the file's own faults. Nothing
here refuses a file; the version it becomes is held, with the reason, until somebody promotes it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import orjson

from config import PromotionConfig
from evaluation.comparison import paired_bootstrap
from intake.formats import Record
from intake.report import ReportCard

LOOKED_AT = 20_000
"""Records of a file that are looked at, from its start."""
FEWEST = 20
"""With fewer records of a kind there is no share to speak of."""
MOST_COPIES, MOST_CONTRADICTIONS, MOST_SAME_ANSWERS = 0.5, 0.1, 0.5
MOST_ORDERS, MOST_UNFINISHED, MOST_OTHER_LANGUAGE = 0.05, 0.5, 0.5
MOST_LEFT_OPEN = 0.1
"""Share of answers that may end in a word like 'the' or 'and', which nothing whole ends in."""
FEWEST_WORDS = 4
"""Different common words that tell a language; a label may be one of them by chance."""
FEWEST_ENDINGS = 10
"""Different last words of answers that were cut; answers made to one pattern end in fewer."""
LONG_ANSWER_WORDS = 5
"""Shorter answers are labels, which many questions may share."""

_WORD = re.compile(r"[^\W_]+")
_SENTENCE_INSIDE = re.compile(r"[.!?。！？][\"')\]]*\s+\S")
_FINISHED = re.compile(r"[.!?:;。！？…`\"')\]}>|*]\s*$")
_ORDER = re.compile(
    r"\b(?:ignore|disregard|forget)\b[^.!?\n]{0,40}\b(?:instructions?|prompts?|rules|guidelines)\b"
    r"|\bsystem (?:prompt|override)\b|\byou are now\b|<\|[a-z_]+\|>",
    re.IGNORECASE,
)
_OPEN_END = re.compile(
    r"\b(?:the|an|and|or|of|und|oder|ein|eine|einen|einem|einer|le|les|un|une|et|ou|des|los|las|una|gli|uma|het|een)"
    r"\s*$",
    re.IGNORECASE,
)
_FUNCTION_WORDS = {
    "English": "the and of to in is that it for was with as on are this be by from",
    "German": "der die das und ist nicht ein eine zu den mit sich auf für im dem es von",
    "French": "le la les et est une des du dans que pour pas qui sur au il avec ce",
    "Spanish": "el los las y es una del que por con para no se su como más al pero",
    "Italian": "il di che è una per non sono con del la gli della si anche più nel ma",
    "Portuguese": "o os as e é uma do da que não para com em no na mais se por",
    "Dutch": "de het een en van is dat niet op te zijn met voor er aan ook als maar",
}
_LANGUAGE_OF = {
    word: [name for name, words in _FUNCTION_WORDS.items() if word in words.split()]
    for word in set(chain.from_iterable(words.split() for words in _FUNCTION_WORDS.values()))
}
_LANGUAGE_NAMES = re.compile(
    r"\b(?:translat\w*|übersetz\w*|tradu\w*|language|sprache|langue|idioma|lingua|english|german|french|"
    r"spanish|italian|portuguese|dutch|russian|chinese|japanese|korean|arabic|hebrew|greek|hindi|polish|"
    r"ukrainian|turkish|swedish|latin|deutsch|français|español|italiano|português|nederlands|englisch)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, with all that was said before it, and its answer."""

    prompt: str
    answer: str


def doubts_about(report: ReportCard, exchanges: Sequence[Exchange]) -> list[str]:
    """Return a sentence for each thing a person should look at; none for a file as it should be."""
    judges: Iterable[Callable[[], str | None]] = (
        lambda: _copies(report, exchanges),
        lambda: _contradictions(exchanges),
        lambda: _same_answers(exchanges),
        lambda: _orders(exchanges),
        lambda: _unfinished(exchanges),
        lambda: _left_open(exchanges),
        lambda: _cut_at_one_length(exchanges),
        lambda: _other_language(exchanges),
    )
    return [f"needs a person: {found}" for judge in judges if (found := judge()) is not None]


def unfit_answers(
    matched: Sequence[float | None],
    mismatched: Sequence[float | None],
    config: PromotionConfig,
    seed: int,
) -> str | None:
    """Say so when, to the trained model, the file's answers fit their questions no better than others'.

    Answers that have nothing to do with what was asked are like that, and so are facts that nothing in the
    rest of the file foretells: only a person can tell the two apart. Where a loss is no number, which JSON
    keeps as null, there is no telling, and the candidate is held for that.
    """
    own, others = _numbers(matched), _numbers(mismatched)
    if not own or len(own) + len(others) < len(matched) + len(mismatched):
        return None
    found = paired_bootstrap(others, own, confidence=config.confidence, seed=seed, alternative="better")
    if found.p_value < 1 - config.confidence:
        return None
    return (
        f"needs a person: after training, the answers of {len(matched)} held-out records are no likelier "
        f"after their own questions than after other questions of the file ({-found.mean:+.3f} nats per "
        "token); look whether questions and answers have been mixed up"
    )


def _numbers(losses: Sequence[float | None]) -> list[float]:
    return [loss for loss in losses if loss is not None and math.isfinite(loss)]


def read_exchanges(*files: Path) -> list[Exchange]:
    """Return the last exchange of the conversations in files of records, as many as are looked at."""
    return list(islice(chain.from_iterable(map(_exchanges_of, files)), LOOKED_AT))


def _exchanges_of(file: Path) -> Iterator[Exchange]:
    if not file.is_file():
        return
    with open(file, "rb") as lines:
        for line in lines:
            record = Record.from_json(orjson.loads(line))
            if record.kind != "chat" or record.messages[-1]["role"] != "assistant":
                continue
            *before, last = (str(message.get("content") or "") for message in record.messages)
            yield Exchange("\n".join(before), last)


def _copies(report: ReportCard, exchanges: Sequence[Exchange]) -> str | None:
    """Find a file that is one record, or a few, again and again, with other case or punctuation perhaps.

    Exact copies were counted in the whole file; of the others in it, those not looked at are taken to be like
    those that were.
    """
    looked_at = len(exchanges)
    distinct = len({(_plain(one.prompt), _plain(one.answer)) for one in exchanges})
    others = max(looked_at, report.accepted + report.held_out + report.withheld)
    share = (looked_at - distinct) / looked_at if looked_at else 0.0
    copies, total = report.duplicates + round(share * others), report.duplicates + others
    if total < FEWEST or copies <= MOST_COPIES * total:
        return None
    about = "about " if share and looked_at < others else ""
    return (
        f"{about}{copies} of {total} records are copies of another but for case and punctuation; look "
        "whether the file was made right"
    )


def _contradictions(exchanges: Sequence[Exchange]) -> str | None:
    answers: dict[str, set[str]] = {}
    for one in exchanges:
        answers.setdefault(_plain(one.prompt), set()).add(_plain(one.answer))
    disputed = {prompt for prompt, given in answers.items() if len(given) > 1}
    records = sum(_plain(one.prompt) in disputed for one in exchanges)
    if len(exchanges) < FEWEST or records <= MOST_CONTRADICTIONS * len(exchanges):
        return None
    return (
        f"{records} of {len(exchanges)} records ask what another record answers differently; look which of "
        "the answers is right"
    )


def _same_answers(exchanges: Sequence[Exchange]) -> str | None:
    long = [one for one in exchanges if len(one.answer.split()) >= LONG_ANSWER_WORDS]
    prompts = len({_plain(one.prompt) for one in long})
    if prompts < FEWEST or prompts <= MOST_SAME_ANSWERS * len(exchanges):
        return None
    ((answer, count),) = Counter(_plain(one.answer) for one in long).most_common(1)
    if count <= MOST_SAME_ANSWERS * len(exchanges):
        return None
    return f"{count} of {len(exchanges)} questions have the same answer, {_excerpt(answer)}"


def _orders(exchanges: Sequence[Exchange]) -> str | None:
    """Find answers that give orders to a language model, or hold its control tokens."""
    found = [one.answer for one in exchanges if _ORDER.search(one.answer)]
    if len(exchanges) < FEWEST or len(found) <= MOST_ORDERS * len(exchanges):
        return None
    return (
        f"{len(found)} of {len(exchanges)} answers give orders to a language model, for instance "
        f"{_excerpt(found[0])}"
    )


def _unfinished(exchanges: Sequence[Exchange]) -> str | None:
    """Find answers of several sentences of which the last has no end."""
    sentences = [one.answer for one in exchanges if _SENTENCE_INSIDE.search(one.answer)]
    unfinished = [answer for answer in sentences if not _FINISHED.search(answer)]
    if len(sentences) < FEWEST or len(unfinished) <= MOST_UNFINISHED * len(sentences):
        return None
    return (
        f"{len(unfinished)} of {len(sentences)} answers of several sentences end in the middle of one, for "
        f"instance …{unfinished[0].strip()[-40:]!r}; look whether they were cut"
    )


def _left_open(exchanges: Sequence[Exchange]) -> str | None:
    """Find answers that stop at a word after which something has to come."""
    answers = [one.answer for one in exchanges if len(one.answer.split()) >= LONG_ANSWER_WORDS]
    found = [answer for answer in answers if _OPEN_END.search(answer)]
    if len(answers) < FEWEST or len(found) <= MOST_LEFT_OPEN * len(answers):
        return None
    return (
        f"{len(found)} of {len(answers)} answers stop at a word that something has to follow, for instance "
        f"…{found[0].strip()[-40:]!r}; look whether they were cut"
    )


def _cut_at_one_length(exchanges: Sequence[Exchange]) -> str | None:
    """Find answers that were all cut at the same number of characters.

    Answers made to one pattern are often equally long as well, and end in the same words or in numbers.
    """
    lengths = Counter(len(one.answer) for one in exchanges)
    if len(exchanges) < FEWEST or len({_plain(one.answer) for one in exchanges}) < FEWEST:
        return None
    longest = max(lengths)
    at_limit = [one.answer for one in exchanges if len(one.answer) == longest]
    words = [
        answer for answer in at_limit if len(answer.split()) >= LONG_ANSWER_WORDS and answer[-1].isalpha()
    ]
    endings = {answer.split()[-1] for answer in words}
    if len(words) <= MOST_UNFINISHED * len(exchanges) or len(endings) < FEWEST_ENDINGS:
        return None
    return (
        f"{len(words)} of {len(exchanges)} answers have exactly {longest} characters, and none has more; "
        "look whether they were cut"
    )


def _other_language(exchanges: Sequence[Exchange]) -> str | None:
    """Find answers in another writing or language than their questions, which name no language."""
    asked = [one for one in exchanges if not _LANGUAGE_NAMES.search(one.prompt)]
    if len(asked) < FEWEST:
        return None
    scripts = [(script_of(one.prompt), script_of(one.answer)) for one in asked]
    written = [pair for pair in scripts if None not in pair]
    other = Counter(pair for pair in written if pair[0] != pair[1])
    if written and other.total() > MOST_OTHER_LANGUAGE * len(asked):
        ((prompt_script, answer_script), count) = other.most_common(1)[0]
        return f"{count} of {len(asked)} questions in {prompt_script} letters have answers in {answer_script}"
    languages = language_of(one.prompt for one in asked), language_of(one.answer for one in asked)
    if None in languages or languages[0] == languages[1]:
        return None
    return (
        f"the questions are in {languages[0]} and the answers in {languages[1]}; look whether that is meant"
    )


def script_of(text: str) -> str | None:
    """Return the writing most letters of a text are of, by Unicode's names; None without letters."""
    scripts = Counter(
        unicodedata.name(letter, "unknown").split()[0].capitalize() for letter in text if letter.isalpha()
    )
    return scripts.most_common(1)[0][0] if scripts else None


def language_of(texts: Iterable[str]) -> str | None:
    """Return the language of texts taken together, by its commonest words; None when it is not plain."""
    hits: Counter[str] = Counter()
    words: dict[str, set[str]] = {}
    for text in texts:
        for word in _WORD.findall(text.casefold()):
            for language in _LANGUAGE_OF.get(word, ()):
                hits[language] += 1
                words.setdefault(language, set()).add(word)
    ranked = [*hits.most_common(2), ("", 0), ("", 0)]
    (likeliest, most), (_, next_most) = ranked[:2]
    is_plain = most >= FEWEST and most >= 2 * next_most and len(words[likeliest]) >= FEWEST_WORDS
    return likeliest if is_plain else None


def _plain(text: str) -> str:
    """Return the words and numbers of a text, without case, accents of writing, or punctuation."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold())) or text.strip()


def _excerpt(text: str) -> str:
    return repr(text[:60] + ("…" if len(text) > 60 else ""))
