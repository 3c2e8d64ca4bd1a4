"""No harm under faults: each of the catalogue is tried, and the table in docs/reliability.md is this suite's."""

from __future__ import annotations

import pytest

from amptalk_otel import _guard
from tests.faults import report
from tests.faults.catalogue import Fault, faults
from tests.faults.trial import Outcome, Trial

FAULTS = faults()


@pytest.mark.usefixtures("lenient_guard")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_program_does_not_notice(fault: Fault, findings: report.Findings) -> None:
    if fault.missing is not None:
        pytest.skip(fault.missing)
    trial = fault.attempt()
    assert trial.watched == trial.plain
    assert trial.lost == 0
    assert trial.leaked == []
    assert trial.tried > 0, "the fault never struck"
    findings[fault.name] = trial
    _guard.forget_complaints()


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
    assert page.startswith("before\n") and page.endswith("\nafter\n")
    assert len(report.rows(page)) == len(FAULTS)
    del found[FAULTS[3].name]
    with pytest.raises(ValueError, match="not tried here"):
        report.table(found)


def test_a_trial_with_another_outcome_is_no_success() -> None:
    trial = Trial(3, Outcome(events=[1, 2]), Outcome(events=[2, 1]), 0, [], 0.0)
    assert not trial.is_identical
    assert report.row(FAULTS[0], trial)[3] == "NO"
