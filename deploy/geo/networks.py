#!/usr/bin/env python3
"""Makes one file in the MaxMind DB format of lists of networks: first address, last address, number, owner.

    networks.py OUT.mmdb IN.csv...

Standard library only. Ranges are cut into prefixes; where two overlap the later one counts.
"""
import csv
import ipaddress
import struct
import sys


def head(kind, size):
    """Type and size; types above 7 take a byte of their own."""
    if size < 29:
        short, rest = size, b""
    elif size < 285:
        short, rest = 29, bytes([size - 29])
    else:
        short, rest = 30, struct.pack(">H", size - 285)
    if kind > 7:
        return bytes([short, kind - 7]) + rest
    return bytes([kind << 5 | short]) + rest


def text(value):
    raw = value.encode()[:1000].decode(errors="ignore").encode()
    return head(2, len(raw)) + raw


def number(kind, value, width):
    return head(kind, width) + value.to_bytes(width, "big")


def record(asn, owner):
    return (head(7, 2) + text("autonomous_system_number") + number(6, asn, 4)
            + text("autonomous_system_organization") + text(owner))


class Tree:
    """Nodes of two children: none, the number of a node, or a place among the records (negative)."""

    def __init__(self):
        self.left, self.right = [None], [None]
        self.data, self.places = bytearray(), {}

    def place(self, asn, owner):
        key = (asn, owner)
        if key not in self.places:
            self.places[key] = -1 - len(self.data)
            self.data += record(asn, owner)
        return self.places[key]

    def insert(self, bits, length, value):
        at = 0
        for depth in range(127, 127 - length + 1, -1):
            side = self.right if bits >> depth & 1 else self.left
            child = side[at]
            if child is None or child < 0:
                self.left.append(child)
                self.right.append(child)
                side[at] = child = len(self.left) - 1
            at = child
        (self.right if bits >> (128 - length) & 1 else self.left)[at] = value

    def write(self, out):
        nodes = len(self.left)
        with open(out, "wb") as file:
            rows = bytearray()
            for pair in zip(self.left, self.right):
                for child in pair:
                    child = nodes if child is None else child
                    rows += struct.pack(">I", child if child >= 0 else nodes + 16 + (-1 - child))
            file.write(rows + bytes(16) + self.data + b"\xab\xcd\xefMaxMind.com")
            file.write(head(7, 9))
            for key, value in [
                ("node_count", number(6, nodes, 4)),
                ("record_size", number(5, 32, 2)),
                ("ip_version", number(5, 6, 2)),
                ("binary_format_major_version", number(5, 2, 2)),
                ("binary_format_minor_version", number(5, 0, 2)),
                ("build_epoch", number(9, 0, 8)),
                ("database_type", text("networks")),
                ("languages", head(11, 0)),
                ("description", head(7, 0)),
            ]:
                file.write(text(key) + value)


def cut(first, last, width):
    """The fewest prefixes that make up a range: (first address, length)."""
    while first <= last:
        size = first & -first if first else 1 << width
        while size > last - first + 1:
            size >>= 1
        yield first, width - size.bit_length() + 1
        first += size


def main(out, sources):
    tree, count = Tree(), 0
    for source in sources:
        with open(source, newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.reader(file), 1):
                try:
                    first, last = ipaddress.ip_address(row[0]), ipaddress.ip_address(row[1])
                    asn, owner = int(row[2]), row[3]
                    if first.version != last.version or not 0 <= asn < 1 << 32:
                        raise ValueError("not a network")
                except (ValueError, IndexError) as error:
                    sys.exit(f"{source}, line {line}: {error}")
                width, shift = (32, 96) if first.version == 4 else (128, 0)
                value = tree.place(asn, owner)
                for address, length in cut(int(first), int(last), width):
                    tree.insert(address, length + shift, value)
                count += 1
    if not count:
        sys.exit("no networks in " + ", ".join(sources))
    tree.write(out)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
