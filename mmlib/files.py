"""Files and the machine: inputs that exist, outputs written whole or not at all, JSON with
provenance, what the device computes in.

require, require_disk           an input that another notebook makes; room for what will be written
require_writable, any_terminal  a folder that takes it; a terminal that takes every letter
written_whole                   a file under a temporary name, renamed when it is complete
write_sealed, read_sealed       JSON with a digest of itself and of the files beside it: any damage
is refused by name write_json, provenance          committed outcomes: finite numbers, and the
commit, command and machine that they come from default_device, bf16_pays       where this machine
computes, and in which arithmetic; also its cores, memory and rates
"""

import errno
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from numbers import Integral
from pathlib import Path

import psutil
import xxhash


class MissingInput(FileNotFoundError):
    """A file that another notebook makes is not there; the message names the notebook."""


class StoreError(ValueError):
    """A store that must not be used: damaged, unfinished, or made from something else than was
    asked for.
    """


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, incomplete or of another architecture; the message names the
    file.
    """


class DiskFull(OSError):
    """The disk filled up while it was written to; the message says what is safe."""


@contextmanager
def naming_full_disk(message: str) -> Iterator[None]:
    """Within this context an error of the disk or of a quota having no room left becomes `DiskFull`
    with that message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFull(message) from error


BLOCK = 2**20  # bytes


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write to a temporary name that no other process uses, read it back, and rename it durably.

    Another process that has finished the same file may remove the temporary one.

    Raises:
        StoreError: it reads back otherwise than it was written.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "w+b") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            for start in range(0, len(content), BLOCK):
                if file.read(BLOCK) != bytes(content[start : start + BLOCK]):
                    raise StoreError(f"{path} reads back otherwise than written: check the disk")
        _rename(partial, path)
    except FileNotFoundError:
        if not path.exists():
            raise
    finally:
        partial.unlink(missing_ok=True)


def _rename(partial: Path, path: Path) -> None:
    """To a name that survives a loss of power, as its content does."""
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sealed(content: dict) -> bytes:
    """JSON whose last entry, `digest`, is the XXH3-128 of the other entries."""
    text = json.dumps(content).encode()
    return json.dumps({**content, "digest": xxhash.xxh3_128_hexdigest(text)}, indent=1).encode()


def write_sealed(path: Path, content: dict, files: Sequence[Path] = ()) -> None:
    """Write JSON that guards itself and the files of its folder: their `files` by name, with the
    sha256 of each. It comes last, so where it is, they are whole.
    """
    listed = {file.relative_to(path.parent).as_posix(): sha256(file) for file in files}
    with written_whole(path) as partial:
        partial.write_bytes(sealed({**content, "files": listed}))


def read_sealed(path: Path) -> dict:
    """What `write_sealed` wrote, after reading every byte that it guards.

    Raises:
        CheckpointError: it or a file that it lists is missing or damaged, or a former version of
            this code wrote it, without digests.
    """
    try:
        text = path.read_bytes()
        content = json.loads(text)
        if sealed({key: content[key] for key in content if key != "digest"}) != text:
            raise ValueError("its digest is not that of its content")
        files = content["files"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged, missing, or of a former version, which kept no digests "
            f"({type(error).__name__}: {error}): copy it again, or train or fit it again"
        ) from error
    for name, digest in files:
        if not (path.parent / name).exists():
            raise CheckpointError(f"{path.parent} lacks {name}: copy the whole folder again")
        if sha256(path.parent / name) != digest:
            raise CheckpointError(
                f"{path.parent / name} is damaged or was changed: copy it again, or train or fit "
                "it again"
            )
    return content


def require(path: Path, notebook: str) -> Path:
    """`path` itself, if it exists.

    Raises:
        MissingInput: it does not; the message names the notebook that makes it.
    """
    if not Path(path).exists():
        raise MissingInput(
            f"{path} is missing: run notebooks/{notebook}.ipynb first, with the same parameters"
        )
    return Path(path)


def whole_number(name: str, value, least: int = 0, most: int | None = None) -> int:
    """An argument that counts something, checked at the door.

    Raises:
        ValueError: it is no integer, below `least`, or above `most`.
    """
    integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not integer or value < least or (most is not None and value > most):
        allowed = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} {value!r}: expected an integer {allowed}")
    return int(value)


