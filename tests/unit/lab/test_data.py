"""Labelled texts as files: what is read, and that what cannot be is told in one line."""

import gzip
import io
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lab.data.examples import Columns, Example, every_row, load, rows_of, splits, training_rows
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


def test_a_cell_that_is_no_text_is_told_by_its_row(tmp_path):
    pq.write_table(pa.table({"text": [b"a", b"b"], "label": [0, 1]}), tmp_path / "data.parquet")
    with pytest.raises(BadSetting, match=r"data.parquet, row 1: text must be text, not b'a'"):
        load(str(tmp_path / "data.parquet"))


# -- CSV files as people have them ------------------------------------------------------------------------------------


def csv(tmp_path, content, name="data.csv"):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(tmp_path / name)


def test_quoted_line_breaks_are_read_however_long_the_file(tmp_path):
    filler = "y" * 560
    rows = [f'"It said ""no"", and\nthen, {at} {filler}",{at % 2}' for at in range(4000)]
    examples = load(csv(tmp_path, "text,label\n" + "\n".join(rows) + "\n"))
    assert len(examples) == 4000
    assert examples[3999] == Example(f'It said "no", and\nthen, 3999 {filler}', None, 1)
    assert examples[3999].place.endswith("data.csv, line 8000")


def test_a_row_may_be_longer_than_a_megabyte(tmp_path):
    examples = load(csv(tmp_path, 'text,label\n"' + "a book\n" * 300_000 + '",1\nshort,0\n'))
    assert [len(example.text) for example in examples] == [7 * 300_000, 5]
    assert examples[1].place.endswith("line 300003")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbftext,label\na,1\nb,0\n",
        b"text,label\r\na,1\r\nb,0\r\n",
        b"text,label\ra,1\rb,0\r",
        b"text,label\n\na,1\n\nb,0",
        b"text;label\na;1\nb;0\n",
        b"text\tlabel\na\t1\nb\t0\n",
        b" text , label \na, 1\nb,0.0\n",
        b"id,text,label,,\n7,a,true,,\n8,b,False,,\n",
    ],
    ids=["mark", "crlf", "cr", "blank lines", "semicolons", "tabs", "spaces", "empty columns"],
)
def test_what_spreadsheets_save_is_read(tmp_path, content):
    assert load(csv(tmp_path, content)) == [Example("a", None, 1), Example("b", None, 0)]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("text,label,label\na,1,1\n", "column 'label' is there twice"),
        ("text,text,label\na,b,1\n", "column 'text' is there twice"),
        ('words;label\n"a, b";1\n', "needs columns text .*it has 'words', 'label'"),
        ("text|label\na|1\n", "it has 'text\\|label' alone; columns are separated by comma, semicolon or tab"),
        ("text\na\n", "needs columns text .*it has 'text' \\("),
        ("a fine film,1\n", "needs columns text .*it has 'a fine film', '1'"),
        ('text,label\na,1\n"b\nc,0\n', "line 3: cannot be read: .*quote.*starts with '\"b"),
        ('text,label\na,1\n"b" c,0\n', "line 3: cannot be read: .*quote"),
        ('text,label\n"a\nb",1\nc,0,2\n', "line 4: cannot be read: 3 fields, .*starts with 'c'"),
        (b"text,label\na,1\nd\xe9j\xe0 vu,1\n", "line 3: cannot be read: it is not UTF-8"),
        ("text,label\na,1\n".encode("utf-16"), "it is UTF-16 or UTF-32; save it as UTF-8"),
        ("text,label\na,1\n".encode("utf-16-le"), "it is UTF-16 or UTF-32; save it as UTF-8"),
        *[
            (f"text,label\nfirst,0\nthe second one,{said}\n", "line 3: labels must be integers .*'the second one'")
            for said in ("inf", "nan", "1.5", "-1", "", "1e30", "10000000000000000000", "good", "0x1")
        ],
    ],
)
def test_what_is_wrong_in_a_csv_is_told_by_line_and_text(tmp_path, content, complaint):
    with pytest.raises(BadSetting, match=f"(?s)data.csv.*{complaint}") as told:
        load(csv(tmp_path, content))
    assert "\n" not in str(told.value)


