"""A stack of containers as a user has it: a folder with compose.yaml, deploy/, .env and secrets/, and docker compose in it.

Every wait is bounded, and what is waited for has a name.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Failure(Exception):
    """One sentence, for whoever runs the scenario."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*words, check=True, timeout=180, **more):
    """A command's result, its output as text; a failure shows the end of what it said."""
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.PIPE)
    try:
        done = subprocess.run([str(word) for word in words], text=True, timeout=timeout, check=False, **more)
    except subprocess.TimeoutExpired as late:
        raise Failure(f"{' '.join(map(str, words))} took more than {timeout} s") from late
    if check and done.returncode != 0:
        said = ((done.stdout or "") + (done.stderr or "")).strip().splitlines()[-15:]
        raise Failure(f"{' '.join(map(str, words))} ended with {done.returncode}:\n  " + "\n  ".join(said))
    return done


def wait_until(what, seconds, probe, every=0.5):
    """What the probe gives as soon as that is something; probes may fail while they wait."""
    end = time.monotonic() + seconds
    last = None
    while True:
        try:
            found = probe()
            if found:
                return found
        except Failure as failure:
            last = failure
        if time.monotonic() > end:
            raise Failure(f"{what}: not within {seconds} s" + (f" ({last})" if last else ""))
        time.sleep(every)  # bound: seconds


class Stack:
    """One project of containers."""

    def __init__(self, name, folder):
        self.name, self.folder, self.settings = name, Path(folder), {}
        self.folder.mkdir(mode=0o755)
        # Unmodified: what a user runs.
        for file in ("compose.yaml", "Dockerfile", ".env.example"):
            shutil.copy2(ROOT / file, self.folder)
        shutil.copytree(ROOT / "deploy", self.folder / "deploy")
        self.confine_tor()
        self.set(COMPOSE_PROJECT_NAME=name)

    def confine_tor(self, *more):
        """The shipped torrc and, below it, these lines and that there is no way out: what a test starts talks to nobody."""
        shipped = (ROOT / "deploy/tor/torrc").read_text()
        lines = "".join(f"{line}\n" for line in [*more, "ReachableAddresses reject *:*"])
        (self.folder / "deploy/tor/torrc").write_text(shipped + lines)

    def set(self, **settings):
        """Lines of .env."""
        self.settings.update(settings)
        lines = [f"{name}={value}\n" for name, value in self.settings.items() if value is not None]
        (self.folder / ".env").write_text("".join(lines))

    def secret(self, name, text=None):
        """What a secret is, or what it becomes."""
        file = self.folder / "secrets" / f"{name}_password"
        if text is None:
            return file.read_text()
        file.chmod(0o644)
        file.write_text(text)
        file.chmod(0o444)
        return text

    def compose(self, *words, **more):
        return run("docker", "compose", "--ansi", "never", "--progress", "plain", *words, cwd=self.folder, **more)

    def up(self, *words, seconds=150):
        return self.compose("up", "-d", "--wait", "--wait-timeout", seconds, *words, timeout=seconds + 60)

    def once(self, service, *words, **more):
        """A one-shot container's result."""
        return self.compose("run", "--rm", "-T", "--no-deps", service, *words, **more)

    def sql(self, query, **more):
        words = ("psql", "-U", "postgres", "-d", "bigbrotr", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", query)
        return self.compose("exec", "-T", "postgres", *words, timeout=60, **more).stdout.strip()

    def containers(self, *services):
        return self.compose("ps", "-q", *services).stdout.split()

    def inspect(self, *ids):
        return json.loads(run("docker", "inspect", *ids).stdout)

    def address(self, service, network):
        """Where a service's first container is on one of the networks."""
        found = self.inspect(self.containers(service)[0])[0]
        return found["NetworkSettings"]["Networks"][f"{self.name}_{network}"]["IPAddress"]

    def is_well(self, container):
        """Running, and healthy where that is looked at."""
        state = self.inspect(container)[0]["State"]
        return state["Running"] and state.get("Health", {}).get("Status", "healthy") == "healthy"

    def kill(self, container):
        """Ends its main process as the kernel does when memory is short: the restart policy must bring it back."""
        before = self.inspect(container)[0]
        try:
            os.kill(before["State"]["Pid"], signal.SIGKILL)
        except (PermissionError, ProcessLookupError):
            # Not this machine's own processes: an engine in a virtual machine, or not ours to signal.
            run("docker", "kill", container)
            self.compose("up", "-d", "--no-recreate")
        wait_until(
            f"{before['Name']} starts again", 60,
            lambda: self.inspect(container)[0]["State"]["StartedAt"] != before["State"]["StartedAt"],
        )
        wait_until(f"{before['Name']} is well again", 60, lambda: self.is_well(container))

    def down(self):
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)
