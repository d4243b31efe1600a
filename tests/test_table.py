import pytest

from unary.datasets.table import parse_number, read_table
from unary.errors import ManifestError

KNOWN = ("path", "label", "patient_id", "spacing_mm")


def read(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, needed=("path",), known=KNOWN)


@pytest.mark.parametrize(
    "content",
    [
        "path,label\na,negative\nb,positive\n",
        "\ufeff\ufeffPath;LABEL\r\n a ;negative\r\n;\r\nb;positive",
        "sep=;\npath;label\na;negative\nb;positive\n",
        "\n\npath\tlabel\n\na\tnegative\nb\tpositive\n",
        "path,label\ra,negative\rb,positive\r",
        '"path","label"\n"a","negative"\n"b","positive"\n',
        "path,label,\na,negative,\nb,positive,\n",
    ],
)
def test_a_table_is_read_as_it_is_meant_however_it_was_saved(tmp_path, content):
    rows = read(tmp_path, content)
    assert [(fields["path"], fields["label"]) for _, fields in rows] == [("a", "negative"), ("b", "positive")]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("", "'path' is missing; the file is empty"),
        ("\n\n", "'path' is missing; the file is empty"),
        ("label\nnegative\n", "'path' is missing; the header reads 'label'"),
        ("path,lable\na,negative\n", "the column 'lable' is not known, is 'label' meant?"),
        ("path,Patient ID\na,7\n", "the column 'patient id' is not known, is 'patient_id' meant?"),
        ("path,label,Label\na,x,y\n", "'label' is there twice"),
        ("path,label\na\n", r"line 2: 1 values for 2 columns"),
        ("path,label\na,b,c\n", r"line 2: 3 values for 2 columns"),
        ("path,\na,c\n", "line 2: a value in a column without a name"),
        ("path,label\na,negative\nPATH,Label\nb,positive\n", "line 3: the header once more"),
        ('path,label\na,negative\n"b,negative\nc,positive\n', "line 3: not readable as CSV .*not closed"),
        ('path,label\n"a,negative\nb,negative\n",negative\n', "line 2: a value holds whole rows"),
        (b"path\na\nb\x00\n", "line 3: it holds a NUL"),
        ("path\na\n".encode("utf-16"), "UTF-16, not saved as UTF-8"),
        ("path\na\n".encode("utf-16-le"), "line 1: it holds a NUL"),
        ("path\na\nbrüste\n".encode("latin-1"), "line 3: the byte 0xfc is not UTF-8"),
        (b"PK\x03\x04\x00", "not UTF-8 text but a spreadsheet"),
        (b"\xd0\xcf\x11\xe0\xa1", "not UTF-8 text but a spreadsheet"),
    ],
)
def test_what_may_be_meant_otherwise_is_refused_by_file_line_and_column(tmp_path, content, cause):
    with pytest.raises(ManifestError, match=cause) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "t.csv") in str(caught.value)


def test_a_first_line_that_names_no_column_is_not_quoted(tmp_path):
    with pytest.raises(ManifestError, match="its first line must name the columns") as caught:
        read(tmp_path, "a.png,7,SMITH^JOHN,negative\n")
    assert "SMITH" not in str(caught.value)


def test_columns_that_mean_nothing_are_named(tmp_path, caplog):
    assert read(tmp_path, "path,age,remarks\na,50,x\n")
    assert "columns that mean nothing here and are not read: age, remarks" in caplog.text


def test_a_place_that_is_no_file_is_refused_at_once(tmp_path):
    with pytest.raises(ManifestError, match="not a folder, a pipe or a device"):
        read_table(tmp_path, needed=("path",))
    with pytest.raises(ManifestError, match="not a folder, a pipe or a device"):
        read_table(tmp_path.__class__("/dev/zero"), needed=("path",))
    with pytest.raises(ManifestError, match="No such file"):
        read_table(tmp_path / "gone.csv", needed=("path",))


def test_a_cell_may_be_longer_than_pythons_limit(tmp_path):
    outline = "; ".join(f"{number} {number}" for number in range(20_000))
    assert read(tmp_path, f'path,label\na,"{outline}"\n')[0][1]["label"] == outline


@pytest.mark.parametrize(
    ("text", "number"), [("0,07", 0.07), ("0.07", 0.07), (".5", 0.5), ("-3", -3), ("1e-3", 0.001), ("1,5", 1.5)]
)
def test_numbers_may_have_a_decimal_comma(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["nan", "-inf", "1e999", "1,024", "12,000", "1_0", "0x1", "1.000.000", "", "³", "1 2"])
def test_what_is_no_number_or_two_is_refused(text):
    with pytest.raises(ManifestError):
        parse_number(text)
