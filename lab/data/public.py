"""The public data sets that the manual's commands name, as one file each: `tierwise data NAME`.

    imdb                                  the Large Movie Review Dataset's own archive (Maas et al., ACL 2011)
    cola mnli mrpc qnli qqp sst2          GLUE (Wang et al., ICLR 2019), as on the Hugging Face hub; `dev` is validation

A file that lies in the output folder already is read there and not fetched. Rows are counted by split and label, and a
wrong count is refused. The sha256 of a split says whether it is row by row what the published results were measured on.
IMDB's rows are in the order of the sha256 of their files' names, since the archive has them by label. Left out: GLUE's
test rows, whose labels are secret.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from lab.console import progress
from lab.data.examples import Example, digest
from shared.errors import BadSetting

_HUB = "https://huggingface.co/datasets/nyu-mll/glue/resolve/main"
_REVIEW = re.compile(r"aclImdb/(train|test)/(neg|pos)/\d+_\d+\.txt")
_TESTED = 20_000  # of IMDB's 25,000: those that the published results are of

Rows = dict[str, list[Example]]


@dataclass(frozen=True)
class Source:
    """Where a data set's files are, which columns hold its texts, and how many rows of each label a split has."""

    files: Mapping[str, str]  # file name in the output folder -> URL
    texts: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    published: Mapping[str, str]  # split -> sha256, its first 16 digits


def _glue(name: str, texts: tuple[str, ...], counts: Mapping[str, tuple[int, ...]], **published: str) -> Source:
    dev = "validation_matched" if name == "mnli" else "validation"
    files = {f"{name}-{split}.parquet": f"{_HUB}/{name}/{split}-00000-of-00001.parquet" for split in ("train", dev)}
    return Source(files, texts, counts, published)


SOURCES = {
    "imdb": Source(
        files={"aclImdb_v1.tar.gz": "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"},
        texts=("text",),
        counts={"train": (12_500, 12_500), "test": (9_965, 10_035)},
        published={"train": "e3b818d10ff02812", "test": "d352350ab4accc73"},
    ),
    "cola": _glue(
        "cola",
        ("sentence",),
        {"train": (2_528, 6_023), "dev": (322, 721)},
        train="68a8b37a5d39d339",
        dev="efb23f2afbc603d6",
    ),
    "mrpc": _glue(
        "mrpc",
        ("sentence1", "sentence2"),
        {"train": (1_194, 2_474), "dev": (129, 279)},
        train="4cc310652f45bf67",
        dev="635dd90f38156cde",
    ),
    "sst2": _glue(
        "sst2",
        ("sentence",),
        {"train": (29_780, 37_569), "dev": (428, 444)},
        train="0c0abb08b6669203",
        dev="872f3b9edb5bda8f",
    ),
    "qnli": _glue(
        "qnli",
        ("question", "sentence"),
        {"train": (104_743,), "dev": (5_463,)},
        train="869a7339af59cf4c",
        dev="8d682335c0b35497",
    ),
    "mnli": _glue(
        "mnli",
        ("premise", "hypothesis"),
        {"train": (392_702,), "dev": (9_815,)},
        train="f1bd6cbd1145b13d",
        dev="23427c59e1ecc09e",
    ),
    "qqp": _glue(
        "qqp",
        ("question1", "question2"),
        {"train": (363_846,), "dev": (40_430,)},
        train="7b8d25325d4c9524",
        dev="03e5dcaeae52ef8e",
    ),
}


def make(name: str, folder: Path, console: Console, *, transport: httpx.BaseTransport | None = None) -> Path:
    """Make `folder`/NAME.parquet; `transport` stands in for the network.

    Raises:
        BadSetting: no such data set, a file that cannot be had, or rows that are not those that there should be.
    """
    if name not in SOURCES:
        raise BadSetting(f"no data set {name!r}; there are {', '.join(SOURCES)}; own data: `tierwise fit`")
    source, out = SOURCES[name], folder / f"{name}.parquet"
    if out.exists():
        raise BadSetting(f"{out} is there already: remove it to make it again")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / file for file in source.files]
    fetched: list[Path] = []
    try:
        for path, url in zip(paths, source.files.values(), strict=True):
            if _fetch(name, path, url, console, transport):
                fetched.append(path)
        rows = _reviews(paths[0]) if name == "imdb" else _of_glue(paths, source.texts)
        _check(name, source, rows)
        _write(out, rows, pair=len(source.texts) > 1)
    finally:
        for path in fetched:  # what a person put there stays
            path.unlink()
    told = ", ".join(f"{split} {len(own):,}" for split, own in rows.items())
    same = all(digest(rows[split]).startswith(wanted) for split, wanted in source.published.items())
    what = "row by row those of the published results" if same else "not row by row those of the published results"
    console.print(f"{out}: {told} rows, {what}", highlight=False, soft_wrap=True)
    return out