def test_a_pair_without_its_second_half_is_one_text_in_both_kinds_of_file(tmp_path):
    expected = [Example("a", "42", 1), Example("b", None, 0), Example("c", None, 0), Example("", None, 1)]
    assert load(csv(tmp_path, "text_a,text_b,label\na,42,1\nb,,0\nc,  ,0\n,,1\n")) == expected
    columns = {"text_a": ["a", "b", "c", None], "text_b": ["42", None, "  ", ""], "label": [1, 0, 0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    assert load(str(tmp_path / "data.parquet")) == expected


# -- parquet files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (pa.array(["a", "b"]), pa.array([1, 0], pa.int8())),
        (pa.array(["a", "b"], pa.large_string()), pa.array([1.0, 0.0])),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array([True, False])),
        (pa.array(["a", "b"], pa.string_view()), pa.array(["1", "0"]).dictionary_encode()),
    ],
)
def test_texts_and_labels_of_any_type_that_says_them_are_read(tmp_path, text, label):
    pq.write_table(pa.table({"text": text, "label": label}), tmp_path / "data.parquet")
    assert load(str(tmp_path / "data.parquet")) == [Example("a", None, 1), Example("b", None, 0)]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"text": [["a"]], "label": [0]}, r"row 1: text must be text, not \['a'\]"),
        ({"text": [7], "label": [0]}, "row 1: text must be text, not 7"),
        ({"text": ["a"], "text_b": [3], "label": [0]}, "row 1: text_b must be text, not 3"),
        ({"text": ["a", "b"], "label": [0.0, float("inf")]}, "row 2: labels must be integers from 0.*not inf.*'b'"),
        ({"text": ["a"], "label": [[1]]}, "row 1: labels must be integers"),
        ({"text": ["a"], "label": [None]}, "row 1: labels must be integers"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int8())}, "no rows"),
        ({"words": ["a"], "label": [1]}, "needs columns text"),
    ],
)
def test_what_is_wrong_in_a_parquet_file_is_told_by_row(tmp_path, columns, complaint):
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    with pytest.raises(BadSetting, match=f"data.parquet.*{complaint}"):
        load(str(tmp_path / "data.parquet"))


def test_bytes_that_are_no_utf_8_are_told_by_row(tmp_path):
    offsets = pa.array([0, 1, 3], pa.int32()).buffers()[1]
    texts = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"a\xff\xfe"))
    pq.write_table(pa.table({"text": texts, "label": [0, 1]}), tmp_path / "data.parquet")
    with pytest.raises(BadSetting, match="row 2: text is not UTF-8"):
        load(str(tmp_path / "data.parquet"))


# -- other kinds of file, other names of columns, words for labels ----------------------------------------------------


