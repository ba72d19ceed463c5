"""Garbage collection around the import of torch."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

import rltrain
from rltrain.system.imports import no_collection


@pytest.fixture(autouse=True)
def torch_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield
    gc.unfreeze()
    gc.enable()


def test_garbage_is_collected_again_after_the_import() -> None:
    with no_collection():
        assert not gc.isenabled()

    assert gc.isenabled()


@pytest.mark.parametrize("failure", [ImportError, KeyboardInterrupt])
def test_garbage_is_collected_again_after_an_import_that_failed(failure: type[BaseException]) -> None:
    with pytest.raises(failure), no_collection():
        raise failure

    assert gc.isenabled()


def test_a_program_that_has_switched_collection_off_keeps_it_off() -> None:
    gc.disable()
    with no_collection():
        assert not gc.isenabled()

    assert not gc.isenabled()


def test_the_objects_of_a_program_stay_garbage() -> None:
    """Only a run's own start takes them out of later collections; the names of the package do not."""
    before = gc.get_freeze_count()
    for name in ("ConfigError", "submit", "EnvSpec"):
        assert getattr(rltrain, name)
    with no_collection():
        pass
    assert gc.get_freeze_count() == before
    with no_collection(freeze=True):
        pass
    assert gc.get_freeze_count() > before


def test_nothing_changes_once_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    with no_collection(freeze=True):
        assert gc.isenabled()
