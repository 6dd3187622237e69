"""What the page says of versions, of files and of kinds of answers, beside what the runs themselves wrote.

Three files are trained and a fourth is refused, by the code of the worker, before the page is opened once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from config import Paths
from intake.report import ReportCard
from monitoring.events import ExampleEvent
from monitoring.training_status import StatusWriter
from tests.conftest import Workshop, chats
from tests.serving.browsing import Visit, browser
from tests.serving.served import Client, Served
from training.job_queue import changed, ended
from training.jobs import JobStore
from training.version_report import VersionReport, read_report
from training.versions import VersionStore

BROKEN = {"messages": [{"role": "user", "content": "nobody answers"}]}
PROMOTED, HELD = "promotion.policy=always", "promotion.policy=manual"
REMARK = "1 refused record"


@dataclass
class Shown:
    """A page, and the folder of which it tells."""

    paths: Paths
    client: Client
    visit: Visit

    @property
    def reports(self) -> dict[str, VersionReport]:
        """What the test of each version measured, by version."""
        found = {version.name: read_report(version.folder) for version in VersionStore(self.paths).list()}
        return {name: report for name, report in found.items() if report is not None}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Shown]:
    shop = Workshop(tmp_path_factory.mktemp("lineage") / "base", tiny_model)
    learn(shop, [*chats(25, seed=1), BROKEN], PROMOTED)
    learn(shop, chats(25, seed=2), HELD)
    learn(shop, chats(25, seed=3), PROMOTED)
    learn(shop, [*chats(2, seed=4), BROKEN, BROKEN], PROMOTED)
    with (
        Served(shop.paths) as client,
        browser() as chromium,
        Visit(chromium, f"http://{client.host}:{client.port}") as visit,
    ):
        for panel in ("versions", "matrix", "reports"):
            visit.await_look(panel, "full")
        yield Shown(shop.paths, client, visit)


def learn(shop: Workshop, records: list[dict[str, Any]], policy: str) -> None:
    """Carry a file out and put it away, as a worker and a daemon do."""
    job_id = shop.job(records, policy, "data.max_bad_fraction=0.2", "monitoring.sample_steps=0")
    outcome, _ = shop.carry_out(job_id)
    VersionStore(shop.paths).roll_forward()
    store = JobStore(shop.paths)
    job = store.get(job_id)
    assert job is not None
    store.save(changed(ended(job, outcome), state="finished"))


def test_lineage_tells_parents_verdicts_and_losses(shown: Shown) -> None:
    versions = [version.facts for version in VersionStore(shown.paths).list()]
    rows = shown.visit.rows("versions")[::-1]
    assert [row[0] for row in rows] == ["v0001", "v0002", "v0003 current"]
    assert [row[1] for row in rows] == ["the base model", "v0001", "v0001"]
    assert [row[1] for row in rows] == [facts.parent or "the base model" for facts in versions]
    assert [row[6] for row in rows] == ["promoted", "held", "promoted"]
    assert [row[7] for row in rows] == [facts.decision_reason for facts in versions]
    for row, facts in zip(rows, versions, strict=True):
        before, after = facts.held_out.before_loss, facts.held_out.after_loss
        assert before is not None and after is not None
        sign = "+" if after > before else "−"
        assert row[5] == f"{before:.4f} → {after:.4f} {sign}{abs(after - before):.3f}"
        assert row[3:5] == [str(facts.steps), f"{facts.train_loss:.4f}"]


def test_matrix_shows_what_the_test_of_each_version_measured(shown: Shown) -> None:
    jobs = [facts.job_id for facts in (version.facts for version in VersionStore(shown.paths).list())]
    rows = shown.visit.rows("matrix")[::-1]
    assert [row[0] for row in rows] == ["v0001 promoted", "v0002 held", "v0003 promoted"]
    for row, report in zip(rows, shown.reports.values(), strict=True):
        scores = report.scores["candidate"]
        cells = [_cell(scores.get(job_id)) for job_id in jobs]
        assert row[1:4] == cells
        average = report.transfer.average_accuracy
        assert row[4] == ("—" if average is None else f"{100 * average:.1f} %")
    # No version is tested on what was held out of files that came later.
    assert rows[0][2:4] == ["—", "—"]
    assert "—" not in (rows[1][2], rows[2][3])


def test_matrix_says_what_its_numbers_are_of(shown: Shown) -> None:
    words = {"answers": "answers graded right", "verbatim": "expected answers said word for word"}
    cells = shown.visit.page.locator("#matrix tbody .cell")
    told = cells.evaluate_all("all => all.map(one => one.title)")
    rows = list(shown.reports.values())[::-1]
    scores = [report.scores["candidate"] for report in rows]
    assert told == [
        f"{words[by_slice[job].measure or '']}, of {by_slice[job].measured} records"
        for by_slice in scores
        for job in sorted(by_slice)
    ]
    averages = shown.visit.page.locator("#matrix tbody td:nth-child(5) span")
    assert averages.evaluate_all("all => all.map(one => one.title)") == [
        ", ".join(words[measure] for measure in report.transfer.average_measures) for report in rows
    ]


def _cell(score: Any) -> str:
    if score is None:
        return "—"
    return f"{100 * score.share_right:.0f} % loss {score.loss:.4f}"


def test_numbers_of_the_page_are_those_of_the_api(shown: Shown) -> None:
    told = shown.client.get("/api/versions").json()
    rows = shown.visit.rows("versions")[::-1]
    assert [row[0].split()[0] for row in rows] == [one["name"] for one in told["versions"]]
    assert shown.visit.text("#versions-lead") == f"current is {told['current']}"
    assert shown.visit.text("#matrix-lead") == "3 versions, 3 slices"
    assert [len(row["cells"]) for row in told["matrix"]["rows"]] == [3, 3, 3]


def test_report_cards_count_what_was_accepted_held_out_and_refused(shown: Shown) -> None:
    cards = [
        ReportCard.model_validate_json(JobStore(shown.paths).run(job).report.read_bytes())
        for job in reversed(JobStore(shown.paths).all())
    ]
    rows = shown.visit.rows("reports")
    assert [row[1] for row in rows] == ["rejected", "done", "done", "done"]
    counts = [[card.records_total, card.accepted, card.held_out, card.refused] for card in cards]
    assert [[int(cell) for cell in row[2:6]] for row in rows] == counts
    assert [(total, refused) for total, _, _, refused in counts] == [(4, 2), (25, 0), (25, 0), (26, 1)]
    assert all(accepted + held_out <= total for total, accepted, held_out, _ in counts)
    assert rows[3][6].endswith(REMARK)
    details = shown.visit.page.locator("#reports tbody tr").nth(3).locator("details")
    details.locator("summary").click()
    (one,) = cards[3].refusals
    told = f"{one.line}: {one.field}: found {one.found}, expected {one.expected}; {one.remedy}"
    assert details.locator("li").all_inner_texts() == [told]


def test_heatmap_shows_shares_and_leaves_open_what_nobody_asked(shown: Shown) -> None:
    visit = shown.visit
    writer = StatusWriter(shown.paths.status_file, interval_seconds=60.0)
    writer.update(state="training", status="training")
    visit.await_look("patterns", "null")
    assert visit.text("#patterns-note") == "No answer has been sorted by its pattern yet."
    answers = (("factual", 7, True), ("factual", 7, True), ("factual", 99, False), ("math", 150, False))
    for number, (pattern, tokens, is_right) in enumerate((*answers, ("ours", 2500, True))):
        writer.observe(
            ExampleEvent(
                step=number, system_prompt=None, prompt="What?", golden_answer="This.",
                model_answer="This." if is_right else "That.", answer_matches=is_right,
                golden_tokens=tokens, model_tokens=2, pattern=pattern,
            )
        )  # fmt: skip
    writer.write()
    visit.page.locator("#patterns tbody tr").nth(2).wait_for()
    assert visit.texts("#patterns thead th") == ["pattern", "0-100", "100-300", "2000+"]
    assert visit.rows("patterns") == [
        ["factual", "67 % of 3", "—", "—"],
        ["math", "—", "0 % of 1", "—"],
        ["ours", "—", "—", "100 % of 1"],
    ]
    assert visit.looks()["patterns"] == "full"
    heat = visit.page.locator("#patterns .cell").evaluate_all("all => all.map(one => one.style.cssText)")
    assert [text.split(":")[1].strip(" ;%")[:5] for text in heat] == ["66.66", "0", "100"]
    assert [one for one in visit.complaints if "404" not in one] == []
