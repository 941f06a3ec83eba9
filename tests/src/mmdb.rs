//! Writes tiny files in the MaxMind DB format, for checks that look addresses up.

use std::net::IpAddr;

/// A value of a record.
#[derive(Debug, Clone)]
pub enum Value {
    /// A text.
    Text(&'static str),
    /// A number.
    Number(u32),
    /// A number with a fraction.
    Double(f64),
    /// The same in four bytes.
    Float(f32),
    /// A switch.
    Flag(bool),
    /// Named values.
    Map(Vec<(&'static str, Value)>),
    /// Values in a row.
    List(Vec<Value>),
}

/// The bytes of a file for addresses of `version` (4 or 6) that knows `networks`: address, prefix, record.
pub fn write(version: u8, networks: &[(&str, u8, Value)]) -> Vec<u8> {
    let mut tree: Vec<[Child; 2]> = vec![[Child::Nothing; 2]];
    let mut data = Vec::new();
    for (address, prefix, record) in networks {
        let offset = data.len();
        put(&mut data, record);
        insert(&mut tree, &bits(version, address, *prefix), offset);
    }
    let nodes = u32::try_from(tree.len()).expect("tests write small files");
    let mut file = Vec::new();
    for child in tree.iter().flatten() {
        let record = match child {
            Child::Nothing => nodes,
            Child::Node(node) => u32::try_from(*node).expect("tests write small files"),
            Child::Data(offset) => nodes + 16 + u32::try_from(*offset).expect("tests write small files"),
        };
        file.extend_from_slice(&record.to_be_bytes());
    }
    file.extend_from_slice(&[0; 16]);
    file.extend_from_slice(&data);
    file.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
    put_metadata(&mut file, nodes, version);
    file
}

#[derive(Debug, Clone, Copy)]
enum Child {
    Nothing,
    Node(usize),
    Data(usize),
}

fn bits(version: u8, address: &str, prefix: u8) -> Vec<usize> {
    let address: IpAddr = address.parse().expect("an address");
    let (octets, prefix) = match (address, version) {
        (IpAddr::V4(v4), 4) => (v4.octets().to_vec(), prefix),
        (IpAddr::V4(v4), _) => ([vec![0; 12], v4.octets().to_vec()].concat(), prefix + 96),
        (IpAddr::V6(v6), _) => (v6.octets().to_vec(), prefix),
    };
    let bits = octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| usize::from(octet >> bit & 1)));
    bits.take(prefix.into()).collect()
}

fn insert(tree: &mut Vec<[Child; 2]>, bits: &[usize], offset: usize) {
    let mut at = 0;
    let (last, way) = bits.split_last().expect("a prefix of at least one bit");
    for bit in way {
        at = if let Child::Node(node) = tree[at][*bit] {
            node
        } else {
            tree.push([Child::Nothing; 2]);
            let node = tree.len() - 1;
            tree[at][*bit] = Child::Node(node);
            node
        };
    }
    tree[at][*last] = Child::Data(offset);
}

fn put(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Text(text) => {
            head(out, 2, text.len());
            out.extend_from_slice(text.as_bytes());
        }
        Value::Double(number) => {
            head(out, 3, 8);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Value::Float(number) => {
            head(out, 15, 4);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Value::Number(number) => {
            head(out, 6, 4);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Value::Flag(flag) => head(out, 14, usize::from(*flag)),
        Value::Map(entries) => {
            head(out, 7, entries.len());
            for (key, value) in entries {
                put(out, &Value::Text(key));
                put(out, value);
            }
        }
        Value::List(items) => {
            head(out, 11, items.len());
            for item in items {
                put(out, item);
            }
        }
    }
}

/// Type and size; types above 7 take a byte of their own.
fn head(out: &mut Vec<u8>, kind: u8, size: usize) {
    let (short, rest) = match size {
        0..29 => (size, Vec::new()),
        29..285 => (29, vec![size - 29]),
        _ => (30, vec![(size - 285) >> 8, (size - 285) & 0xff]),
    };
    let byte = |number: usize| u8::try_from(number).expect("tests write small files");
    out.push(if kind > 7 { 0 } else { kind << 5 } | byte(short));
    if kind > 7 {
        out.push(kind - 7);
    }
    out.extend(rest.into_iter().map(byte));
}

fn put_metadata(out: &mut Vec<u8>, nodes: u32, version: u8) {
    head(out, 7, 9);
    let number = |out: &mut Vec<u8>, key, kind, bytes: &[u8]| {
        put(out, &Value::Text(key));
        head(out, kind, bytes.len());
        out.extend_from_slice(bytes);
    };
    number(out, "node_count", 6, &nodes.to_be_bytes());
    number(out, "record_size", 5, &[0, 32]);
    number(out, "ip_version", 5, &[0, version]);
    number(out, "binary_format_major_version", 5, &[0, 2]);
    number(out, "binary_format_minor_version", 5, &[0, 0]);
    number(out, "build_epoch", 9, &[0, 0, 0, 0, 0, 0, 0, 1]);
    put(out, &Value::Text("database_type"));
    put(out, &Value::Text("Test"));
    put(out, &Value::Text("languages"));
    put(out, &Value::List(vec![Value::Text("en")]));
    put(out, &Value::Text("description"));
    put(out, &Value::Map(vec![("en", Value::Text("a test"))]));
}
