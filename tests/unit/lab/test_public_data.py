"""Public data sets, fetched by a transport instead of the network: counted, ordered, or what is missing is told."""

import hashlib
import io
import tarfile
from dataclasses import replace

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lab.data import public
from lab.data.examples import digest, load
from shared.errors import BadSetting

REVIEWS = {
    "train/neg/0_3.txt": "Dull.<br />Long.",
    "train/pos/0_9.txt": "A joy.",
    "train/pos/1_8.txt": "Fine.",
    "test/neg/7_1.txt": "No.",
    "test/pos/7_10.txt": "Yes.",
    "train/unsup/3_0.txt": "no label",
    "imdb.vocab": "a joy",
}


def archive(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"aclImdb/{name}")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def parquet(**columns):
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A builder: a data set made from answers by the end of their URL; its rows are counted as in `counts`."""
    out = io.StringIO()

    def make(name, answers, counts=None, published=None):
        source = public.SOURCES[name]
        changed = replace(source, counts=counts or source.counts, published=published or source.published)
        monkeypatch.setitem(public.SOURCES, name, changed)
        asked = []

        def answer(request):
            asked.append(str(request.url))
            found = next((body for end, body in answers.items() if str(request.url).endswith(end)), None)
            if isinstance(found, Exception):
                raise found
            return httpx.Response(404) if found is None else httpx.Response(200, content=found)

        console = Console(file=out, width=400)
        path = public.make(name, tmp_path, console, transport=httpx.MockTransport(answer))
        return path, asked, out.getvalue()

    return make


def test_reviews_are_in_the_order_of_the_sha256_of_their_names(made, tmp_path):
    path, asked, said = made("imdb", {"tar.gz": archive(REVIEWS)}, {"train": (1, 2), "test": (1, 1)})
    named = [name for name in REVIEWS if name.startswith(("train/neg", "train/pos"))]
    expected = sorted(named, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    train = load(str(path), "train")
    assert [example.text for example in train] == [REVIEWS[name] for name in expected]
    assert [example.label for example in train] == [int("pos" in name) for name in expected]
    assert {example.text for example in load(str(path), "test")} == {"No.", "Yes."}
    assert asked == ["https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"]
    assert "train 3, test 2 rows, not row by row those of the published results" in said
    assert [item.name for item in tmp_path.iterdir()] == ["imdb.parquet"]


def test_rows_that_are_those_of_the_published_results_are_said_to_be(made):
    answers = {
        "mrpc/train-00000-of-00001.parquet": parquet(
            sentence1=["a", "b"], sentence2=["c", "d"], label=[1, 0], idx=[0, 1]
        ),
        "mrpc/validation-00000-of-00001.parquet": parquet(sentence1=["e"], sentence2=["f"], label=[1], idx=[0]),
    }
    rows = [("a", "c", 1), ("b", "d", 0)]
    wanted = {"train": digest([public.Example(*row) for row in rows])[:16]}
    path, _, said = made("mrpc", answers, {"train": (1, 1), "dev": (1,)}, wanted)
    assert [(e.text, e.pair, e.label) for e in load(str(path), "train")] == rows
    assert [(e.text, e.pair, e.label) for e in load(str(path), "dev")] == [("e", "f", 1)]
    assert "rows, row by row those of the published results" in said


def test_a_file_that_a_person_put_there_is_read_and_stays(made, tmp_path):
    (tmp_path / "aclImdb_v1.tar.gz").write_bytes(archive(REVIEWS))
    _, asked, _ = made("imdb", {}, {"train": (1, 2), "test": (1, 1)})
    assert asked == []
    assert {item.name for item in tmp_path.iterdir()} == {"imdb.parquet", "aclImdb_v1.tar.gz"}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (httpx.ConnectError("no route to host"), "no route to host"),
        (None, "404"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
    ],
)
def test_without_the_network_it_says_what_it_needs_and_where_to_put_it(made, tmp_path, answer, why):
    with pytest.raises(BadSetting) as told:
        made("imdb", {"tar.gz": answer})
    said = str(told.value)
    assert "cannot get https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz (" in said
    assert why in said
    assert f"aclImdb_v1.tar.gz as aclImdb_v1.tar.gz elsewhere, put that into {tmp_path}, and run the command" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (archive(REVIEWS), "imdb: train should have 12,500, 12,500 rows by label, and has 1, 2"),
        (archive({}), "has none"),
        (archive(REVIEWS)[:60], "cannot be read"),
        (b"<html>", "cannot be read"),
    ],
    ids=["other rows", "no rows", "cut off", "no archive"],
)
def test_what_is_not_the_data_set_is_refused(made, tmp_path, content, complaint):
    with pytest.raises(BadSetting, match=complaint):
        made("imdb", {"tar.gz": content})
    assert not list(tmp_path.iterdir())


def test_an_earlier_file_and_an_unknown_name_are_told(made, tmp_path):
    (tmp_path / "imdb.parquet").touch()
    with pytest.raises(BadSetting, match="is there already: remove it"):
        made("imdb", {})
    with pytest.raises(BadSetting, match="no data set 'yelp'; there are imdb, cola"):
        public.make("yelp", tmp_path, Console())
