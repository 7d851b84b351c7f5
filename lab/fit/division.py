"""What a file of labelled rows holds, and a division of it that is fair where rows are few.

    labels     the words that rows are labelled with, in order: numbers by value, else by the alphabet
    left out   rows without a text or a label; a text that is there again; a text with two labels, every time
    parts      test, validation, train: a part has every label with its share of the rows. A `split` column comes first.

Which rows of a label go where hangs on their texts alone (sha256): not on the order of the file, and a row that is
added moves few others. Left out: pairs of texts that say the same in other words.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lab.data.examples import Example, Row, word_of
from lab.data.readable import no_text
from lab.fit.checks import FEWEST
from shared.errors import BadSetting

TEST, VALIDATION = 0.15, 0.2  # of all rows
FEWEST_TESTED, MOST = 20, 2500  # rows of test; of test and of validation
FEWEST_ROWS, FEWEST_OF_LABEL = 100, 8
_VALIDATION_NAMES = ("validation", "dev", "valid", "val")


@dataclass(frozen=True)
class Division:
    """Rows by part, the labels that they are numbered by, and why others were left out."""

    labels: tuple[str, ...]
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    left_out: list[tuple[Row, str]]

    @property
    def kept(self) -> list[Example]:
        """Every row that is used."""
        return [*self.train, *self.validation, *self.test]


def divide(source: str, rows: Sequence[Row]) -> Division:
    """Clean, number and divide the rows of a file.

    Raises:
        BadSetting: too few rows, in all or of a label; one label only; splits without `train`.
    """
    parts = _by_split(source, rows)
    left_out = [(row, f"its split is {row.split!r}") for row in parts.pop("")]
    cleaned = _cleaned([row for part in parts.values() for row in part], left_out)  # test first: a copy leaves train
    labels = _labels(source, cleaned)
    counts = Counter(word_of(row.said) for row in cleaned)
    _check(source, len(cleaned), counts)
    numbered = {id(row): Example(row.text, row.pair, labels.index(word_of(row.said)), row.place) for row in cleaned}
    test, validation, train = ([numbered[id(row)] for row in part if id(row) in numbered] for part in parts.values())
    total = len(cleaned)
    if not test:
        test, train = _drawn(train, _size(total, TEST, FEWEST_TESTED))
    if not validation:
        validation, train = _drawn(train, _size(total, VALIDATION, FEWEST))
    if len({example.label for example in train}) < len(labels):
        missing = sorted(set(labels) - {labels[example.label] for example in train})
        raise BadSetting(f"{source}: no row to train on has label {', '.join(map(repr, missing))}")
    return Division(labels, train, validation, test, left_out)


def _by_split(source: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows to test, validate and train on, in this order; under "": those of other splits."""
    if rows[0].split is None:
        return {"test": [], "validation": [], "train": list(rows), "": []}
    known = {row.split for row in rows}
    if "train" not in known:
        found = ", ".join(sorted(filter(None, known))) or "nothing"
        raise BadSetting(f"{source}: its split column says {found}, never train: rename one, or remove the column")
    validation = next((name for name in _VALIDATION_NAMES if name in known), None)
    names = {"test": "test", "validation": validation, "train": "train"}
    if "test" not in known:  # as GLUE, whose test labels are secret
        names |= {"test": validation, "validation": None}
    of = {part: [row for row in rows if name is not None and row.split == name] for part, name in names.items()}
    return {**of, "": [row for row in rows if row.split not in names.values()]}


def _cleaned(rows: Iterable[Row], left_out: list[tuple[Row, str]]) -> list[Row]:
    """The rows that can be used, each text once; the others are added to `left_out`."""
    usable: list[Row] = []
    said = dict[str, set[str]]()
    for row in rows:
        why = no_text(Example(row.text, row.pair, 0)) or (None if word_of(row.said) else "no label")
        if why:
            left_out.append((row, why))
            continue
        usable.append(row)
        said.setdefault(_key(row), set()).add(word_of(row.said))
    seen = set[str]()
    kept: list[Row] = []
    for row in usable:
        key = _key(row)
        if len(said[key]) > 1:
            left_out.append((row, f"the same text is labelled {' and '.join(sorted(said[key]))}"))
        elif key in seen:
            left_out.append((row, "the same text is there already"))
        else:
            seen.add(key)
            kept.append(row)
    return kept


def _key(row: Row | Example) -> str:
    """What two rows share that say the same: words, whatever their case and the spaces between them."""
    return "\0".join(" ".join(side.casefold().split()) for side in (row.text, row.pair or ""))


def _labels(source: str, rows: Sequence[Row]) -> tuple[str, ...]:
    words = {word_of(row.said) for row in rows}
    if len(words) < 2:
        only = f"all rows have label {words.pop()!r}" if words else "no row can be used"
        raise BadSetting(f"{source}: {only}: nothing to tell apart")
    return tuple(sorted(sorted(words), key=float if all(map(_is_number, words)) else str))


def _is_number(word: str) -> bool:
    return word.removeprefix("-").replace(".", "", 1).isdecimal()


def _check(source: str, total: int, counts: Counter[str]) -> None:
    if total < FEWEST_ROWS:
        raise BadSetting(f"{source}: {total} rows can be used; it takes at least {FEWEST_ROWS}, and more is better")
    if rare := [f"{label!r} {count}" for label, count in sorted(counts.items()) if count < FEWEST_OF_LABEL]:
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        raise BadSetting(
            f"{source}: a label needs at least {FEWEST_OF_LABEL} rows: {', '.join(rare[:5])}{more}; add rows, or "
            "remove the label (or is another column the label? --label-column)"
        )


def _size(total: int, share: float, least: int) -> int:
    return min(MOST, max(least, round(share * total)))


def _drawn(examples: Sequence[Example], count: int) -> tuple[list[Example], list[Example]]:
    """So many examples with each label's share (one at least), and the others; both in the order of the draw."""
    drawn = sorted(examples, key=lambda example: hashlib.sha256(_key(example).encode()).digest())
    quotas = _quotas(Counter(example.label for example in drawn), count)
    taken, rest = list[Example](), list[Example]()
    for example in drawn:
        if quotas[example.label]:
            quotas[example.label] -= 1
            taken.append(example)
        else:
            rest.append(example)
    return taken, rest


def _quotas(counts: Counter[int], total: int) -> dict[int, int]:
    """How many of each label: its share rounded down, the rest to the largest remainders; one at least.

    >>> _quotas(Counter({0: 60, 1: 30, 2: 10}), 15)
    {0: 9, 1: 5, 2: 1}
    """
    exact = {label: total * count / counts.total() for label, count in counts.items()}
    quotas = {label: max(1, int(share)) for label, share in exact.items()}
    for label in sorted(exact, key=lambda label: int(exact[label]) - exact[label]):
        if sum(quotas.values()) < total:
            quotas[label] += 1
    return quotas
