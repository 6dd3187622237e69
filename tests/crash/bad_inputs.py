"""Every hostile file there is, dropped at once into a living daemon whose worker really validates.

``python -m tests.crash.bad_inputs [EVERY]`` drops every so manieth and prints what it counted as JSON. The
worker is the real one around a run that ends after validation, so that it needs no torch.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote_from_bytes

import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import durable
from chat_template import ChatTemplate
from config import Config, Paths, load_config
from errors import FileRefused, JobFailed
from intake.inbox import COMPANIONS, display_name
from intake.validation import PlanInputs, check_file
from monitoring.events import OutcomeEvent, now
from tests.conftest import CHATML, SPECIAL_TOKENS
from tests.crash.forked_daemon import ROOT, ForkedDaemon, Overdue, wait_until
from tests.crash.invariants import reader_violations
from tests.crash.tally import Tally
from tests.intake.test_bad_input_catalogue import BAD_FILES, BAD_LINES, GOOD, OTHER
from training import worker
from training.daemon_link import DaemonLink
from training.jobs import Job, JobStore
from training.versions import HeldOutResult, RecordCounts, VersionFacts, VersionStore

MAX_BYTES = 20_000_000
OVERRIDES = (
    f"data.max_bytes={MAX_BYTES}",
    "inbox.settle_seconds=0.2",
    "inbox.poll_seconds=0.1",
    "inbox.unfinished_line_seconds=0.2",
    "disk.min_free_bytes=0",
    # A worker forked from a process with threads may find a lock held for ever; it is ended and begun again.
    "worker.hang_seconds=60",
)
PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class BadInput:
    """Something in the inbox that must never become a version."""

    name: bytes
    """Path below the inbox."""
    make: Callable[[bytes], None]
    """Puts it at a path."""
    reason: str | None
    """A part of the reason beside it in rejected/; None for what is left in place."""


# The run


class ValidatingRun:
    """One job that is validated like any other and then goes no further."""

    def __init__(self, paths: Paths, job: Job, link: DaemonLink) -> None:
        self._run = paths.run(job.job_id)
        self._job = job
        self._template = ChatTemplate.load(paths.base_models / "tiny")

    def carry_out(self) -> OutcomeEvent:
        """Check the file; the outcome is a refusal, or a failure where there is nothing to refuse."""
        config: Config = load_config(self._run.folder)
        card = check_file(
            self._run.input(self._job.suffix),
            config.data,
            self._template,
            seed=config.train.seed,
            name=self._job.name,
            plan=PlanInputs(1, 1),
            output=self._run,
        )
        if not card.usable:
            raise FileRefused(card.reason or "")
        raise JobFailed("accepted", "the bad input was found good")


def worker_main(arguments: list[str]) -> int:
    """Run the real worker around a run that only validates."""
    return worker.main(arguments, load=lambda: ValidatingRun)


# The inputs


def bad_inputs() -> Iterator[BadInput]:
    """Yield all of them."""
    for number, (label, line, *_) in enumerate(BAD_LINES):
        yield _file(f"line {number} {label}", ".jsonl", b"\n".join((GOOD, line, OTHER)) + b"\n", "line 2")
    for number, (label, suffix, content, reason) in enumerate(BAD_FILES):
        yield _file(f"file {number} {label}", suffix, content, reason)
    yield from _bombs()
    yield from _damaged_tables()
    yield from _foreign_bytes()
    for number, name in enumerate(hostile_names()):
        yield BadInput(name, _writer(b"not JSON, in file %d\n" % number), "line 1")
    yield from _left_in_place()


def _file(label: str, suffix: str, content: bytes, reason: str) -> BadInput:
    name = label.replace("/", " ").replace("\\", " ")
    return BadInput(f"{name}{suffix}".encode(), _writer(content), reason)


def _writer(content: bytes) -> Callable[[bytes], None]:
    def write(path: bytes) -> None:
        with open(path, "wb") as file:
            file.write(content)

    return write


def _parquet(table: pyarrow.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def _repeated(text: str, rows: int) -> bytes:
    indices = pyarrow.array([0] * rows, pyarrow.int32())
    return _parquet(pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays(indices, [text])}))


def _bombs() -> Iterator[BadInput]:
    many = b"".join(b'{"text": "the same words %d times, %s"}\n' % (n, b"again " * 70) for n in range(50_000))
    yield _file("more than is read", ".jsonl.gz", gzip.compress(many, 1), "data.max_bytes")
    yield _file("more than is read", ".jsonl", many, "data.max_bytes")
    yield _file("gzip in gzip", ".jsonl.gz", gzip.compress(gzip.compress(GOOD)), "inside the gzip file")
    yield _file(
        "UTF-16 in gzip", ".jsonl.gz", gzip.compress(GOOD.decode().encode("utf-16")), "inside the gzip"
    )
    yield _file("a value for every row", ".parquet", _repeated("x" * (5 << 20), 100_000), "data.max_bytes")
    yield _file("a value above the limit", ".parquet", _repeated("x" * (12 << 20), 1), "row 1")
    for depth in (33, 1_000, 100_000):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"1" + b"}")):
            label = f"{depth} times {opening[:1].decode()}"
            yield _file(label, ".jsonl", opening * depth + closing * depth + b"\n", "line 1")
    yield _file("a line above the limit", ".jsonl", b'{"text": "' + b"x" * (9 << 20) + b'"}\n', "line 1")
    long = b"x" * (9 << 20)
    yield _file("a quote that never ends", ".csv", b'text\n"' + long, "row 1")
    yield _file("a header above the limit", ".csv", long + b"\n1\n", "no CSV header")
    yield _file("an element above the limit", ".json", b'[{"text": "' + long + b'"}]', "element 1")
    yield _file("a number of a million digits", ".jsonl", b'{"text": ' + b"9" * 1_000_000 + b"}\n", "line 1")
    yield _file("ten thousand bad lines", ".jsonl", b"{]\n" * 10_000, "10,000 of 10,000 records")


def _damaged_tables() -> Iterator[BadInput]:
    whole = _parquet(pyarrow.table({"text": [f"row {number}" for number in range(300)]}))
    for kept in (4, 12, 100, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        yield _file(f"the first {kept} bytes", ".parquet", whole[:kept], "damaged")
    for size in (0, 2**31, 2**32 - 1):
        end = size.to_bytes(4, "little") + b"PAR1"
        yield _file(f"a footer of {size} bytes", ".parquet", whole[:-8] + end, "damaged")
    footer = int.from_bytes(whole[-8:-4], "little")
    broken = whole[: -8 - footer] + b"\xff" * footer + whole[-8:]
    yield _file("a footer of nonsense", ".parquet", broken, "damaged")
    twice = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    yield _file("a column twice", ".parquet", _parquet(twice), "name occurs twice")
    blob = pyarrow.table({"text": pyarrow.array([b"\x80\x04."], pyarrow.binary())})
    yield _file("bytes for a text", ".parquet", _parquet(blob), "row 1")
    yield _file("a header twice", ".csv", b"text,text\na,b\n", "repeats one of")
    yield _file("zeros in a table", ".csv", b"text\na\x00b\n", "row 1")
    yield _file("rows of other lengths", ".csv", b"question,answer\na\nb,c,d\n", "row 1")


def _foreign_bytes() -> Iterator[BadInput]:
    for codec in ("utf-16-be", "utf-32-le", "utf-32-be"):
        for mark in ("", "\ufeff"):
            yield _file(f"{codec} {len(mark)}", ".jsonl", (mark + OTHER.decode()).encode(codec), "")
    yield _file("bzip2", ".jsonl", bz2.compress(GOOD), "the bytes are bzip2")
    yield _file("xz", ".jsonl", lzma.compress(GOOD), "the bytes are xz")
    yield _file(
        "a pickle",
        ".jsonl",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
        "",
    )
    yield _file("a program", ".jsonl", b"\x7fELF" + bytes(range(256)), "")
    yield _file("half a gzip header", ".jsonl.gz", b"\x1f\x8b", "gzip")
    yield _file("gzip with a wrong sum", ".jsonl.gz", gzip.compress(GOOD)[:-8] + bytes(8), "gzip")
    yield _file("safetensors with a bomb of a header", ".jsonl", (2**62).to_bytes(8, "little") + b"{}", "")


def hostile_names() -> Iterator[bytes]:
    """Yield file names that try to leave the folder, the screen, the terminal or the encoding."""
    parts = [
        *(
            b"new\nline",
            b"return\r",
            b"tab\t",
            b"esc\x1b[31m",
            b"esc\x1b]0;title\x07",
            b"bell\x07",
            b"del\x7f",
        ),
        *(
            b"back\x08\x08\x08",
            b"c1\xc2\x9b31m",
            b"invalid\xff\xfe",
            b"half\xed\xa0\x80",
            b"overlong\xc0\xaf",
        ),
        *(
            b"-rf",
            b"--help",
            b"$(reboot)",
            b"`reboot`",
            b";reboot",
            b"|reboot",
            b"&reboot",
            b"a'b\"c",
            b"*",
            b"?",
        ),
        *(b"a..%2f..%2fetc", b"%2e%2e%2f", b"\\..\\..\\x", b"C:\\x", b"a..", b"x\\..\\x"),
        *(
            b"percent%0A",
            b"%",
            b"%%",
            b"%00",
            b"{0}",
            b"%s%n",
            b"${jndi:x}",
            b"{{7*7}}",
            b"<script>",
            b"&lt;",
        ),
        *(
            b" leading",
            b"trailing ",
            b"a b",
            b"a  b",
            b"done",
            b"processing",
            b"rejected",
            b"v0001",
            b"current",
        ),
        *(
            b"NUL",
            b"CON",
            b"con",
            b"CASE",
            b"case",
            b"a.report",
            b"a.jsonl",
            b"a.jsonl.000001",
            b"000001-0a0a0a0a",
        ),
        *("nfc\u00e9".encode(), "nfce\u0301".encode(), "rtl\u202egnp".encode(), "zero\u200bwidth".encode()),
        *(
            "bom\ufeff".encode(),
            "line\u2028separator".encode(),
            "emoji\U0001f600".encode(),
            b"x",
        ),
        *(
            "full\uff0fwidth".encode(),
            "dots\u2024\u2025".encode(),
            "tag\U000e0041".encode(),
            "k\u212a".encode(),
        ),
        *(
            b"a" * 249,
            "é".encode() * 124,
            "\U0001f600".encode() * 62,
            b"\xff" * 240,
            b"%41" * 80,
            b"\n" * 200,
        ),
    ]
    for part in parts:
        for suffix in (b".jsonl", b".JSONL"):
            if len(part + suffix) <= 255:
                yield part + suffix
    yield from (b"team/" + part + b".jsonl" for part in parts[:30])
    yield from (b"high/" + part + b".jsonl" for part in parts[30:60])


def _left_in_place() -> Iterator[BadInput]:
    outside = tempfile.mkdtemp(prefix="trainbox-outside-").encode()
    foreign = os.path.join(outside, b"foreign.jsonl")
    _writer(GOOD)(foreign)
    targets = (b"/etc/passwd", b"/dev/zero", b"nowhere", b"link-3.jsonl", foreign, outside)
    for number, target in enumerate(targets):
        yield BadInput(b"link-%d.jsonl" % number, partial(os.symlink, target), None)
    yield BadInput(b"linked-folder", partial(os.symlink, outside), None)
    yield BadInput(b"hard link.jsonl", partial(os.link, foreign), None)
    yield BadInput(b"pipe.jsonl", os.mkfifo, None)
    yield BadInput(b"socket.jsonl", _make_socket, None)
    yield BadInput(b"folder.jsonl", os.mkdir, None)
    if os.geteuid() == 0:  # others may not make devices
        yield BadInput(
            b"zero.jsonl", lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)), None
        )
    for name in (
        b".hidden.jsonl",
        b"..jsonl",
        b"...jsonl",
        b"~a.jsonl",
        b"a.jsonl~",
        b"a.jsonl.part",
        b"#a.jsonl#",
    ):
        yield BadInput(name, _writer(GOOD), None)
    for name in (
        b"run.exe",
        b"weights.bin",
        b"evil.pkl",
        b"a.zip",
        b"a.jsonl.zst",
        b"a.jsonl.bz2",
        b"jsonl",
        b"a.",
    ):
        yield BadInput(name, _writer(GOOD), None)


def _make_device(path: bytes) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def _make_socket(path: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(os.path.dirname(path))  # a socket's path may have 107 bytes
        made.bind(os.path.basename(path))
        os.chdir(here)


# The daemon


def run_here(every: int = 1) -> Tally:
    """Drop every so manieth bad input and check what became of it; this process must have no other thread."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="trainbox-bad-inputs-") as folder:
        paths = Paths(Path(folder) / "base")
        paths.create()
        make_tokenizer(paths.base_models / "tiny")
        before = publish_a_version(paths)
        inputs = [item for number, item in enumerate(bad_inputs()) if number % every == 0]
        for item in inputs:
            _drop(paths, item)
        daemon = ForkedDaemon(paths.base, OVERRIDES, worker_main=worker_main)
        daemon.start()
        try:
            _await_all(daemon, inputs)
            if daemon.terminate() != 0:
                tally.fail("all", "half", f"the daemon did not end in peace: {daemon.log()[-600:]}")
        except Overdue as overdue:
            tally.fail("all", "half", f"{overdue}; its log ends: {daemon.log()[-600:]}")
        _check(paths, inputs, tally)
        if versions(paths) != before:
            tally.fail("all", "half", f"the versions changed from {before} to {versions(paths)}")
        tally.bad_inputs = len(inputs)
    return tally


