"""The README's tables say what the measured files say."""

from services.lab.readme import ROOT, filled


def test_every_table_is_up_to_date():
    text = (ROOT / "README.md").read_text()
    assert filled(text) == text, "run `make readme`"
