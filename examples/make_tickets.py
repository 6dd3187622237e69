"""Make the example task: a customer's message becomes one line of strict JSON.

The same seed gives the same bytes. Training and held-out tickets are written from different sentence
templates, so that no sentence occurs in both; order numbers never repeat, and half of the held-out
products are never seen in training.

    python -m examples.make_tickets        # rewrites tickets.jsonl and tickets_heldout.jsonl
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SYSTEM_PROMPT = "Ticket to JSON."
FOLDER = Path(__file__).parent
TRAIN_FILE = FOLDER / "tickets.jsonl"
HELD_OUT_FILE = FOLDER / "tickets_heldout.jsonl"
TRAIN_RECORDS = 200
HELD_OUT_RECORDS = 48
SEED = 7

Record = dict[str, list[dict[str, str]]]

PROBLEMS = ("broken", "late", "wrong item", "missing part", "refund")
URGENCIES = ("high", "normal", "low")


@dataclass(frozen=True)
class Wording:
    """What one file is written with: a clause about a product, in a frame with its order, then an ending."""

    products: Sequence[str]
    frames: Sequence[str]
    clauses: Mapping[str, Sequence[str]]
    """Ways to put each problem."""
    urgencies: Mapping[str, Sequence[str]]
    """Sentences that show each urgency."""


SHARED_PRODUCTS = (
    *("toaster", "desk lamp", "kettle", "backpack", "camera", "blender"),
    *("phone case", "guitar", "tent", "keyboard", "coffee grinder", "bicycle pump"),
)

TRAIN = Wording(
    products=(
        *SHARED_PRODUCTS,
        *("vacuum cleaner", "wall clock", "radio", "mirror", "monitor", "suitcase", "bookshelf"),
        *("hair dryer", "mouse pad", "rice cooker", "tripod", "sleeping bag", "water bottle"),
        *("garden hose", "fan heater", "picture frame", "baby seat", "router", "drill", "mixer"),
        *("scooter", "piano stool", "charger", "scarf", "teapot", "laptop sleeve"),
        *("projector", "yoga mat"),
    ),
    frames=(
        "{clause}, order {order}.",
        "Order {order}: {clause}.",
        "About order {order}: {clause}.",
        "{clause}, my order is {order}.",
    ),
    clauses={
        "broken": (
            "the {product} arrived with a crack",
            "the {product} does not turn on",
            "my {product} stopped working after a day",
            "the {product} is broken",
            "the {product} was smashed in the box",
            "my {product} is faulty and smells burnt",
            "the handle of the {product} snapped off",
            "the {product} came bent and scratched",
            "there is a dent in my {product}",
            "the {product} fell apart in my hands",
            "my {product} leaks and is useless",
            "the {product} is damaged",
        ),
        "late": (
            "my {product} has still not arrived",
            "I have waited two weeks for the {product}",
            "the {product} should have been here on Monday",
            "there is no sign of the {product} yet",
            "the parcel with my {product} is overdue",
            "I am still waiting for the {product}",
            "the delivery of my {product} is late",
            "the {product} was promised for last week",
            "nobody has delivered the {product} so far",
            "the tracking of my {product} has not moved",
            "I wonder when the {product} will get here",
            "the {product} is nine days behind",
        ),
        "wrong item": (
            "I ordered a {product} but got something else",
            "you sent me the wrong thing instead of the {product}",
            "the {product} came in the wrong colour",
            "I chose a large {product} and received a small one",
            "this is not the {product} I picked",
            "a different model came and not my {product}",
            "somebody mixed up my {product} with another order",
            "the box says {product} but holds another article",
            "I wanted a black {product} and got a white one",
            "the {product} is not the one in the picture",
            "I received somebody else's {product}",
            "the {product} is the wrong size",
        ),
        "missing part": (
            "the {product} came without its screws",
            "a piece of the {product} is missing",
            "there was no cable in the box of the {product}",
            "the lid of my {product} was not in the parcel",
            "one part of the {product} is missing",
            "the manual of the {product} was not there",
            "my {product} is incomplete",
            "two bolts of the {product} were left out",
            "the {product} has no charger with it",
            "I cannot find the strap that belongs to the {product}",
            "the {product} lacks a wheel",
            "you forgot the remote of my {product}",
        ),
        "refund": (
            "I want my money back for the {product}",
            "please refund the {product}",
            "I sent the {product} back and wait for my money",
            "I would like to return the {product} for a refund",
            "I changed my mind about the {product}, pay me back",
            "you charged me twice for the {product}",
            "I have not been repaid for the {product}",
            "cancel the {product} and give me my money",
            "the refund of my {product} has not come",
            "I returned the {product}, please pay it back",
            "I need to know how to get a refund for the {product}",
            "I do not want the {product}, give back the price",
        ),
    },
    urgencies={
        "high": (
            "This is urgent.",
            "I need it today.",
            "Please hurry.",
            "I need an answer right now.",
            "Please act at once.",
            "Tomorrow is too late.",
            "It is an emergency.",
            "Reply as fast as you can.",
        ),
        "normal": (
            "Thank you.",
            "Please let me know.",
            "What can you do?",
            "Kind regards.",
            "I hope you can help.",
            "Please tell me the next step.",
            "Can you look into it?",
            "Thanks in advance.",
        ),
        "low": (
            "There is no hurry.",
            "Take your time.",
            "It can wait.",
            "Answer whenever you like.",
            "This is not important.",
            "Any time next month is fine.",
            "I am not in a rush.",
            "Do it when you have a free moment.",
        ),
    },
)

HELD_OUT = Wording(
    products=(
        *SHARED_PRODUCTS,
        *("violin", "printer", "curtain rod", "pressure cooker", "ladder", "microphone"),
        *("garden chair", "carpet", "hammer", "skateboard", "wallet", "doorbell"),
    ),
    frames=(
        "Regarding order {order}, {clause}.",
        "{clause}, order number {order}.",
        "Hello, {clause} ({order}).",
    ),
    clauses={
        "broken": (
            "the screen of my {product} is cracked",
            "the {product} broke on the first day",
            "my {product} does not work any more",
            "the {product} arrived damaged",
            "the {product} was in pieces when it came",
            "my {product} is dead and will not start",
        ),
        "late": (
            "the {product} has not been delivered",
            "I have been waiting for my {product} since Tuesday",
            "my {product} is a week late",
            "the {product} is still not here",
            "the {product} was due on Friday and did not come",
            "the courier has not brought my {product} yet",
        ),
        "wrong item": (
            "you shipped the wrong {product}",
            "this {product} is a different one from what I ordered",
            "I got another thing in place of my {product}",
            "a red {product} came although I ordered a blue one",
            "my {product} was swapped with another article",
            "the {product} is not the model I ordered",
        ),
        "missing part": (
            "the power cord of the {product} is missing",
            "my {product} came without the batteries",
            "some screws are missing from my {product}",
            "there is no plug with the {product}",
            "one leg of the {product} was not included",
            "the {product} was sent without a lid",
        ),
        "refund": (
            "I ask for a refund of the {product}",
            "please give me back the money for my {product}",
            "I want to be paid back for the {product}",
            "the {product} went back to you and I got no refund",
            "my money for the {product} has not been returned",
            "refund the {product} to my card",
        ),
    },
    urgencies={
        "high": (
            "It is very urgent.",
            "I need help right now, hurry.",
            "Please reply today, as fast as possible.",
            "Please answer immediately.",
        ),
        "normal": (
            "Thanks for your help.",
            "Please tell me what to do.",
            "Can you help me?",
            "Best regards.",
        ),
        "low": (
            "I am in no hurry.",
            "This can wait until next month.",
            "Take all the time you need.",
            "It is not important to me, answer any time.",
        ),
    },
)


def make_records(wording: Wording, count: int, rng: random.Random, taken: set[str]) -> list[Record]:
    """Write `count` tickets as chat records; every problem, urgency and wording occurs about equally often.

    Order numbers in `taken` are avoided; those used here are added to it.
    """
    kinds = itertools.cycle(itertools.product(PROBLEMS, URGENCIES))
    products, frames = _deck(wording.products, rng), _deck(wording.frames, rng)
    clauses = {problem: _deck(choices, rng) for problem, choices in wording.clauses.items()}
    endings = {urgency: _deck(choices, rng) for urgency, choices in wording.urgencies.items()}
    records = []
    for problem, urgency in itertools.islice(kinds, count):
        product, order = next(products), _free_order(rng, taken)
        clause = next(clauses[problem]).format(product=product)
        sentence = next(frames).format(clause=clause, order=order)
        answer = {"product": product, "problem": problem, "urgency": urgency, "order": order}
        text = f"{sentence[0].upper()}{sentence[1:]} {next(endings[urgency])}"
        records.append(_record(text, json.dumps(answer)))
    rng.shuffle(records)
    return records


def read_answer(text: str) -> dict[str, str] | None:
    """Return the ticket when `text` is one strict JSON answer and nothing else, otherwise None."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or set(answer) != {"product", "problem", "urgency", "order"}:
        return None
    if not all(isinstance(value, str) and value for value in answer.values()):
        return None
    is_known = answer["problem"] in PROBLEMS and answer["urgency"] in URGENCIES
    return answer if is_known else None


def write_files(folder: Path = FOLDER, seed: int = SEED) -> None:
    """Write both files into `folder`."""
    rng = random.Random(seed)
    taken: set[str] = set()
    for name, wording, count in (
        (TRAIN_FILE.name, TRAIN, TRAIN_RECORDS),
        (HELD_OUT_FILE.name, HELD_OUT, HELD_OUT_RECORDS),
    ):
        lines = [json.dumps(record) + "\n" for record in make_records(wording, count, rng, taken)]
        (folder / name).write_text("".join(lines), encoding="utf-8")


def _record(text: str, answer: str) -> Record:
    return {
        "messages": [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": text},
            {"role": "assistant", "content": answer},
        ]
    }


def _deck(cards: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Deal the cards in random order, each once before any comes again, without end."""
    while True:
        yield from rng.sample(cards, len(cards))


def _free_order(rng: random.Random, taken: set[str]) -> str:
    while True:
        order = rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") + str(rng.randrange(1000, 10000))
        if order not in taken:
            taken.add(order)
            return order


if __name__ == "__main__":
    write_files()