def packed(columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


SAME = [Example("a, b", None, 1), Example("c", "d", 0)]
KINDS = {
    "data.csv": b'text,text_b,label\n"a, b",,1\nc,d,0\n',
    "data.tsv": b"text\ttext_b\tlabel\na, b\t\t1\nc\td\t0\n",
    "data.jsonl": b'{"text": "a, b", "label": 1}\n\n{"label": 0, "text_b": "d", "text": "c", "id": 7}\n',
    "data.parquet": packed({"text": ["a, b", "c"], "text_b": [None, "d"], "label": [1, 0]}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_texts_packed_or_not(tmp_path, name):
    assert load(csv(tmp_path, KINDS[name], name)) == SAME
    assert load(csv(tmp_path, gzip.compress(KINDS[name]), f"{name}.gz")) == SAME


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("data.xlsx", b"PK", "is no .csv, .tsv, .jsonl or .parquet file"),
        ("data.csv.gz", b"text,label\na,1\n", "it is no whole gzip file"),
        ("data.csv.gz", gzip.compress(b"text,label\na,1\n")[:-9], "it is no whole gzip file"),
        ("data.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"\n', "line 2: cannot be read: it is no JSON"),
        ("data.jsonl", b'{"text": "a", "label": 1}\n["b", 0]\n', "line 2: cannot be read: it is no JSON object"),
        ("data.jsonl", b"\n\n", "it is empty"),
        ("data.jsonl", b'{"words": "a", "label": 1}\n', "needs columns text .*it has 'words', 'label'"),
        ("data.tsv", b"text,label\na,1\n", "needs columns text .*it has 'text,label' alone; .* by tab "),
    ],
)
def test_what_is_wrong_in_another_kind_of_file_is_told(tmp_path, name, content, complaint):
    with pytest.raises(BadSetting, match=f"{name}.*{complaint}"):
        load(csv(tmp_path, content, name))


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("text,label", {}),
        ("sentence,label", {}),
        ("Text,Label", {}),
        ("message,category", {}),
        ("review;sentiment", {}),
        ("words,team", {"text": "words", "label": "team"}),
        ("text,words,label,team", {"text": "words", "label": "team"}),
    ],
)
def test_the_columns_are_found_by_their_usual_names_or_by_those_given(tmp_path, header, named):
    separator = ";" if ";" in header else ","
    row = separator.join(
        {"words": "a", "team": "x"}.get(name, "a" if at == 0 else "x")
        for at, name in enumerate(header.split(separator))
    )
    (found,) = rows_of(csv(tmp_path, f"{header}\n{row}\n"), Columns(**named))
    assert (found.text, found.said) == ("a", "x")


@pytest.mark.parametrize(
    ("header", "named", "complaint"),
    [
        ("text,topic,intent", {}, "which column is the label: topic, intent"),
        ("review,comment,label", {}, "which column is the text: review, comment"),
        ("text,label", {"text": "body"}, "no column 'body'; it has 'text', 'label'"),
        (
            "text|label",
            {"text": "text", "label": "label"},
            "no column 'text'; it has 'text\\|label' alone; columns are",
        ),
        ("body,class", {"text": "body", "label": "body"}, "column 'body' cannot be text and label: --text-column and"),
        ("text,class", {"label": "text"}, "column 'text' cannot be text and label"),
        ("text,label", {"label": "team"}, "no column 'team'; it has 'text', 'label'"),
    ],
)
def test_columns_that_are_not_clear_are_told_with_those_that_there_are(tmp_path, header, named, complaint):
    path = csv(tmp_path, f"{header}\n{','.join('abc'[: header.count(',') + 1])}\n")
    with pytest.raises(BadSetting, match=complaint):
        rows_of(path, Columns(**named))


def test_a_label_is_a_word_of_the_bundle_or_a_place(tmp_path):
    path = csv(tmp_path, "text,label\na,technical\nb, billing\nc,2\n")
    found = load(path, labels=["billing", "delivery", "technical"])
    assert [example.label for example in found] == [2, 0, 2]
    with pytest.raises(BadSetting, match=r"line 2: 'technical' is none of the bundle's labels \(billing, praise\)"):
        load(path, labels=["billing", "praise"])
    stars = csv(tmp_path, "text,label\na,1\nb,5\n", "stars.csv")
    assert [example.label for example in load(stars, labels=["1", "5"])] == [0, 1]  # a word comes before a place


# -- splits -----------------------------------------------------------------------------------------------------------


def test_a_split_of_a_file_without_splits_is_refused_and_all_takes_every_row(tmp_path):
    path = csv(tmp_path, "text,label\na,1\nb,0\n")
    with pytest.raises(BadSetting, match="no split column: add one, or say --split all"):
        load(path, "test")
    assert len(load(path, "all")) == 2
    assert training_rows(path, None) == (load(path), "all")
    with pytest.raises(BadSetting, match="no split column"):
        training_rows(path, "train")


