"""README.md and docs/ tell the truth: tables equal their sources, commands and options exist, so does what is named.

Commands that are quick are run by `tests/system/test_documentation_commands.py`.
"""

import ast
import doctest
import importlib.util
import re
import shlex
from functools import cache
from typing import get_args

import pytest
import typer

from lab.cli.main import app
from lab.docs import markdown
from lab.docs.tables import ROOT, filled, pages
from shared import __version__
from shared.contracts import (
    ClassifyResponse,
    DegradedReason,
    Exit,
    ExitEvent,
    Explained,
    Hop,
    HopEvent,
    Options,
    Result,
    Why,
    WordUse,
)
from shared.policies import POLICIES
from shared.web.settings import Settings

PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in pages()}
FENCES = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:\w+=\S+ |taskset -c \d+ |.*\| )*(?:\.venv/bin/)?((?:tierwise|make|python)\b.*)")
TICKED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OURS = ("shared", "services", "lab", "tests", "deploy")
# a reader makes them, or they are anywhere
YOURS = {"docker-compose.override.yml", "least_sure.py", "policies/least_sure.py", "site/", "./", "../"}
BASES = {"config.json", "tokenizer.json"}  # of base weights, which are fetched


def commands(page):
    """Every `tierwise`, `make` and `python` command of a page's shell blocks, continued lines joined."""
    for language, body in FENCES.findall(page):
        if language in ("bash", "console"):
            for line in body.replace("\\\n", " ").splitlines():
                if found := COMMAND.match(line.removeprefix("$ ")):
                    yield shlex.split(found[1])


@pytest.mark.parametrize("name", PAGES)
def test_every_table_is_what_its_source_says(name):
    assert filled(PAGES[name]) == PAGES[name], "run `make docs`"


def test_every_parameter_of_every_policy_is_documented():
    page = PAGES["docs/policies.md"]
    for name, policy in POLICIES.items():
        for field, info in policy.model_fields.items():
            assert f"| `{info.alias or field}` |" in page, name


@pytest.mark.parametrize("name", PAGES)
def test_every_tierwise_command_has_the_options_that_are_shown(name):
    for program, *words in commands(PAGES[name]):
        if program == "tierwise":
            assert wrong(words) is None, f"{words}: {wrong(words)}"


def wrong(words):
    """What the command line would refuse; none if it takes the words."""
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    named = ((name, option) for option in command.params for name in (*option.opts, *option.secondary_opts))
    options = {name: option for name, option in named if name.startswith("-")} | {"--help": None}
    positional = 0
    words = iter(words)
    for word in words:
        name, equals, _ = word.partition("=")
        if not word.startswith("-"):
            positional += 1
        elif name not in options:
            return f"no option {name}"
        elif options[name] is not None and not options[name].is_flag and not equals and next(words, None) is None:
            return f"{name} has no value"
    arguments = [parameter.nargs for parameter in command.params if parameter.param_type_name == "argument"]
    return "too many arguments" if positional > len(arguments) and -1 not in arguments else None


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["bench", "--data", "x", "--n", "2"], None),
        (["bench", "--dtaa", "x"], "no option --dtaa"),
        (["link", "sett", "end-edge", "lte"], "no command sett"),
        (["link", "cut", "end-edge", "lte"], "too many arguments"),
        (["plan", "--data"], "--data has no value"),
    ],
)
def test_a_wrong_command_line_would_be_found(words, why):
    assert wrong(words) == why


@pytest.mark.parametrize("name", PAGES)
def test_every_make_target_and_module_that_is_started_exists(name):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in [*commands(PAGES[name]), *(ticked.split() for ticked in TICKED.findall(PAGES[name]))]:
        if words[0] == "make" and words[1:]:
            assert words[1] in targets, words
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), words


@pytest.mark.parametrize("name", PAGES)
def test_every_variable_is_one_that_something_reads(name):
    files = [*ROOT.glob("Makefile"), *ROOT.glob("*.yml"), *(path for ours in OURS for path in (ROOT / ours).rglob("*"))]
    known = {f"TIERWISE_{field.upper()}" for field in Settings.model_fields}
    for path in files:
        if path.suffix in (".py", ".yml", ".sh") or path.name in ("Makefile", "Dockerfile"):
            known |= set(re.findall(r"TIERWISE_[A-Z_]*[A-Z]", path.read_text()))
            known |= {f"TIERWISE_{name}" for name in re.findall(r'"([A-Z_]+)"', path.read_text())}
    assert set(re.findall(r"TIERWISE_[A-Z_]*[A-Z]", PAGES[name])) <= known


