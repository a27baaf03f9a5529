import io
import stat
import zipfile

import pytest

from helpers.data.archive import unpack


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def test_unpacks_once(tmp_path):
    archive = zipped(tmp_path / "set.zip", [("a/b.txt", "one"), ("c.txt", "two"), ("empty/", "")])
    folder = unpack(archive, tmp_path / "cache")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.txt")) == ["a/b.txt", "c.txt"]
    assert (folder / "a/b.txt").read_text() == "one"
    (folder / "mark").touch()
    assert unpack(archive, tmp_path / "cache") == folder and (folder / "mark").exists()
    other = unpack(zipped(archive, [("c.txt", "three")]), tmp_path / "cache")
    assert other != folder and (other / "c.txt").read_text() == "three"


def test_leavings_of_systems_are_not_unpacked(tmp_path):
    names = ["a.txt", "__MACOSX/._a.txt", ".DS_Store", "d/Thumbs.db"]
    folder = unpack(zipped(tmp_path / "s.zip", [(name, "x") for name in names]), tmp_path / "cache")
    assert [p.name for p in folder.rglob("*")] == ["a.txt"]


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


OUTSIDE = ["../evil.txt", "a/../../evil.txt", "/evil.txt", "C:/evil.txt", "..\\evil.txt", "\\evil.txt"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_paths_that_lead_outside(tmp_path, name):
    archive = zipped(tmp_path / "set.zip", [("good.txt", "x"), (name, "x")])
    with pytest.raises(ValueError, match=r"set.zip: .*evil.txt' leads outside the archive; do not use"):
        unpack(archive, tmp_path / "inner" / "cache")
    assert not list(tmp_path.rglob("*.txt"))


def test_links(tmp_path):
    with pytest.raises(ValueError, match="'door' is a link"):
        unpack(zipped(tmp_path / "set.zip", [(link("door"), "/etc")]), tmp_path / "cache")
    assert not list(tmp_path.rglob("door"))


def test_more_than_it_may_hold(tmp_path):
    archive = zipped(tmp_path / "set.zip", [("a.txt", "x" * 600), ("b.txt", "x" * 401)])
    with pytest.raises(ValueError, match="set.zip: unpacks to more than 1000 bytes, at 'b.txt'"):
        unpack(archive, tmp_path / "cache", max_bytes=1000)
    assert not any((tmp_path / "cache").iterdir())
    assert unpack(archive, tmp_path / "cache", max_bytes=1001).is_dir()


def test_no_zip_cut_off_or_damaged(tmp_path):
    (tmp_path / "page.zip").write_text("<html>log in</html>")
    with pytest.raises(ValueError, match="page.zip: not a zip"):
        unpack(tmp_path / "page.zip", tmp_path / "cache")
    archive = zipped(tmp_path / "set.zip", [("a.txt", "x" * 600)], zipfile.ZIP_STORED)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match="set.zip: not a zip, or cut off"):
        unpack(archive, tmp_path / "cache")
    archive.write_bytes(whole.replace(b"xxxx", b"xyxx", 1))
    with pytest.raises(ValueError, match="set.zip: damaged .*Bad CRC.*download it again"):
        unpack(archive, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or not any((tmp_path / "cache").iterdir())


def test_one_path_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = zipped(tmp_path / "set.zip", [("a.txt", "1"), ("a.txt", "2")])
    with pytest.raises(ValueError, match="'a.txt' stands twice"):
        unpack(archive, tmp_path / "cache")


def test_encrypted(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.txt", "x")
    raw = bytearray(content.getvalue())
    raw[6] |= 1  # flag of the local header
    raw[raw.index(b"PK\x01\x02") + 8] |= 1  # flag of the directory
    (tmp_path / "set.zip").write_bytes(raw)
    with pytest.raises(ValueError, match="'a.txt' is encrypted; unpack it with its password"):
        unpack(tmp_path / "set.zip", tmp_path / "cache")