def _fetch(name: str, path: Path, url: str, console: Console, transport: httpx.BaseTransport | None) -> bool:
    """Fetch a file unless it lies there; whether it was fetched."""
    if path.is_file():
        console.print(f"{path}: is there, and is read", soft_wrap=True)
        return False
    part = path.with_name(f".{path.name}.part")
    try:
        with (
            httpx.Client(transport=transport, follow_redirects=True, timeout=30) as client,  # noqa: TID251 - outside
            client.stream("GET", url) as answer,
            part.open("wb") as file,
            progress(console, transient=True) as bar,
        ):
            answer.raise_for_status()
            task = bar.add_task(path.name, total=int(answer.headers.get("content-length", 0)) or None)
            for piece in answer.iter_bytes():
                file.write(piece)
                bar.advance(task, len(piece))
        part.replace(path)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError, OSError) as error:  # a proxy's too
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadSetting(
            f"{name}: cannot get {url} ({why}). Where there is no network: fetch {_needs(name)} elsewhere, put that "
            f"into {path.parent.absolute()}, and run the command again"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return True


def _needs(name: str) -> str:
    return " and ".join(f"{url} as {file}" for file, url in SOURCES[name].files.items())


def _reviews(archive: Path) -> Rows:
    """IMDB's reviews by split, in the order of the sha256 of their names."""
    found: dict[str, list[tuple[str, Example]]] = {"train": [], "test": []}
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                if not (named := _REVIEW.fullmatch(member.name)) or (file := members.extractfile(member)) is None:
                    continue
                key = hashlib.sha256(member.name.removeprefix("aclImdb/").encode()).hexdigest()
                text = file.read().decode()
                found[named[1]].append((key, Example(text, None, int(named[2] == "pos"), member.name)))
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"{archive}: cannot be read: {error}; if you put it there, remove it") from error
    ordered = {split: [one for _, one in sorted(own, key=lambda item: item[0])] for split, own in found.items()}
    return {"train": ordered["train"], "test": ordered["test"][:_TESTED]}


def _of_glue(paths: Sequence[Path], texts: Sequence[str]) -> Rows:
    rows: Rows = {}
    for split, path in zip(("train", "dev"), paths, strict=True):
        try:
            table = pq.read_table(path, columns=[*texts, "label"]).to_pydict()
        except (pa.ArrowException, OSError) as error:
            raise BadSetting(
                f"{path}: cannot be read: {' '.join(str(error).split())}; if you put it there, remove it"
            ) from error
        sides = [table[column] for column in texts]
        pairs = zip(sides[0], sides[1] if len(sides) > 1 else [None] * len(sides[0]), table["label"], strict=True)
        rows[split] = [Example(text, pair, label, str(path)) for text, pair, label in pairs]
    return rows


def _check(name: str, source: Source, rows: Rows) -> None:
    """Every split has as many rows as it should, and of each label where that is known."""
    for split, wanted in source.counts.items():
        by_label = Counter(example.label for example in rows[split])
        found = tuple(by_label[label] for label in sorted(by_label))
        if found != wanted and (len(wanted) > 1 or sum(found) != wanted[0]):
            said = ", ".join(f"{count:,}" for count in found) or "none"
            raise BadSetting(
                f"{name}: {split} should have {', '.join(f'{count:,}' for count in wanted)} rows by label, and has "
                f"{said}; if you put {', '.join(source.files)} there, remove it"
            )


def _write(path: Path, rows: Rows, *, pair: bool) -> None:
    every = [(split, example) for split, own in rows.items() for example in own]
    columns = {
        "text_a" if pair else "text": pa.array([example.text for _, example in every], pa.string()),
        **({"text_b": pa.array([example.pair for _, example in every], pa.string())} if pair else {}),
        "label": pa.array([example.label for _, example in every], pa.int32()),
        "split": pa.array([split for split, _ in every], pa.string()),
    }
    part = path.with_name(f".{path.name}.part")
    pq.write_table(pa.table(columns), part, compression="zstd")
    part.replace(path)
