"""A Tor network on the network of a stack, for the stack's own `tor` to be a client of, with one onion service in it."""

from stack import ROOT, Failure, run, wait_until

# All of them in one container, at its address; they end with it.
MEMBERS = """
for name in $(/tools/tornet.sh /net/it "$0" "$(hostname -i)"); do
    [ "$name" != client ] || continue
    [ "$name" != service ] || until /tools/tornet.sh whole /net/it; do sleep 0.5; done
    tor --defaults-torrc /dev/null -f "/net/it/$name/torrc" &
done
wait
"""
# What a worker does first (RFC 1928): is the service reached through the SOCKS5 server of $0?
REACHES = r"""
exec 3<>"/dev/tcp/$0/9050"
printf '\5\1\0' >&3 && [ "$(head -c 2 <&3 | od -An -tx1)" = ' 05 00' ] || exit 1
printf '\5\1\0\3\076%s\0\120' "$1" >&3 && [ "$(head -c 2 <&3 | od -An -tx1)" = ' 05 00' ]
"""


class TorNet:
    def __init__(self, stack, image, target):
        """Authorities, relays and a service that leads to host:port, of the same image as the stack's proxy."""
        self.stack, self.name = stack, f"{stack.name}-tornet"
        run("docker", "run", "-d", "--no-healthcheck", "--name", self.name,
            "--network", f"{stack.name}_outside", "--tmpfs", "/net:uid=10003,mode=700",
            "-v", f"{ROOT}/tests/tools:/tools:ro", "--entrypoint", "bash", image, "-c", MEMBERS, target)

    def text(self, file):
        """What a file of the network says, or a failure where it is not there yet."""
        return run("docker", "exec", self.name, "cat", f"/net/it/{file}").stdout.strip()

    def joins(self, subnet):
        """The stack's Tor is built to know this network and none besides."""
        lines = wait_until("the Tor network is made", 60, lambda: self.text("network"))
        self.stack.confine_tor(*lines.splitlines(), f"ReachableAddresses accept {subnet}")
        self.stack.compose("build", "tor", timeout=300)
        try:
            self.onion = wait_until("the onion service has a name", 120, lambda: self.text("service/onion/hostname"))
        except Failure as failure:
            said = run("docker", "exec", self.name, "tail", "-n", "20", "/net/it/a1/log", check=False).stdout
            raise Failure(f"{failure}\n{said}") from failure
        return self.onion

    def wait_until_reached(self, seconds):
        """From a container beside it, through the proxy of the stack."""
        words = ("docker", "exec", self.name, "timeout", "15", "bash", "-c", REACHES, "tor", self.onion)
        try:
            wait_until("the onion service is reached through the stack's Tor", seconds, lambda: run(*words), every=1)
        except Failure as failure:
            said = self.stack.compose("logs", "--tail", "12", "tor", check=False).stdout
            said += run("docker", "exec", self.name, "tail", "-n", "20", "/net/it/service/log", check=False).stdout
            raise Failure(f"{failure}\n{said}") from failure

    def remove(self):
        run("docker", "rm", "-f", "-v", self.name, check=False)
