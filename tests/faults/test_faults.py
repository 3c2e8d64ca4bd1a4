"""No harm under faults: each of the catalogue is tried, and the table in docs/reliability.md is this suite's."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from tests.faults import report
from tests.faults.catalogue import Fault, faults
from tests.faults.trial import BLOCKED_AT_MOST_S, Outcome, Trial

FAULTS = faults()
ATTEMPTS = 3


def names(chosen: list[Fault]) -> list[object]:
    """Parameters, with the name of the fault as the name of the test."""
    return [pytest.param(fault, id=fault.name) for fault in chosen]


@pytest.mark.usefixtures("lenient_guard")
class TestInThisProcess:
    @pytest.mark.parametrize("fault", names([fault for fault in FAULTS if not fault.in_own_process]))
    def test_the_program_does_not_notice(self, fault: Fault, findings: report.Findings) -> None:
        if fault.missing is not None:
            pytest.skip(fault.missing)
        for _ in range(ATTEMPTS):  # the machine may stop for as long by itself, though hardly each time
            trial = fault.attempt()
            if trial.blocked_s is None or trial.blocked_s <= BLOCKED_AT_MOST_S:
                break
        check(trial)
        findings[fault.name] = trial


class TestInProcessesOfTheirOwn:
    @pytest.mark.parametrize("fault", names([fault for fault in FAULTS if fault.in_own_process]))
    def test_the_program_does_not_notice(
        self, fault: Fault, running: dict[str, Future[Trial]], findings: report.Findings
    ) -> None:
        if fault.missing is not None:
            pytest.skip(fault.missing)
        trial = running[fault.name].result()
        check(trial)
        findings[fault.name] = trial


def check(trial: Trial) -> None:
    """What is asked of each."""
    assert trial.watched == trial.plain
    assert trial.lost == 0
    assert trial.leaked == []
    assert trial.tried > 0, "the fault never struck"
    assert trial.blocked_s is None or trial.blocked_s <= BLOCKED_AT_MOST_S


# -- the table -----------------------------------------------------------------------------------------


def test_the_page_has_a_row_for_each_fault_and_no_other() -> None:
    rows = report.rows(report.PAGE.read_text(encoding="utf-8"))
    assert [row[:2] for row in rows] == [(fault.name, fault.how) for fault in FAULTS]


def test_the_page_tells_of_no_harm() -> None:
    for row in report.rows(report.PAGE.read_text(encoding="utf-8")):
        assert int(row[2].replace(",", "")) > 0, row
        assert row[3:6] == ("yes", "0", "0"), row


def test_a_table_with_a_fault_left_out_is_not_written() -> None:
    trial = Trial(3, Outcome(), Outcome(), 0, [], 0.0123)
    found = {fault.name: trial for fault in FAULTS}
    page = report.paste(f"before\n{report.BEGIN}\n{report.END}\nafter\n", report.table(found))
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert len(report.rows(page)) == len(FAULTS)
    del found[FAULTS[0].name]
    with pytest.raises(ValueError, match="not tried here"):
        report.table(found)


def test_what_a_python_can_not_try_keeps_its_row() -> None:
    fault = FAULTS[0]
    impossible = Fault(fault.name, fault.how, fault.attempt, lambda: "needs more", in_own_process=False)
    found = {one.name: Trial(3, Outcome(), Outcome(), 0, [], None) for one in FAULTS}
    page = report.paste(f"{report.BEGIN}{report.END}", report.table(found))
    del found[fault.name]
    assert report.table(found, page, [impossible, *FAULTS[1:]]) in page
    with pytest.raises(ValueError, match="not tried here"):
        report.table(found, "", [impossible, *FAULTS[1:]])


def test_a_trial_with_another_outcome_is_no_success() -> None:
    trial = Trial(3, Outcome(events=[1, 2]), Outcome(events=[2, 1]), 0, [], 0.0)
    assert not trial.is_identical
    assert report.row(FAULTS[0], trial)[3] == "NO"
    with pytest.raises(AssertionError):
        check(trial)
