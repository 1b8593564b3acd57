"""What licences ask of what is made from a work, and which one something may be published under."""

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.publish import licences
from hala_hpc.publish.licences import Origin, conflict, decide, normal


def source(licence: str | None, name: str = "a/b", role: str = "data") -> Origin:
    return Origin(name, role, licence)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Apache 2.0", "apache-2.0"), ("Apache License 2.0", "apache-2.0"), ("apache-2.0", "apache-2.0"),
        ("CC BY-NC 4.0", "cc-by-nc-4.0"), ("cc_by_sa_4.0", "cc-by-sa-4.0"), ("MIT License", "mit"), ("CC0", "cc0-1.0"),
        ("LFM1.0", "lfm1.0"), ("odc-by-1.0", "odc-by"),
    ],
)  # fmt: skip
def test_names_as_the_hub_has_them(written: str, meant: str) -> None:
    assert normal(written) == meant


@pytest.mark.parametrize(
    ("theirs", "ours", "why"),
    [
        ("apache-2.0", "cc-by-nc-4.0", None),
        ("cc-by-4.0", "apache-2.0", None),
        ("mit", "lfm1.0", None),
        ("cc-by-nc-4.0", "apache-2.0", "non-commercial"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", None),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", None),
        ("cc-by-sa-4.0", "apache-2.0", "same licence"),
        ("cc-by-sa-4.0", "cc-by-4.0", "same licence"),
        ("cc-by-sa-3.0", "cc-by-sa-4.0", None),
        ("cc-by-sa-4.0", "cc-by-sa-3.0", "same licence"),
        ("cc-by-nc-sa-4.0", "cc-by-sa-4.0", "same licence"),
        ("gpl", "gpl-3.0", "same licence"),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", "nothing made from it"),
        ("gemma", "apache-2.0", "terms of its own"),
        ("lfm1.0", "apache-2.0", "terms of its own"),
        ("lfm1.0", "lfm1.0", None),
        ("llama3.1", "llama3.2", "terms of its own"),
        (None, "apache-2.0", "not known"),
        ("other", "other", "not known"),
        ("cc", "cc-by-4.0", "not known"),
    ],
)
def test_contradictions(theirs: str | None, ours: str, why: str | None) -> None:
    found = conflict(source(theirs), ours)
    assert (found is None) == (why is None)
    assert why is None or (found is not None and why in found and "a/b" in found)


def test_every_licence_of_the_tables_agrees_with_itself_unless_it_forbids_derivatives() -> None:
    for licence in licences.ON_THE_HUB:
        assert (conflict(source(licence), licence) is None) == (licence not in licences.NO_DERIVATIVES), licence
    assert not licences.PERMISSIVE & (licences.SHARE_ALIKE | licences.NON_COMMERCIAL | licences.OWN_TERMS)
    assert all("nc" in name for name in licences.NON_COMMERCIAL if name.startswith("cc-"))
    assert {name for name in licences.ON_THE_HUB if "-sa-" in name} <= licences.SHARE_ALIKE


def test_the_only_licence_that_fits_is_carried() -> None:
    found = decide([source("lfm1.0", "base"), source("apache-2.0", "data")], None)
    assert (found.licence, found.conflicts, found.carried) == ("lfm1.0", (), True)
    assert decide([source("cc-by-sa-4.0"), source("mit", "c")], None).licence == "cc-by-sa-4.0"


def test_where_several_fit_or_none_somebody_has_to_choose() -> None:
    several = decide([source("mit"), source("apache-2.0", "c")], None)
    assert several.licence is None and "apache-2.0, mit" in several.conflicts[0]
    none = decide([source("cc-by-sa-4.0"), source("cc-by-nc-4.0", "c")], None)
    assert none.licence is None and len(none.conflicts) == 3
    assert decide([], None).licence is None
    unknown = decide([source(None), source("mit", "c")], None)
    assert unknown.licence is None and "a/b: its licence is not known" in unknown.conflicts[1]


def test_a_chosen_licence_is_held_against_every_source() -> None:
    found = decide([source("cc-by-nc-4.0"), source("mit", "c"), source("gemma", "d", "model")], "apache-2.0")
    assert found.licence == "apache-2.0" and len(found.conflicts) == 2
    assert decide([source("mit")], "cc-by-4.0").conflicts == ()


def test_a_licence_may_be_given_to_a_source_by_name_but_not_to_one_that_is_none() -> None:
    given = licences.with_given([source(None), source("mit", "c")], {"a/b": "CC BY 4.0"})
    assert [(one.licence, one.named_by) for one in given] == [("cc-by-4.0", "the command line"), ("mit", "")]
    with pytest.raises(HalaError, match=r"no source 'x'.*a/b"):
        licences.with_given([source(None)], {"x": "mit"})
