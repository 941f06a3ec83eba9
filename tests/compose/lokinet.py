"""A stand-in for Lokinet's package, which no registry here has, for the image of deploy/lokinet: it makes the tunnel's
device, as Lokinet does, and its resolver answers every name in .loki with one address. It shows that the container has
the rights that Lokinet needs, and that a worker's way through proxy and resolver is right; not that Lokinet works.
"""

import gzip
import hashlib
import io
import tarfile
import tempfile
from pathlib import Path

from stack import ROOT, run

PROGRAM = r"""#!/usr/bin/perl
use strict;
use Socket;
-e $ARGV[0] or die "no configuration $ARGV[0]\n";
open(my $tunnel, "+<", "/dev/net/tun") or die "no device for a tunnel: $!\n";
my $interface = pack("a16 s x22", "lokitun0", 0x1001);
ioctl($tunnel, 0x400454ca, $interface) or die "no right to make a tunnel: $!\n";
socket(my $names, PF_INET, SOCK_DGRAM, 0) or die "$!\n";
bind($names, sockaddr_in(53, inet_aton("127.3.2.1"))) or die "port 53: $!\n";
while (defined(my $from = recv($names, my $asked, 512, 0))) {
    my ($at, $last) = (12, "");
    while (my $length = ord substr($asked, $at, 1)) {
        $last = lc substr($asked, $at + 1, $length);
        $at += $length + 1;
    }
    my $ours = $last eq "loki";
    my $answer = $ours && unpack("n", substr($asked, $at + 1, 2)) == 1 ? pack("nnnNn", 0xc00c, 1, 1, 60, 4) . inet_aton("ADDRESS") : "";
    my $head = pack("a2 nnnnn", $asked, $ours ? 0x8580 : 0x8182, 1, $answer ne "" ? 1 : 0, 0, 0);
    send($names, $head . substr($asked, 12, $at + 5 - 12) . $answer, 0, $from);
}
"""
CONTROL = "Package: lokinet\nVersion: 0\nArchitecture: all\nMaintainer: nobody <nobody@invalid>\nDescription: stand-in for Lokinet\n"
# As long as a key of Lokinet's, and nobody's.
NAME = "d" * 52 + ".loki"


def packed(files):
    """A .tar.gz of (name, mode, text)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, mode, text in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), mode
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def package(address):
    """A Debian package: an archive of ar(1) with three members."""
    members = [("debian-binary", b"2.0\n"), ("control.tar.gz", packed([("./control", 0o644, CONTROL)])),
               ("data.tar.gz", packed([("./usr/bin/lokinet", 0o755, PROGRAM.replace("ADDRESS", address))]))]
    archive = b"!<arch>\n"
    for name, body in members:
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    return archive


def image(tag, address):
    """The image of deploy/lokinet with a repository of our own in place of the makers'."""
    body = package(address)
    with tempfile.TemporaryDirectory() as context:
        lists, debs = Path(context) / "out/etc/apt/sources.list.d", Path(context) / "out/standin"
        lists.mkdir(parents=True)
        debs.mkdir()
        (lists / "lokinet.list").write_text("deb [trusted=yes] file:/standin ./\n")
        (debs / "lokinet.deb").write_bytes(body)
        index = f"{CONTROL}Filename: ./lokinet.deb\nSize: {len(body)}\nSHA256: {hashlib.sha256(body).hexdigest()}\n"
        (debs / "Packages.gz").write_bytes(gzip.compress(index.encode(), mtime=0))
        run("docker", "build", "-q", "-t", tag, "--build-arg", "DEBIAN=trixie", "--build-context", f"repository={context}",
            ROOT / "deploy/lokinet", timeout=300)
