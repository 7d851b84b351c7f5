"""Labelled texts as files: what is read, and that what cannot be is told in one line."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.lab.data import Example, load, splits
from shared.errors import BadSetting


def test_digits_are_a_text_and_a_missing_split_is_none(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label,split\n42,1,test\n,0,test\nfine,1,dev\n")
    assert load(str(path), "test") == [Example("42", None, 1), Example("", None, 0)]
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1], "split": [None, "test"]}), tmp_path / "data.parquet")
    assert splits(str(tmp_path / "data.parquet")) == ["test"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.csv", b"", "cannot be read"),
        ("ragged.csv", b"text,label\na,1\nb,1,2\n", "cannot be read"),
        ("latin.csv", b"text,label\nd\xe9j\xe0,1\n", "cannot be read"),
        ("noise.parquet", b"no parquet at all", "cannot be read"),
        ("negative.csv", b"text,label\na,-1\n", "integers from 0"),
        ("fraction.csv", b"text,label\na,0.7\n", "integers from 0"),
        ("words.csv", b"text,label\na,good\n", "integers from 0"),
        ("header.csv", b"text,label\n", "no rows"),
    ],
)
def test_a_bad_file_is_told_by_its_name(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadSetting, match=rf"{name}.*{complaint}"):
        load(str(tmp_path / name))


def test_a_text_that_is_none_is_told_by_its_row(tmp_path):
    pq.write_table(pa.table({"text": ["a", None], "label": [0, 1]}), tmp_path / "data.parquet")
    with pytest.raises(BadSetting, match="row 1 of the split has None"):
        load(str(tmp_path / "data.parquet"))
