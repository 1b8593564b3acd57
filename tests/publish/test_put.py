"""A published folder is made whole; one of ours is replaced where that is asked for, and nobody else's."""

from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.publish import publication
from hala_hpc.publish.publication import Entry
from hala_hpc.run import files

CARD = Entry("README.md", text="---\ntags:\n- hala-hpc\n---\n")


def test_a_published_folder_is_replaced_where_that_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "published"
    publication.put([CARD, Entry("old.txt", text="1")], target)
    with pytest.raises(HalaError, match=r"exists .*--replace"):
        publication.put([CARD], target)
    publication.put([CARD, Entry("new.txt", text="2")], target, replace=True)
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "new.txt"]
    with pytest.raises(FileNotFoundError):
        publication.put([CARD, Entry("gone.txt", file=tmp_path / "gone")], target, replace=True)
    assert (target / "new.txt").read_text() == "2", "it is there again"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("notes\n")
    with pytest.raises(HalaError, match="was not published by hala"):
        publication.put([CARD], tmp_path / "mine", replace=True)
    assert (tmp_path / "mine" / "README.md").read_text() == "notes\n"


def test_what_is_replaced_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "published"
    publication.put([CARD, Entry("old.txt", text="1")], target)
    with files.whole_directory(target, replace=True) as folder:
        (folder / "new.txt").write_text("2")
        assert (target / "old.txt").is_file(), "a kill now loses nothing"
    assert [path.name for path in target.iterdir()] == ["new.txt"]
    assert list(tmp_path.iterdir()) == [target]
