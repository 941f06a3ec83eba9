"""Relay programs nobody here wrote, on the network of a stack, and who publishes to them."""

import itertools

from stack import Failure, run, wait_until

PORT = 7777
# Kinds of tests/tools/relay.sh: three programs, and the one that needs least of the machine several times.
KINDS = ["python", "npm", "local", "local", "local", "local"]
# And one more for each of these networks, which the stack knows by its name there alone.
HIDDEN = {"tor": "local", "loki": "local"}


class Relays:
    def __init__(self, stack, image):
        self.image, self.network, self.names = image, f"{stack.name}_outside", []
        self.seeds = itertools.count(1)
        self.pairs = set()
        for index, kind in enumerate([*KINDS, *HIDDEN.values()]):
            name = f"{stack.name}-relay-{index}"
            self.names.append(name)
            run("docker", "run", "-d", "--name", name, "--network", self.network, image,
                "/tools/relay.sh", kind, PORT, "/state")
        self.urls = [f"ws://{self.address(name)}:{PORT}" for name in self.names]
        # By what the stack knows each of them; who publishes goes past the proxies.
        self.known = dict(zip(self.urls, self.urls))

    def place(self, network):
        """host:port of the one that is for this network."""
        return self.urls[len(KINDS) + list(HIDDEN).index(network)].removeprefix("ws://")

    def hide(self, network, authority):
        self.known[f"ws://{self.place(network)}"] = f"ws://{authority}"

    def address(self, name):
        form = "{{(index .NetworkSettings.Networks \"%s\").IPAddress}}" % self.network
        return run("docker", "inspect", "-f", form, name).stdout.strip()

    def wait_until_they_answer(self):
        def probe():
            for url in self.urls:
                run("docker", "run", "--rm", "--network", self.network, self.image, "/testrelay", "read", url)
            return True

        try:
            wait_until("the relay programs answer", 60, probe, every=1)
        except Failure as failure:
            logs = [run("docker", "logs", "--tail", "5", name, check=False).stderr for name in self.names]
            raise Failure(f"{failure}\n" + "\n".join(logs)) from failure

    def words(self, seed, count, span_s):
        return ["/testrelay", "publish", "--list", "--copies", "mixed", "--count", count, "--span-s", span_s,
                "--seed", seed, *self.urls]

    def publish(self, count, span_s):
        """So many distinct events, on one to all relays each; what was accepted is expected in the archive."""
        words = self.words(next(self.seeds), count, span_s)
        self.expect(run("docker", "run", "--rm", "--network", self.network, self.image, *words).stdout)

    def expect(self, text):
        pairs = {tuple(line.split()) for line in text.splitlines()}
        if not pairs or any(len(pair) != 2 or len(pair[0]) != 64 for pair in pairs):
            raise Failure(f"publishing said something else than events and relays: {text[-300:]}")
        self.pairs |= {(event, self.known[url]) for event, url in pairs}

    def start_load(self):
        """New events for as long as the load lasts, all of the last five minutes, as life is."""
        script = ("seed=1000000; while [ ! -e /tmp/enough ]; do seed=$((seed + 1)); "
                  "%s || exit 1; sleep 0.5; done") % " ".join(map(str, self.words("$seed", 40, 300)))
        self.load = run("docker", "run", "-d", "--network", self.network, self.image, "bash", "-c", script).stdout.strip()
        self.names.append(self.load)

    def end_load(self):
        """Ends it between two batches, and expects what all of them brought."""
        run("docker", "exec", self.load, "bash", "-c", ": >/tmp/enough")
        if run("docker", "wait", self.load, timeout=60).stdout.strip() != "0":
            raise Failure("publishing failed: " + run("docker", "logs", "--tail", "3", self.load).stdout)
        self.expect(run("docker", "logs", self.load).stdout)

    def archived(self, stack):
        """The pairs the archive holds."""
        text = stack.sql("SELECT encode(event_id, 'hex') || ' ' || relay_url FROM observation")
        return {tuple(line.split()) for line in text.splitlines()}

    def wait_until_archived(self, stack, seconds):
        """Everything that was accepted, and nothing else."""
        def probe():
            return len(self.archived(stack)) >= len(self.pairs)

        wait_until(f"{len(self.pairs)} observations are archived", seconds, probe, every=1)
        held = self.archived(stack)
        if held != self.pairs:
            raise Failure(f"{len(self.pairs - held)} observations are lost, {len(held - self.pairs)} come from nowhere")

    def remove(self):
        run("docker", "rm", "-f", "-v", *self.names, check=False)