def test_the_changelog_names_this_version():
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


# -- names in backticks ------------------------------------------------------------------------------------------------


@cache
def files():
    """Every file of the repository, as a path from its root."""
    skip = {".git", ".venv", "site", "build", "__pycache__"}
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return {
        f"/{path}" for path in found if not skip & set(path.parts) and not any(p.endswith("_cache") for p in path.parts)
    }


@cache
def sources():
    """Every module of ours, parsed: path -> tree."""
    return {
        path: ast.parse(path.read_text())
        for ours in ("shared", "services", "lab", "tests", "deploy")
        for path in (ROOT / ours).rglob("*.py")
    }


@cache
def classes():
    """Every class of ours with its own members and its bases' names."""
    out = {}
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                members, bases = out.setdefault(node.name, (set(), set()))
                bases |= {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
                for part in ast.walk(node):
                    if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                        members.add(part.name)
                    elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                        members.add(part.id)
                    elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                        members.add(part.attr)
    return out


def has(name, member):
    if name not in classes():
        return False
    members, bases = classes()[name]
    return member in members or any(base not in classes() or has(base, member) for base in bases)


def missing(token):
    """Whether a word in backticks names a file, a module or a member that does not exist."""
    if re.fullmatch(r"[\w.*-][\w.*/-]*\.(py|md|json|ya?ml|toml|lock|sh|csv|png|svg)|[\w.-]+(/[\w.-]+)*/", token):
        if token in YOURS | BASES or re.search(r"\b[A-Z]{3,}\b(?!\.md)", token) or "*" in token:
            return False  # FILE.json, OUT/NAME.png: a reader's
        ending = f"/{token}"
        return not any(ending in path if token.endswith("/") else path.endswith(ending) for path in files())
    if re.fullmatch(r"(shared|services|lab|tests)(\.\w+)+", token):
        try:
            return importlib.util.find_spec(token) is None
        except ModuleNotFoundError:
            module, _, name = token.rpartition(".")
            return importlib.util.find_spec(module) is None or not hasattr(importlib.import_module(module), name)
    if found := re.fullmatch(r"([A-Z]\w*[a-z]\w*)\.(\w+)(\(.*\))?", token):
        return not has(found[1], found[2])
    return False


def docstrings():
    """Every docstring of ours, by `path:line`."""
    for path, tree in sources().items():
        for node in ast.walk(tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text


def test_what_docstrings_and_pages_name_in_backticks_exists():
    texts = [*docstrings(), *((name, FENCES.sub("", page)) for name, page in PAGES.items())]
    texts += [(name, (ROOT / name).read_text()) for name in ("tests/README.md",)]
    stale = [f"{where}: {token}" for where, text in texts for token in TICKED.findall(text) if missing(token)]
    assert not stale, "\n".join(stale)


@pytest.mark.parametrize("token", ["nowhere.py", "shared/nowhere.py", "shared.nowhere", "Tier.nowhere", "nowhere/x/"])
def test_a_stale_reference_would_be_found(token):
    assert missing(token)


@pytest.mark.parametrize(
    "token", ["exits.py", "shared/model/exits.py", "shared.model.exits", "Tier.answer", "policies/", "./", "FILE.json"]
)
def test_a_good_reference_is_not_flagged(token):
    assert not missing(token)


def test_the_examples_of_the_table_maker_hold():
    assert doctest.testmod(markdown) == (0, 2)


def test_the_answer_that_is_shown_is_one_and_every_field_of_it_is_explained():
    page = PAGES["docs/answer.md"]
    (shown,) = (body for language, body in FENCES.findall(page) if language == "json")
    ClassifyResponse.model_validate_json(shown)
    explained = set(re.findall(r"`(\w+)`", FENCES.sub("", page)))
    for message in (ClassifyResponse, Result, Hop, Options, Exit, WordUse, Explained, ExitEvent, HopEvent):
        assert message.model_fields.keys() <= explained, message.__name__
    assert set(get_args(DegradedReason)) <= explained
    assert {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")} >= set(Why)
