"""What a person names is found, or the nearest name is offered."""

from pathlib import Path

import pytest

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError
from hala_hpc.pipeline import lookup


def test_profiles_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [tmp_path / "none", tmp_path / "near", tmp_path / "far"]
    for root, name in ((roots[1], "one"), (roots[2], "one"), (roots[2], "two")):
        (root / "sites").mkdir(parents=True, exist_ok=True)
        (root / "sites" / f"{name}.yaml").write_text("{}")
    monkeypatch.setattr(places, "hpc_roots", lambda: roots)
    assert lookup.profile_of("one") == roots[1] / "sites" / "one.yaml"
    assert lookup.profile_of("two") == roots[2] / "sites" / "two.yaml"
    assert lookup.profile_of("some/file.yaml") == Path("some/file.yaml")
    with pytest.raises(HalaError, match=r"no site profile 'on' .*did you mean 'one'"):
        lookup.profile_of("on")
    monkeypatch.setattr(places, "hpc_roots", list)
    with pytest.raises(HalaError, match=r"no site profile 'on' .*there is no folder hpc/ here"):
        lookup.profile_of("on")
