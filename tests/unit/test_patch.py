"""Attributes put on live objects and taken off again."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from amptalk_otel._patch import Patches
from tests.support import identity


class Thing:
    """Something to cover."""

    def __init__(self) -> None:
        self.flag = True

    def work(self, number: int, *, plus: int = 0) -> int:
        """Adds."""
        return number + plus


def doubling(original: Callable[..., Any]) -> Callable[..., Any]:
    def doubled(*args: Any, **kwargs: Any) -> Any:
        return 2 * original(*args, **kwargs)

    return doubled


def test_a_wrapper_calls_through_looks_like_the_original_and_leaves_no_trace() -> None:
    thing, patches = Thing(), Patches()
    before = identity(thing)
    assert patches.wrap(thing, "work", doubling)
    assert thing.work(3, plus=1) == 8
    assert (thing.work.__name__, thing.work.__doc__) == ("work", "Adds.")
    assert Thing().work(3) == 3
    patches.undo()
    assert identity(thing) == before
    assert thing.work(3, plus=1) == 4


def test_an_attribute_that_was_the_instances_own_comes_back_as_it_was() -> None:
    thing, patches = Thing(), Patches()

    def own(number: int) -> int:
        return -number

    thing.work = own  # type: ignore[method-assign,assignment]
    before = identity(thing)
    patches.wrap(thing, "work", doubling)
    assert thing.work(3) == -6
    patches.undo()
    assert identity(thing) == before
    assert vars(thing)["work"] is own


def test_a_wrapper_that_others_have_covered_stays_and_nothing_breaks() -> None:
    thing, patches = Thing(), Patches()
    patches.wrap(thing, "work", doubling)
    ours = vars(thing)["work"]
    thing.work = doubling(ours)  # type: ignore[method-assign]
    theirs = vars(thing)["work"]
    patches.undo()
    assert vars(thing)["work"] is theirs
    assert thing.work(3) == 12
    assert not patches.active


def test_two_layers_come_off_in_the_order_in_which_they_lie() -> None:
    thing, lower, upper = Thing(), Patches(), Patches()
    before = identity(thing)
    lower.wrap(thing, "work", doubling)
    upper.wrap(thing, "work", doubling)
    assert thing.work(1) == 4
    upper.undo()
    assert thing.work(1) == 2
    lower.undo()
    assert identity(thing) == before


def test_a_value_is_replaced_until_undo() -> None:
    thing, patches = Thing(), Patches()
    patches.replace(thing, "flag", False)
    assert thing.flag is False
    patches.undo()
    assert thing.flag is True


def test_a_value_that_the_class_has_is_taken_off_the_instance_again() -> None:
    class Flagged:
        flag = True

    thing, patches = Flagged(), Patches()
    patches.replace(thing, "flag", False)
    assert thing.flag is False
    patches.undo()
    assert vars(thing) == {}
    assert thing.flag is True


def test_a_value_that_the_program_has_set_since_is_left_to_it() -> None:
    thing, patches = Thing(), Patches()
    thing.flag = "former"  # type: ignore[assignment]
    patches.replace(thing, "flag", False)
    thing.flag = "latest"  # type: ignore[assignment]
    patches.undo()
    assert thing.flag == "latest"  # type: ignore[comparison-overlap]


class Slotted:
    __slots__ = ("__weakref__",)

    def work(self) -> int:
        return 1


class Validating:
    """As pydantic's models do."""

    def __setattr__(self, name: str, value: object) -> None:
        raise ValueError(f"no field {name}")

    def work(self) -> int:
        return 1


@pytest.mark.parametrize("kind", [Slotted, Validating])
def test_what_can_not_be_covered_costs_one_warning(kind: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    thing, patches = kind(), Patches()
    assert not patches.wrap(thing, "work", doubling)
    assert not patches.wrap(thing, "work", doubling)
    assert thing.work() == 1
    patches.replace(thing, "flag", False)
    patches.undo()
    assert [(record.levelno, record.getMessage().split(" can't")[0]) for record in caplog.records] == [
        (logging.WARNING, f"{kind.__name__}.work"), (logging.WARNING, f"{kind.__name__}.flag"),
    ]  # fmt: skip


@pytest.mark.usefixtures("lenient_guard")
def test_one_wrapper_that_does_not_come_off_does_not_keep_the_others_on(caplog: pytest.LogCaptureFixture) -> None:
    class Clinging(Thing):
        def __delattr__(self, name: str) -> None:
            raise RuntimeError(name)

    clinging, thing, patches = Clinging(), Thing(), Patches()
    before = identity(thing)
    patches.wrap(thing, "work", doubling)
    patches.wrap(clinging, "work", doubling)
    patches.undo()
    assert identity(thing) == before
    assert clinging.work(1) == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_patches_keep_nothing_alive() -> None:
    thing, patches = Thing(), Patches()
    patches.wrap(thing, "work", doubling)
    patches.replace(thing, "flag", False)
    gone = weakref.ref(thing)
    del thing
    gc.collect()
    assert gone() is None
    patches.undo()
