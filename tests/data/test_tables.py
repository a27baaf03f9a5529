import pytest

from helpers.data.tables import find_groups, read_table

NAMES = ("benign (1)", "b", "c")


@pytest.fixture
def groups(tmp_path):
    def find(text=None, names=NAMES, encoding="utf-8"):
        if text is not None:
            (tmp_path / "study.csv").write_text(text, encoding=encoding)
        rows = []
        found = find_groups(names, tmp_path / "study.csv", lambda *row: rows.append(row[1:]))
        return None if found is None else found.tolist(), dict(rows)

    return find


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("column", ["group", "Patient", " examination "])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_as_spreadsheets_write_them(groups, separator, column, encoding):
    lines = [["Name", column], ["benign (1)", " 7 "], ["b.png", "NA"], ["c", "7"], ["", ""]]
    text = "\r\n".join(separator.join(line) for line in lines)
    assert groups(text, encoding=encoding) == (["7", "NA", "7"], {})


def test_a_trailing_comma(groups):
    assert groups("name,group\nb,1,\nc,2,\nbenign (1),3,") == (["3", "1", "2"], {})


def test_groups_from_dates(groups):
    names = ("2018-10-15_11_1", "2018-10-15_11_2", "2018-10-15_12_1", "2019-01-02_11_1")
    assert groups(names=names)[0] == ["2018-10-15_11", "2018-10-15_11", "2018-10-15_12", "2019-01-02_11"]


def test_the_table_goes_before_the_names(groups):
    found, _ = groups("name,group\n2018-10-15_11_1,x", names=("2018-10-15_11_1", "2018-10-15_11_2"))
    assert found == ["x", "2018-10-15_11"]


def test_nothing_known_is_said(groups):
    found, rows = groups()
    assert found is None and "add study.csv" in rows["no patient or examination known"]
    assert groups("name,class\nb,x")[0] is None


def test_some_known_and_some_strange(groups):
    found, rows = groups("name,group\nb,1\nzebra,2\nc,")
    assert found == ["benign (1)", "1", "c"]
    assert rows["images without a group"] == "2 form a group each (benign (1), c); add them to study.csv"
    assert rows["names without image"] == "1 rows not used: zebra"


def test_tables_that_cannot_be_used(groups, tmp_path):
    with pytest.raises(ValueError, match="study.csv: names that stand twice: b; leave one row for each"):
        groups("name,group\nb,1\nb.png,2")
    with pytest.raises(ValueError, match="study.csv: no column 'name' in its first line, got picture, group"):
        groups("picture,group\nb,1")
    with pytest.raises(ValueError, match="study.csv: no column 'name' in its first line, got nothing"):
        groups("")
    with pytest.raises(ValueError, match=r"study.csv: more values than columns in \['c', 'Doe', 'Jane'\]"):
        groups("name,group\nb,1\nc,Doe, Jane")
    assert groups('name,group\nb,1\nc,"Doe, Jane"\nbenign (1)')[0] == ["benign (1)", "1", "Doe, Jane"]
    (tmp_path / "study.csv").write_bytes("name,group\nb,Müller".encode("latin-1"))
    with pytest.raises(ValueError, match="study.csv: not UTF-8 .*save it again as CSV, UTF-8"):
        read_table(tmp_path / "study.csv", ("name",))
