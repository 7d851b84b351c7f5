"""What the CPU engine runs, built once from public base weights and a bundle's adapters, then kept in the cache.

    CACHE/engine/DIGEST/   layer-00.xml, .bin   each layer's graph, adapters merged, int8 where that is chosen
                           word.npy ...         the embedding tables, read by mapping the file
                           heads.safetensors    the exit heads
                           tokenizer.json       the base's
                           config.json          what the base says of itself
                           manifest.json        DIGEST whole, and sha256 of every file above
                           compiled-.../        the graphs as compiled for one kind of processor

DIGEST names all inputs. A folder is written whole or not at all; one with a missing, altered or added file is built
anew.
Two processes may build at once: the second finds what the first has put there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from shared.errors import BadSetting, WrongWeights, one_line
from shared.model.base import (
    Array,
    BaseConfig,
    Checkpoint,
    Embeddings,
    check_factors,
    load_tokenizer,
    merge_adapters,
    read_config,
    read_layer,
)
from shared.model.quantization import FILE as QUANTIZATION
from shared.model.quantization import load_table
from shared.model.weights import PINNED, base_folder, cache_dir, locked, scratch, sha256

if TYPE_CHECKING:
    from shared.model.classifier import Trained

log = structlog.get_logger()
FORMAT = 4  # raise it when what a tier computes changes
HEADS, CONFIG, MANIFEST, COMPILED = "heads.safetensors", "config.json", "manifest.json", "compiled-"
_MAPPED_BYTES = 4_000_000
_SEAL = hashlib.sha256().digest_size
Progress = Callable[[int, int], None]  # layers that are built, of how many


@dataclass(frozen=True)
class Head:
    """An exit: pools [S, D] by a learned query (mean pooling where it is zero) and maps to logits [C], in float32.

    bfloat16 would make .999 and .99999 equal: neighbouring exits would not differ, and every theta would fire.
    """

    query: Array  # [D]
    weight: Array  # [C, D]
    bias: Array  # [C]

    def __call__(self, hidden: Array) -> Array:
        """Logits [C] of one text."""
        pooled = self._pooling(hidden) @ hidden  # [D]
        return self.weight @ pooled + self.bias

    def parts(self, hidden: Array) -> Array:
        """What each token adds to the logits, [S, C]."""
        return self._pooling(hidden)[:, None] * (hidden @ self.weight.T)

    def _pooling(self, hidden: Array) -> Array:
        scores = hidden @ self.query  # [S]
        weights = np.exp(scores - scores.max())
        return weights / weights.sum()


def heads_of(trained: Mapping[str, Array], layers: int, shape: tuple[int, int], folder: Path) -> list[Head]:
    """The exit heads of the first `layers` layers; `shape` is [C, D].

    Raises:
        WrongWeights: one is missing, or has another shape.
    """
    shapes = {"query": shape[1:], "weight": shape, "bias": shape[:1]}
    try:
        parts = [{part: trained[f"heads.{n}.{part}"].astype(np.float32) for part in shapes} for n in range(layers)]
    except KeyError as error:
        raise WrongWeights(f"{folder}: exit heads do not fit {layers} layers: {error} is missing") from error
    if any(head[part].shape != shapes[part] for head in parts for part in shapes):
        raise WrongWeights(f"{folder}: exit heads do not fit {layers} layers: classes or hidden size differ")
    return [Head(**head) for head in parts]


@dataclass(frozen=True)
class Built:
    """A folder whose files are those that were built."""

    folder: Path
    layers: int
    embeddings: Embeddings
    heads: list[Head]
    files: Mapping[str, str]  # name -> sha256, as they were built

    def layer(self, n: int) -> Path:
        """The graph of layer `n`, counted from 0."""
        return self.folder / _graph(n)

    def check_layer(self, n: int) -> None:
        """Look again at a layer that is compiled long after the start.

        Raises:
            WrongWeights: its files are missing, or no longer those that were built.
        """
        graph = self.layer(n)
        for path in (graph, graph.with_suffix(".bin")):
            try:
                altered = sha256(path) != self.files[path.name]
            except OSError as error:
                raise WrongWeights(f"{path}: {error.strerror}; start this tier again to build it anew") from error
            if altered:
                raise WrongWeights(f"{path} was altered since the start; start this tier again to build it anew")

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"


@dataclass(frozen=True)
class Recipe:
    """What a folder is built from: the first `layers` layers of a trained classifier."""

    trained: Trained
    layers: int
    quantized: bool

    @property
    def digest(self) -> str:
        """Names every input.

        Raises:
            WrongWeights: one cannot be read.
        """
        return digest_of(self.trained, self.layers, *((QUANTIZATION,) if self.quantized else ()))


def digest_of(trained: Trained, layers: int | None = None, *files: str) -> str:
    """Names a trained classifier: its base, adapters, heads, and such files of its folder; how many layers, if told.

    Raises:
        WrongWeights: one cannot be read.
    """
    base, pinned = trained.base, PINNED.get(trained.base)
    try:
        weights = dict(pinned.files) if pinned else trained.base_files or files_of(base)
        digest = hashlib.sha256(json.dumps([FORMAT, base if pinned else None, weights, trained.scale, layers]).encode())
        for name in ("adapters.safetensors", *files):
            digest.update((trained.folder / name).read_bytes())
    except OSError as error:
        raise WrongWeights(f"{trained.folder}: cannot read the trained classifier: {one_line(error)}") from error
    return digest.hexdigest()


def built(recipe: Recipe, progress: Progress = lambda done, of: None) -> Built:
    """The folder of a recipe, built if it is not there or was altered.

    Raises:
        WrongWeights: an input is missing or does not fit, or the cache cannot be written.
        BadSetting: the base does not have so many layers.
    """
    digest = recipe.digest
    place = cache_dir() / "engine" / digest[:32]
    if (found := _read(place, digest, recipe)) is not None:
        return found
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with scratch(place.parent) as folder:
            _build(recipe, digest, folder / "built", progress)
            _put(folder, place, digest)
    except OSError as error:
        raise WrongWeights(f"TIERWISE_CACHE_DIR: cannot write to {place.parent}: {error.strerror or error}") from error
    found = _read(place, digest, recipe)
    if found is None:
        raise WrongWeights(f"{place}: altered while it was built: start again")
    base = recipe.trained.base
    log.info("engine_built", base=base, layers=recipe.layers, int8=recipe.quantized, folder=str(place))
    return found


def _build(recipe: Recipe, digest: str, folder: Path, progress: Progress) -> None:
    from shared.model.graphs import layer_graph
    from shared.model.runtime import ov

    trained, config = recipe.trained, read_config(recipe.trained.base)
    if not 1 <= recipe.layers <= config.layers:
        raise BadSetting(f"asked for {recipe.layers} layers of an encoder that has {config.layers}")
    if trained.base_files and files_of(trained.base) != trained.base_files:
        raise WrongWeights(f"{trained.base}: its files are not those that {trained.folder} was trained on")
    check_factors(trained.factors, config)
    heads_of(trained.tensors, recipe.layers, (trained.classes, config.hidden), trained.folder)
    tables = load_table(trained.folder, recipe.layers) if recipe.quantized else None
    checkpoint = Checkpoint(base_folder(trained.base))
    folder.mkdir()
    for n in range(recipe.layers):
        progress(n, recipe.layers)
        layer = merge_adapters(read_layer(checkpoint, config, n), config, n, trained.factors, trained.scale)
        graph = layer_graph(layer, config, tables[n] if tables else None)
        with _errors_of_writing():
            ov.save_model(graph, folder / _graph(n), compress_to_fp16=False)
    for name, table in Embeddings.of_base(checkpoint, config).tables.items():
        np.save(folder / f"{name}.npy", table)
    heads = {key: value for key, value in trained.tensors.items() if key.startswith("heads.")}
    tokenizer = load_tokenizer(trained.base)
    with _errors_of_writing():
        save_file(heads, folder / HEADS)
        tokenizer.save(str(folder / "tokenizer.json"))
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2))
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"digest": digest, "files": files}, indent=2))
    progress(recipe.layers, recipe.layers)


@contextmanager
def _errors_of_writing() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the runtime, safetensors and tokenizers each raise their own, not OSError
        raise OSError(one_line(error)) from error


def _put(made: Path, place: Path, digest: str) -> None:
    """Move `made`/built to its place; what lies there is replaced unless another process has just built it."""
    folder = made / "built"
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with locked(place.parent):  # two processes that mend one folder must not take away what the other has put there
        if place.exists():
            if _files(place, digest) is not None:
                return
            place.rename(made / "old")
        folder.rename(place)


def _files(place: Path, digest: str) -> dict[str, str] | None:
    """The sha256 of every file by name; null where the folder is not what was built from the inputs of this digest."""
    if not place.is_dir():
        return None
    try:
        told = json.loads((place / MANIFEST).read_text())
        files, here = told["files"], {path.name for path in place.iterdir() if not path.name.startswith(COMPILED)}
        wrong = {*files, MANIFEST} ^ here or {name for name, wanted in files.items() if sha256(place / name) != wanted}
        if told["digest"] == digest and not wrong:
            return {**files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        wrong = {MANIFEST}
    log.warning("engine_files_altered", folder=str(place), files=sorted(wrong))  # a disk may be failing
    return None


def _read(place: Path, digest: str, recipe: Recipe) -> Built | None:
    if (files := _files(place, digest)) is None:
        return None
    try:
        config = BaseConfig(**json.loads((place / CONFIG).read_text()))
        tables = {path.stem: _table(path) for path in place.glob("*.npy")}
        tensors = load_file(place / HEADS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        log.warning("engine_files_unreadable", folder=str(place), detail=one_line(error))
        return None
    heads = heads_of(tensors, recipe.layers, (recipe.trained.classes, config.hidden), recipe.trained.folder)
    return Built(place, recipe.layers, Embeddings(config, tables), heads, files)


def _table(path: Path) -> Array:
    """An embedding table. A large one is mapped, which keeps its file open; few of its rows are ever read."""
    return np.load(path, mmap_mode="r" if path.stat().st_size > _MAPPED_BYTES else None)


def read_sealed(path: Path) -> bytes | None:
    """What `write_sealed` wrote there; null where it is missing, altered, or another file's."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    seal, content = raw[:_SEAL], raw[_SEAL:]
    return content if _seal(path, content) == seal else None


def write_sealed(path: Path, content: bytes) -> None:
    """Keep what can be made again, after a seal, whole or not at all.

    Raises:
        OSError: the cache cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        unfinished = Path(file.name)
        try:
            file.write(_seal(path, content) + content)
            file.close()
            unfinished.chmod(0o644)  # tiers that share a cache may run as another user
            unfinished.replace(path)
        except OSError:
            unfinished.unlink()
            raise


def _seal(path: Path, content: bytes) -> bytes:
    """The sha256 of a file's place in the cache and its content: a copy of another layer is not taken for this one."""
    place = "/".join(path.parts[-3:])
    return hashlib.sha256(place.encode() + b"\0" + content).digest()


def _graph(n: int) -> str:
    return f"layer-{n:02}.xml"


def files_of(base: str) -> dict[str, str]:
    """What is read of a base that is not pinned: file name -> sha256."""
    folder = base_folder(base)
    kinds = ("*.safetensors", "config.json", "tokenizer*.json", "vocab.*", "merges.txt")
    return {path.name: sha256(path) for path in sorted(path for kind in kinds for path in folder.glob(kind))}
