"""The tables of README.md and docs/, from the measured JSON and from the code: `make docs`.

    python -m lab.docs.tables            write every table
    python -m lab.docs.tables --check    exit with status 1 where a page differs from its sources

A table stands between `<!-- made: NAME -->` and `<!-- end -->`; `tables.yaml` holds its columns and says where its
rows are. Words after NAME narrow it (`made: dimee-1 cola`). Sentences are written by hand, outside of the markers.
Left out: pictures (`pictures.py`).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

from lab.docs import measured
from lab.docs.markdown import filled_in, table
from lab.docs.measured import ROOT
from shared.errors import BadSetting

TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
_BLOCK = re.compile(r"(<!-- made: ([a-z0-9 -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def made(block: str) -> str:
    """The table that a page's marker asks for.

    Raises:
        BadSetting: there is none of this name.
    """
    name, *words = [block] if block in TABLES else block.split()
    if name not in TABLES:
        raise BadSetting(f"no table {name!r}: there are {', '.join(TABLES)}")
    source, columns = TABLES[name]["rows"], TABLES[name]["columns"]
    function = source.removesuffix("()")
    found = measured.rows_at(source) if function == source else getattr(measured, function)(*words)
    return table(
        found.rows, {filled_in(heading, found.about): cell for heading, cell in columns.items()} | found.columns
    )


def filled(text: str) -> str:
    """A page with every table made anew.

    Raises:
        BadSetting: a table that nothing here makes.
    """
    return _BLOCK.sub(lambda block: f"{block[1]}{made(block[2])}\n{block[3]}", text)


def pages() -> list[Path]:
    """The README, and every page of the site."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    """Write the tables, or with `--check` name the pages that differ."""
    stale = {page: new for page in pages() if (new := filled(old := page.read_text())) != old}
    for page, new in stale.items():
        if "--check" in sys.argv:
            sys.stderr.write(f"{page.relative_to(ROOT)}: tables differ from their sources; run `make docs`\n")
        else:
            page.write_text(new)
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