def test_all_takes_every_row_of_a_file_with_splits_too(tmp_path):
    path = csv(tmp_path, "text,label,split\na,1,train\nb,0,test\nc,0,\n")
    assert [example.text for example in load(path, "all")] == ["a", "b", "c"]
    assert [example.text for example in training_rows(path, None)[0]] == ["a"]
    with pytest.raises(BadSetting, match=r"no split 'dev'; it has \['test', 'train'\]"):
        load(path, "dev")


# -- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub():
    """A builder: a hub in memory that holds these files, each with its own path as its text."""

    def build(*paths):
        files = MemoryFileSystem()
        files.store.clear()
        for path in paths:
            with files.open(f"datasets/{path}", "wb") as file:
                pq.write_table(pa.table({"text": [path], "label": [0]}), file)
        return files

    return build


@pytest.mark.parametrize(
    ("files", "split", "read"),
    [
        (["train-00000-of-00001", "test-00000-of-00002", "test-00001-of-00002"], "test", [1, 2]),
        (["data/train", "data/test"], "test", [1]),
        (["imdb-train", "imdb-test"], "test", [1]),
        (["latest-reviews-train", "test"], "test", [1]),
        (["contest-train", "contest-test"], "train", [0]),
        (["train/0000", "test/0000"], "test", [1]),
        (["a/train", "a/test", "b/train"], "test", [1]),
    ],
)
def test_a_split_of_the_hub_is_a_word_of_the_file_s_name(hub, files, split, read):
    paths = [f"acme/latest-reviews/{name}.parquet" for name in files]
    found = load("hub:acme/latest-reviews", split, filesystem=hub(*paths))
    assert [example.text.removeprefix("/") for example in found] == [paths[at] for at in read]


@pytest.mark.parametrize(
    ("source", "files", "complaint"),
    [
        ("hub:acme/latest", ["train"], "no parquet file for split 'test'; there are train.parquet"),
        ("hub:acme/latest", ["en/test", "de/test"], "several configurations: de, en; name one: hub:acme/latest/de"),
        ("hub:acme/latest/fr", ["en/test"], "no parquet file there"),
        ("hub:acme/latest", [], "no parquet file there"),
        ("hub:acme/latest", ["my-train-test"], "which split is my-train-test.parquet"),
        ("hub:", ["test"], "names no data set: say hub:OWNER/NAME"),
        ("hub:acme/*", ["test"], "names no data set: say hub:OWNER/NAME"),
    ],
)
def test_what_the_hub_does_not_tell_apart_is_told(hub, source, files, complaint):
    with pytest.raises(BadSetting, match=re.escape(source) + f".*{complaint}"):
        load(source, "test", filesystem=hub(*(f"acme/latest/{name}.parquet" for name in files)))


def test_every_row_of_the_hub_has_the_split_that_its_file_names(hub):
    files = hub("acme/x/train-0.parquet", "acme/x/train-1.parquet", "acme/x/test.parquet")
    assert [row.split for row in every_row("hub:acme/x", Columns(), filesystem=files)] == ["train", "train", "test"]
    assert [row.split for row in every_row("hub:acme/x", Columns(), filesystem=hub("acme/x/all-0.parquet"))] == [None]


def test_a_configuration_that_is_named_is_read_alone(hub):
    files = hub("acme/x/en/test.parquet", "acme/x/de/test.parquet")
    (example,) = load("hub:acme/x/de", "test", filesystem=files)
    assert example.text == "acme/x/de/test.parquet"
    assert "de/test.parquet, row 1" in example.place


@pytest.mark.parametrize(
    "error", [OSError("no network"), ValueError("Unknown scheme for proxy URL"), ImportError("socksio"), Exception("?")]
)
def test_whatever_the_hub_s_client_raises_is_one_line(error):
    class Broken:
        def glob(self, path):
            raise error

    with pytest.raises(BadSetting, match=r"hub:acme/x: the hub does not give it: "):
        load("hub:acme/x", "test", filesystem=Broken())
