"""Exact match and calibration, with numbers that can be reckoned by hand."""

from __future__ import annotations

import pytest
import torch

from evaluation.fixed_eval import Calibration, exact_match


def logits_of(confidence: float, rows: int) -> torch.Tensor:
    """Return predictions of token 0 among three, all with the same confidence."""
    rest = (1 - confidence) / 2
    return torch.tensor([[confidence, rest, rest]] * rows).log()


def seen(*parts: tuple[float, int, int]) -> Calibration:
    """Show it for each (confidence, right, wrong) so many predictions."""
    calibration = Calibration()
    for confidence, right, wrong in parts:
        targets = torch.tensor([0] * right + [1] * wrong)
        calibration.add(logits_of(confidence, right + wrong), targets)
    return calibration


def test_certain_and_right_is_no_error() -> None:
    assert seen((1.0, 10, 0)).error == pytest.approx(0.0)


def test_certain_and_wrong_is_the_largest_error_since_the_last_bin_holds_certainty() -> None:
    assert seen((1.0, 0, 10)).error == pytest.approx(1.0)


def test_the_error_is_the_distance_in_each_bin_by_its_share() -> None:
    # 8 of 10 at 0.75 and 1 of 5 at 0.95.
    calibration = seen((0.75, 8, 2), (0.95, 1, 4))
    assert calibration.error == pytest.approx((10 * 0.05 + 5 * 0.75) / 15)
    assert calibration.tokens == 15


def test_too_much_confidence_in_one_bin_is_not_made_up_for_by_too_little_in_another() -> None:
    assert seen((0.5, 10, 0), (0.95, 0, 10)).error == pytest.approx((0.5 + 0.95) / 2)


def test_nothing_seen_is_nothing_known() -> None:
    assert Calibration().error is None


def test_parts_merge_to_the_whole_and_many_rows_are_taken_in_pieces() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = (
        torch.randn(1000, 7, generator=generator),
        torch.randint(7, (1000,), generator=generator),
    )
    whole, merged = Calibration(), Calibration()
    whole.add(logits, targets)
    for at in range(0, 1000, 333):
        part = Calibration()
        part.add(logits[at : at + 333], targets[at : at + 333])
        merged.merge(part)
    assert merged.tokens == whole.tokens == 1000
    assert merged.error == pytest.approx(whole.error)
    probabilities = logits.softmax(-1).double()
    confidence, said = probabilities.max(-1)
    by_hand = 0.0
    for low in range(10):
        members = (confidence >= low / 10) & ((confidence < (low + 1) / 10) | torch.tensor(low == 9))
        by_hand += float(((said == targets).double() - confidence)[members].sum().abs()) / 1000
    assert whole.error == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(
    ("matches", "share"),
    [([True, True], 1.0), ([False] * 3, 0.0), ([True, None, False, None], 0.5), ([None], None), ([], None)],
)
def test_answers_that_did_not_come_whole_are_neither_right_nor_wrong(
    matches: list[bool | None], share: float | None
) -> None:
    assert exact_match(matches) == share