def require_disk(folder: Path, needed: int, purpose: str) -> None:
    """Refuse, before it starts, work that would fill the disk.

    Raises:
        OSError: fewer than `needed` bytes are free at `folder`.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        unit, name = (1e9, "GB") if needed > 1e7 else (1e6, "MB")
        raise OSError(
            f"{purpose} needs {needed / unit:.2f} {name} at {folder}, where {free / unit:.2f} "
            f"{name} are free: free some space, or point MMLIB_DATA to another disk"
        )


def require_writable(folder: Path) -> None:
    """Refuse, before any work, a folder in which nothing can be written; leaves no trace in it.

    Raises:
        OSError: it cannot be written to, or cannot be made.
    """
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there, buffering=0) as file:
            file.write(bytes(BLOCK // 256))
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written ({error.strerror}), and the outcome belongs there: make "
            "room or give this user the right to write, or point MMLIB_DATA to another folder"
        ) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a path to write to; it takes the name `path` only when the block ends without an
    error, else it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # of a run that was killed
    try:
        yield partial
        with open(partial, "r+b") as file:
            os.fsync(file.fileno())
        _rename(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def any_terminal() -> None:
    """Let the standard streams write what the terminal has no letters for, such as one of ASCII
    under cron, in escapes; else printing a title would end the work.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def code_digest(*files: str) -> str:
    """12 hex digits that change with the named files of mmlib, such as "activations/windows"."""
    folder = Path(__file__).parent
    sources = b"\0".join((folder / f"{name}.py").read_bytes() for name in files)
    return hashlib.sha256(sources).hexdigest()[:12]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


GPU_PACKAGES = ("torch", "diffusers", "accelerate", "transformers", "numpy")  # a bare GPU machine
PACKAGES = ("torch", "transformers", "diffusers", "sae-lens", "scikit-learn", "numpy", "h5py")


CODE = ("mmlib", "notebooks", "requirements.txt")  # what decides a number, of this repository


def git_commit(root: Path) -> str:
    """The commit that `root` is at, with "+changes" if code there differs from it or is untracked;
    "unknown" where `root` is no repository.

    A repository that merely encloses `root`, as where its files were unpacked in somebody's folder,
    says nothing about them; nor does one that the environment names (`GIT_DIR`).
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(root), *arguments)
        options = {"capture_output": True, "text": True, "check": True, "env": environment}
        return subprocess.run(command, **options).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != Path(root).resolve():
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=all", "--", *CODE)
        return git("rev-parse", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(
    root: Path, *, packages: Sequence[str] = PACKAGES, commit: str | None = None, **facts
) -> dict:
    """What a reader needs to make the number again: commit, package versions, time, and the
    caller's facts.

    Args:
        commit: of the code; None: the one that `root` is at.
    """
    return {
        **facts,
        "commit": commit or git_commit(root),
        "packages": {name: version(name) for name in packages},
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_json(path: Path, content: dict) -> Path:
    """Write atomically: a reader sees the old file or the new one.

    Raises:
        ValueError: a number is NaN or infinite; the message names where it stands.
    """
    _refuse_non_finite(content, path.name)
    with written_whole(path) as partial:
        partial.write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return path


def read_json(path: Path) -> dict:
    """Read a results file written by `write_json`."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _refuse_non_finite(value, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_non_finite(inner, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _refuse_non_finite(inner, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: results hold finite numbers only")


def processor() -> str:
    """Name of the processor, as Linux gives it; its architecture where that is not said."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def default_device() -> str:
    """ "cuda" where there is one, else "cpu"."""
    import torch  # here and below: planning and drawing need this file and no torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def bf16_pays(device: str) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def machine_rates(folder: Path) -> dict[str, float]:
    """How fast this machine is at what the notebooks spend their time on, in about three seconds.

    Returns:
        float32 and bfloat16: 10⁹ operations a second of matrix products, the best of several, with
            as
        many threads as torch takes; disk: 10⁶ bytes a second written to `folder` and on the disk.
    """
    import torch

    def product(dtype: torch.dtype) -> float:
        a = torch.randn(512, 512).to(dtype)  # milliseconds: the best of many misses other processes
        a @ a
        seconds, end = math.inf, time.perf_counter() + 1
        while time.perf_counter() < end:
            began = time.perf_counter()
            a @ a
            seconds = min(seconds, time.perf_counter() - began)
        return round(2 * 512**3 / seconds / 1e9, 1)

    block = os.urandom(32_000_000)
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
        disk = len(block) / (time.perf_counter() - began) / 1e6
    return {
        "float32": product(torch.float32),
        "bfloat16": product(torch.bfloat16),
        "disk": round(disk, 1),
    }


def cores() -> int:
    """How many processor cores this process may use, by the machine and by the container."""
    known = hasattr(os, "sched_getaffinity")
    found = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")  # microseconds of each period, or "max"
    most, *period = quota.read_text(encoding="utf-8").split() if quota.exists() else ["max"]
    return found if most == "max" else max(1, min(found, int(most) // int(period[0])))


def free_memory() -> int:
    """Bytes of memory that this process may still take, by the machine and by the container."""
    free = [psutil.virtual_memory().available]
    for limit, used in (  # of control groups, version 2 and version 1
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        path = Path("/sys/fs/cgroup") / limit
        if path.exists() and (most := path.read_text().strip()) != "max":
            free.append(int(most) - int((Path("/sys/fs/cgroup") / used).read_text()))
    return min(free)
