"""The folder of a run: made once, locked while it is used, never overwritten.

    checkpoints/step-000012/   adapter/, optimizer.safetensors, parts.safetensors, trainer.json, manifest.json
    last, best                 symbolic links to a checkpoint's adapter/, moved in one step; no best where no trained
                               state was better than the untouched base
    run.json                   the run's id and what the report shows

A checkpoint is written as checkpoints/.unfinished-*, synced, given a manifest of sizes and checksums as its last file,
and renamed. What has no valid manifest of this run is never resumed from.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from lrft.errors import CheckFailed, LrftError, UsageError
from lrft.utils import files

MARKER = "run.json"
LOCK = ".lock"
UNFINISHED = ".unfinished-"
REPLACED = ".replaced-"


class RunFolder:
    """An open run folder. Use as a context manager: the lock is held inside."""

    def __init__(self, path: Path, run_id: str, warnings: list[str]) -> None:
        self.path = path
        self.run_id = run_id
        self.warnings = warnings
        self._lock: int | None = None

    @staticmethod
    def refuse(path: Path, *, resume: bool, fresh: bool) -> None:
        """Raises UsageError when `path` holds something else than is asked for. Writes nothing."""
        try:
            parent = files.existing_parent(path)
        except OSError as error:  # a name that is too long
            raise UsageError(f"output_dir {str(path)[:80]}: {error.strerror}", "Choose another output_dir.") from None
        if not parent.is_dir():
            raise UsageError(f"output_dir {path}: {parent} is a file", "Choose another output_dir.")
        holds_run = (path / MARKER).is_file()
        if resume and not holds_run:
            raise UsageError(f"{path} has no run to resume")
        if holds_run and not resume and not fresh:
            raise UsageError(
                f"{path} already contains a run",
                "Continue it with --resume, or use --fresh to rename it and start from scratch.",
            )
        if not holds_run and path.exists() and not _is_ours_unborn(path):
            raise UsageError(f"output_dir {path} is not empty and not a run of lrft", "Choose another output_dir.")
        if not os.access(parent, os.W_OK):
            raise UsageError(f"output_dir {path}: writing is not permitted there", "Choose another output_dir.")

    @staticmethod
    def refuse_in_use(path: Path) -> None:
        """Raises LrftError when another process has the folder. One that comes later is found by `open`."""
        if (path / LOCK).is_file():
            handle = os.open(path / LOCK, os.O_RDONLY)
            _lock(handle, path)
            os.close(handle)

    @classmethod
    def open(cls, path: Path, *, resume: bool, fresh: bool) -> RunFolder:
        """Make `path`, or take it up again, and lock it. Raises UsageError as `refuse`, LrftError when it is in use."""
        cls.refuse(path, resume=resume, fresh=fresh)
        warnings = []
        if fresh and (path / MARKER).is_file():
            with cls(path, "", []) as earlier:
                earlier._take_lock()  # a run that is still going on must not be moved away under its feet
                aside = _free_name(path)
                path.rename(aside)
            warnings.append(f"the earlier run was moved to {aside}")
        with files.room_for(path):
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        run_id = files.read_json(path / MARKER)["id"] if resume else secrets.token_hex(8)
        folder = cls(path, run_id, warnings)
        try:
            folder._take_lock()
            folder._sweep()
            cls.refuse(path, resume=resume, fresh=False)  # another process may have had the lock until now
            if not resume:
                files.write_json(path / MARKER, {"id": run_id})
        except BaseException:
            folder.close()
            raise
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # which releases the lock
            self._lock = None

    def describe(self, facts: dict[str, Any]) -> None:
        """Write run.json: `facts` for the report, with the run's id."""
        files.write_json(self.path / MARKER, {"id": self.run_id, **facts})

    def save(self, step: int, write: Callable[[Path], None], *, keep: int, best: bool) -> Path:
        """Make a checkpoint for `step` with the files that `write` puts into a folder; move the links; rotate.

        Older checkpoints go only after this one is durable; the one that `best` points to stays.
        """
        final = self.path / "checkpoints" / f"step-{step:06d}"
        temporary = final.with_name(f"{UNFINISHED}{final.name}-{os.getpid()}")
        with files.room_for(self.path):
            temporary.mkdir()
            try:
                write(temporary)
                self._seal(temporary, step)
                replaced = final.with_name(f"{REPLACED}{final.name}")
                if final.exists():  # the same step, saved again after a resume
                    final.rename(replaced)
                temporary.rename(final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            files.sync(final.parent)
            shutil.rmtree(replaced, ignore_errors=True)
            files.point(self.path / "last", final / "adapter")
            if best:
                files.point(self.path / "best", final / "adapter")
        self._rotate(keep)
        return final

    def checkpoints(self) -> list[Path]:
        """Folders that look like checkpoints, oldest first; unread."""
        found = (p for p in (self.path / "checkpoints").glob("step-*") if p.name[5:].isdigit())
        return sorted(found, key=lambda p: int(p.name[5:]))

    def resume_from(self, choice: str) -> Path | None:
        """The checkpoint meant by `choice`: "last", "best" or a path. Raises CheckFailed when there is no valid one.

        For "last", damaged checkpoints and those of other runs are passed over, with a warning each; None when the
        run ended before its first checkpoint.
        """
        if choice == "last":
            # A resume from an earlier checkpoint leaves later steps behind: what was saved last counts, by its link.
            linked = (self.path / "last").resolve().parent
            newest_first = self.checkpoints()[::-1]
            found = sorted(newest_first, key=lambda p: p.resolve() != linked)
            if not found:
                return None
            for path in found:
                try:
                    self.verify(path)
                    return path
                except CheckFailed as error:
                    self.warnings.append(f"skipped {path.name}: {error.message}")
            raise CheckFailed(f"{self.path} has no complete checkpoint", "Start from scratch with --fresh.")
        if choice == "best" and not (self.path / "best").exists():
            raise CheckFailed(f"{self.path} has no best checkpoint", "Continue from the last one: --resume.")
        path = self.path / "best" if choice == "best" else Path(choice)
        if not path.is_dir():
            names = ", ".join(p.name for p in self.checkpoints()) or "none"
            raise UsageError(f"there is no checkpoint {choice}", f"Checkpoints in {self.path}: {names}.")
        if (path / "lrft.json").is_file():  # an adapter, or a link to one: its checkpoint is meant
            path = path.resolve().parent
        self.verify(path)
        return path

    def take_up(self, path: Path, *, best_step: int | None, keep: int) -> None:
        """Links and rotation as checkpoint `path` wants them: the run may have been killed before it came to that.

        best_step: None or 0 when no trained state is the best yet: then there is no link to one.
        """
        if path.resolve().parent == (self.path / "checkpoints").resolve():
            files.point(self.path / "last", path / "adapter")
        if best_step:
            best = self.path / "checkpoints" / f"step-{best_step:06d}"
            if self._is_ours(best):
                files.point(self.path / "best", best / "adapter")
        else:
            (self.path / "best").unlink(missing_ok=True)
        self._rotate(keep)

    def verify(self, path: Path) -> None:
        """Raises CheckFailed naming the first part of checkpoint `path` that is missing, altered, or of another run."""
        manifest = files.read_json(path / "manifest.json")
        try:
            run, listed = manifest["run"], {n: (f["size"], f["sha256"]) for n, f in manifest["files"].items()}
        except (KeyError, TypeError, AttributeError):
            raise CheckFailed(f"{path / 'manifest.json'} is not a valid manifest") from None
        if run != self.run_id:
            raise CheckFailed(f"{path} belongs to another run")
        for name, (size, sha256) in listed.items():
            part = path / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise CheckFailed(f"{path / 'manifest.json'} lists {name!r}, which is not a file in its folder")
            if not part.is_file():
                raise CheckFailed(f"{part} is missing")
            if part.stat().st_size != size:
                raise CheckFailed(f"{part} has {part.stat().st_size} bytes, {size} were saved")
            if files.sha256(part) != sha256:
                raise CheckFailed(f"{part} is not the file that was saved (its checksum differs)")

    def _seal(self, folder: Path, step: int) -> None:
        parts = sorted(p for p in folder.rglob("*") if p.is_file())
        listed = {
            p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": files.sha256(p)} for p in parts
        }
        for part in parts:
            files.sync(part)
        for below in [p for p in folder.rglob("*") if p.is_dir()]:
            files.sync(below)
        files.write_json(folder / "manifest.json", {"run": self.run_id, "step": step, "files": listed})
        files.sync(folder)

    def _rotate(self, keep: int) -> None:
        pinned = {(self.path / name).resolve().parent for name in ("best", "last")}
        ours = [p for p in self.checkpoints() if self._is_ours(p)]
        for path in ours[:-keep]:
            if path.resolve() not in pinned:
                # Renamed first: half removed it would look like a checkpoint without a manifest, not to be touched.
                going = path.with_name(f"{UNFINISHED}{path.name}-{os.getpid()}")
                path.rename(going)
                shutil.rmtree(going)

    def _is_ours(self, path: Path) -> bool:
        try:
            return bool(json.loads((path / "manifest.json").read_text()).get("run") == self.run_id)
        except (OSError, ValueError, AttributeError):
            return False

    def _sweep(self) -> None:
        """Remove what a killed process left half written. Only names that lrft makes."""
        checkpoints = self.path / "checkpoints"
        for path in checkpoints.glob(f"{UNFINISHED}*"):
            shutil.rmtree(path)
        for path in checkpoints.glob(f"{REPLACED}*"):
            final = path.with_name(path.name.removeprefix(REPLACED))
            if final.exists():
                shutil.rmtree(path)
            else:
                path.rename(final)
        for path in files.leftovers(self.path):
            path.unlink()

    def _take_lock(self) -> None:
        with files.room_for(self.path):
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        _lock(handle, self.path)
        self._lock = handle
        with files.room_for(self.path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _lock(handle: int, path: Path) -> None:
    """Lock the open file. Raises LrftError, and closes it, when another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 200).decode(errors="replace").strip()
        os.close(handle)
        raise LrftError(f"{path} is in use by another lrft ({holder or 'unknown process'})") from None


def _is_ours_unborn(path: Path) -> bool:
    """Whether `path` is empty, or holds no more than a start that failed before it wrote its marker."""
    left = set(files.leftovers(path))
    rest = [p for p in path.iterdir() if p.name != LOCK and p not in left]
    return not rest or (rest == [path / "checkpoints"] and not any(rest[0].iterdir()))


def _free_name(path: Path) -> Path:
    numbers = (path.with_name(f"{path.name}.{n}") for n in range(1, 10_000))
    return next(p for p in numbers if not p.exists())