def run(every: int = 1) -> Tally:
    """Do the same in a process of its own."""
    command = [sys.executable, "-m", "tests.crash.bad_inputs", str(every)]
    finished = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True
    )
    return Tally(**json.loads(finished.stdout))


def make_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single bytes and its chat template; without torch and without threads."""
    folder.mkdir(parents=True)
    alphabet = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    durable.write_json(folder / "tokenizer_config.json", named)


def publish_a_version(paths: Paths) -> list[str]:
    """Make a version that must stay what it is, and make it current."""
    store = VersionStore(paths)
    staging = store.stage()
    durable.write_bytes(staging / "adapter_model.safetensors", b"weights")
    facts = VersionFacts(
        parent=None,
        job_id="000000-00000000",
        input_name="good.jsonl",
        input_sha256="0" * 64,
        base_model="tiny",
        base_sha256="0" * 64,
        created_at=now(),
        config={},
        records=RecordCounts(train=1, held_out=0),
        steps=1,
        epochs=1,
        tokens=1,
        train_loss=1.0,
        held_out=HeldOutResult(records=0),
        decision="promote",
        decision_reason="the first",
    )
    store.promote(store.publish(staging, facts), "the first")
    return versions(paths)


def versions(paths: Paths) -> list[str]:
    """Return the versions with the hashes of their manifests, and which of them is current."""
    store = VersionStore(paths)
    current = store.current()
    return [f"{version.name} {version.manifest_sha256}" for version in store.list()] + [
        f"current {current.name if current else None}"
    ]


def _drop(paths: Paths, item: BadInput) -> None:
    path = os.path.join(os.fsencode(paths.inbox), item.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    item.make(path)


def _await_all(daemon: ForkedDaemon, inputs: list[BadInput]) -> None:
    """Wait until everything that is to be taken has been put away; a daemon that ends has failed."""
    expected = sum(item.reason is not None for item in inputs)

    def is_done() -> bool:
        return (
            len(_put_away(daemon.paths)) >= expected and daemon.state() == "idle"
        ) or not daemon.is_alive()

    wait_until(is_done, f"{expected} files were put away", PATIENCE_SECONDS)


def _put_away(paths: Paths) -> list[Path]:
    folders = (paths.done, paths.rejected, paths.failed, paths.skipped)
    return [path for folder in folders for path in folder.iterdir() if not path.name.endswith(COMPANIONS)]


def _check(paths: Paths, inputs: list[BadInput], tally: Tally) -> None:
    """Each input lies in exactly one place; what was taken in rejected/ with a reason that names the line."""
    reasons = {job.source.relative_path: job.message or "" for job in JobStore(paths).all()}
    for item in inputs:
        shown = display_name(os.fsdecode(item.name))
        is_in_inbox = os.path.lexists(os.path.join(os.fsencode(paths.inbox), item.name))
        reason = reasons.get(quote_from_bytes(item.name))
        if item.reason is None:
            if not is_in_inbox or reason is not None:
                tally.fail(shown, "lost", "it was to be left in place and was taken")
        elif is_in_inbox:
            tally.fail(shown, "half", "it lies in the inbox still")
        elif reason is None or item.reason not in reason:
            tally.fail(shown, "half", f"found the reason {reason!r}, expected {item.reason!r}")
    others = [path for path in _put_away(paths) if path.parent != paths.rejected]
    for path in others:
        tally.fail(path.name, "half", f"it went to {path.parent.name}/")
    for path in paths.rejected.iterdir():
        if not path.name.endswith(COMPANIONS) and not Path(f"{path}.report.txt").is_file():
            tally.fail(path.name, "half", "no reason lies beside it")
    taken = sum(item.reason is not None for item in inputs)
    found = len(_put_away(paths))
    if found != taken:
        tally.fail(
            "all", "lost" if found < taken else "double", f"{found} files were put away, {taken} taken"
        )
    for violation in reader_violations(paths.base):
        tally.fail("all", violation.harm, violation.what)


def main(arguments: list[str]) -> int:
    """Run in this process and print what it counted."""
    tally = run_here(int(arguments[0]) if arguments else 1)
    sys.stdout.write(json.dumps(dataclasses.asdict(tally)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
