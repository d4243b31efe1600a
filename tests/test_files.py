import pytest

from unary.errors import MissingPackageError, UnaryError, require
from unary.files import replacing


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with replacing(path) as partial:
        assert partial.suffix == ".txt"
        partial.write_text("first")
    assert path.read_text() == "first"

    def interrupt_writing():
        with replacing(path) as partial:
            partial.write_text("half of the sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt_writing()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_package_names_the_extra():
    assert require("json", extra="dicom").dumps([1]) == "[1]"
    with pytest.raises(MissingPackageError, match=r"unary\[dicom\]") as caught:
        require("no_such_package_here", extra="dicom")
    assert isinstance(caught.value, UnaryError)
