"""What a policy's file does, before any tier has it: its decisions on a dozen texts, replayed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab.console import aside, sheet
from lab.data.examples import Example
from lab.replay.recorder import Recorders
from lab.replay.run import NONE, Run
from lab.replay.trial import links_of
from lab.replay.walk import Replay
from shared.errors import BadSetting, TierwiseError
from shared.failures import in_short
from shared.model.bundle import load_bundle
from shared.policies import POLICIES, spec_of
from shared.policies.mistakes import strangers
from shared.policies.registry import add

REVIEWS = Path(__file__).parents[1] / "live" / "reviews.txt"
LINKS = "5g-nsa/metro"
_SHOWN = 48  # characters of a text


def check(file: Path, bundle_name: str, texts: Path | None, console: Console) -> None:
    """Print each policy of the file with its parameters, and its way with each text.

    Raises:
        BadSetting: the file cannot be used, or a policy raises; with the line.
    """
    names, bundle = add(file), load_bundle(bundle_name)
    lines = [line for line in (texts or REVIEWS).read_text("utf-8").splitlines() if line.strip()]
    recorders = Recorders(console)
    replay = Replay(bundle, [Example(line, None, 0) for line in lines], recorders, profiles=links_of(bundle, LINKS))
    for name in names:
        try:
            run = replay.run(replay.policy(name))
        except TierwiseError:
            raise
        except Exception as error:  # a user's code may raise anything
            raise BadSetting(f"policy {name!r}: {in_short(error)}") from error
        console.print(_table(replay, run, name, lines))
        for warning in (*strangers(POLICIES[name]), *_denied(replay, run, name)):
            aside().print(warning, style="yellow")
    recorders.save()


def _denied(replay: Replay, run: Run, name: str) -> Iterator[str]:
    """A warning for each tier that `after` sent texts on from, while `may_offload_after` says it never does."""
    for at, tier in enumerate(run.tiers):
        where = replay.where(at, replay.stations_of(run))
        if (run.sent_to[at] != NONE).any() and not run.bound.may_offload_after(where):
            yield (
                f"policy {name}: `after` sends texts on from {tier}, and `may_offload_after` says that it never does: "
                "such texts are not pruned, and answers say wrongly why they end; return True there"
            )


def _table(replay: Replay, run: Run, name: str, lines: list[str]) -> Table:
    given = {key: value for key, value in spec_of(replay.policy(name)).items() if key != "name"}
    title = f"{name} ({', '.join(f'{key} {value}' for key, value in given.items())})"
    out = sheet(title, "text", "words", *run.tiers, "answer", words=("text", *run.tiers, "answer"))
    for row, line in enumerate(lines):
        answer = "unreadable"
        if run.label[row] != NONE:
            answer = f"{replay.bundle.labels[run.label[row]]} by {run.tiers[run.answered_by[row]]}"
        cells = [_cell(run, at, row) for at in range(len(run.tiers))]
        shown = line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1].rstrip()}…"
        out.add_row(shown, str(run.words[replay.numbers[row]]), *cells, answer)
    return out


def _cell(run: Run, at: int, row: int) -> str:
    """A tier's confidence, and where it sent the text on."""
    sent = [run.tiers[there] for (here, there), texts in run.carried.items() if here == at and texts[row] != NONE]
    said = f"{run.confidence[at, row]:.2f} after {run.exit_layer[at, row]}" if run.ran[at, row] else ""
    return " ".join(filter(None, (said, *(f"-> {tier}" for tier in sent))))
