"""Images of our own programs: of this tree, and of the tree before the newest migration."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from stack import ROOT, Failure, run, say

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
TARGET = TARGET if TARGET.is_absolute() else ROOT / TARGET
TESTBED = Path(os.environ.get("BIGBROTR_TESTBED", TARGET / "testbed"))
PROGRAMS = ["bigbrotr", "scheduler", "worker"]


def newest_migration():
    return max((ROOT / "migrations").glob("[0-9]*.sql"))


def image(tag, folder, revision):
    """The Dockerfile with programs that are built already in place of its build stage."""
    with tempfile.TemporaryDirectory() as built:
        out = Path(built) / "out"
        out.mkdir()
        for program in PROGRAMS:
            run("strip", "-o", out / program, folder / program)
        run("docker", "build", "-q", "-t", tag, "--build-context", f"build={built}",
            "--build-arg", f"REVISION={revision}", ROOT, timeout=300)


def git(*words):
    return run("git", "-C", ROOT, *words, check=False)


def commit_before():
    """The commit before the one that brought the newest migration to this branch; None where the history ends earlier."""
    path = newest_migration().relative_to(ROOT)
    if git("rev-parse", "HEAD").returncode != 0:
        return None
    brought = git("log", "-1", "-s", "--first-parent", "--diff-merges=first-parent", "--diff-filter=A", "--format=%H", "--", path).stdout.strip()
    # Not committed yet: then it is what HEAD lacks.
    before = git("rev-parse", "--verify", "-q", f"{brought}^1^{{commit}}" if brought else "HEAD^{commit}").stdout.strip()
    return before if before and is_upgradable(before) else None


def is_upgradable(commit):
    """Whether what it migrates to is a beginning of what this tree migrates to."""
    names = git("ls-tree", "-r", "--name-only", commit, "migrations/").stdout.split()
    migrations = [name for name in names if name.endswith(".sql")]
    return all(git("rev-parse", f"{commit}:{name}").stdout == git("hash-object", name).stdout for name in migrations)


def had_a_stack(commit):
    """Whether there was anything to upgrade from: before the first compose.yaml nobody ran one."""
    return git("cat-file", "-e", f"{commit}:compose.yaml").returncode == 0


def is_shallow():
    return git("rev-parse", "--is-shallow-repository").stdout.strip() != "false"


class Old:
    """The programs of before the newest migration."""

    def __init__(self, commit):
        self.commit = commit
        self.source = TESTBED / "old" / commit
        self.target = TESTBED / "old" / "target"

    def fetch(self):
        if self.source.is_dir():
            return
        for other in (TESTBED / "old").glob("*"):
            if re.fullmatch("[0-9a-f]{40}(.part)?", other.name):
                shutil.rmtree(other)
        part = self.source.with_suffix(".part")
        part.mkdir(parents=True)
        tar = part.with_suffix(".tar")
        run("git", "-C", ROOT, "archive", "-o", tar, self.commit)
        run("tar", "-x", "-C", part, "-f", tar)
        tar.unlink()
        part.rename(self.source)

    def build(self):
        """A target folder of its own, so that no program of this tree is overwritten; the dependencies are the same."""
        if not self.target.is_dir():
            ours = TARGET / "debug"
            self.target.mkdir(parents=True)
            (self.target / "debug").mkdir()
            for part in ("deps", "build", ".fingerprint"):
                if (ours / part).is_dir():
                    run("cp", "-a", "--reflink=auto", ours / part, self.target / "debug", timeout=300)
        build = ["cargo", "build", "--locked", "--target-dir", self.target]
        run(*build, "-p", "cli", "-p", "scheduler", "-p", "worker", cwd=self.source, timeout=1200)
        return self.target / "debug"


def need_binaries():
    missing = [name for name in [*PROGRAMS, "testrelay"] if not (TARGET / "debug" / name).exists()]
    if missing:
        raise Failure(f"{', '.join(missing)}: not built (cargo build --workspace --bins)")
    return TARGET / "debug"
