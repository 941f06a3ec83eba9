"""Where the stack's Alertmanager tells its alerts: a webhook in a container, which prints what it is told."""

import json

from stack import ROOT, Failure, run, wait_until

PORT = 8080
LISTENS = f"""
import http.server
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print(self.rfile.read(int(self.headers["content-length"])).decode(), flush=True)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", {PORT}), Hook).serve_forever()
"""


class Hook:
    def __init__(self, stack, image):
        """On the network on which Alertmanager tells the world; the image is the one of the relay programs."""
        self.stack, self.name = stack, f"{stack.name}-hook"
        run("docker", "run", "-d", "--name", self.name, "--network", f"{stack.name}_view", image,
            "sh", "-c", 'exec "$BIGBROTR_TESTBED/nostr-relay/bin/python" -c "$0"', LISTENS)

    def configure(self):
        """As docs/MONITORING.md says: a folder of the operator's own, with a receiver in the place of `nobody`."""
        text = (ROOT / "deploy/alertmanager/alertmanager.yml").read_text()
        receiver = f"  - name: hook\n    webhook_configs:\n      - url: http://{self.name}:{PORT}/\n        send_resolved: true\n"
        # The end of an alert is told with the next round of its group.
        for old, new in [("receiver: nobody\n", "receiver: hook\n"), ("  - name: nobody\n", receiver),
                         ("group_wait: 30s\n", "group_wait: 1s\n"), ("group_interval: 5m\n", "group_interval: 10s\n")]:
            if text.count(old) != 1:
                raise Failure(f"deploy/alertmanager/alertmanager.yml has not one {old.strip()!r}")
            text = text.replace(old, new)
        folder = self.stack.folder / "alertmanager"
        folder.mkdir()
        (folder / "alertmanager.yml").write_text(text)
        self.stack.set(ALERTMANAGER_DIR="./alertmanager")

    def told(self):
        """(state, name) of each alert it was told of, in order."""
        # A body ends with a line's end of its own.
        bodies = [json.loads(line) for line in run("docker", "logs", self.name).stdout.splitlines() if line]
        return [(alert["status"], alert["labels"]["alertname"]) for body in bodies for alert in body["alerts"]]

    def wait_until_told(self, state, name, seconds, after=0):
        """Of this state of this alert, among what came after so many others."""
        try:
            wait_until(f"the webhook is told that {name} is {state}", seconds, lambda: (state, name) in self.told()[after:], every=1)
        except Failure as failure:
            said = self.stack.compose("logs", "--tail", "8", "alertmanager", "prometheus", check=False).stdout
            raise Failure(f"{failure}; it was told {self.told()}\n{said}") from failure

    def remove(self):
        run("docker", "rm", "-f", self.name, check=False)
