//! Files of addresses: both layouts, files that are not there or broken, and files that are replaced.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::super::files::DataFiles;
use super::super::mmdb::{Value, write};
use super::super::{Looks, Observation, geo, geohash, net};
use super::*;
use crate::clock;

/// A folder of its own that goes away with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("bigbrotr-places-{}", clock::random_hex(8)));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        // As operators are told to: written beside, renamed over.
        let beside = self.0.join("new");
        fs::write(&beside, bytes).unwrap();
        fs::rename(&beside, &path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn english(name: &'static str) -> Value {
    Value::Map(vec![("names", Value::Map(vec![("de", Value::Text("?")), ("en", Value::Text(name))]))])
}

fn with(entry: (&'static str, Value), into: Value) -> Value {
    let Value::Map(mut entries) = into else { panic!("a map") };
    entries.push(entry);
    Value::Map(entries)
}

fn nested() -> Value {
    let country = with(("iso_code", Value::Text("DE")), english("Germany"));
    Value::Map(vec![
        ("city", with(("geoname_id", Value::Number(2_950_159)), english("Berlin"))),
        ("continent", with(("code", Value::Text("EU")), english("Europe"))),
        ("country", with(("is_in_european_union", Value::Flag(true)), country)),
        (
            "location",
            Value::Map(vec![
                ("accuracy_radius", Value::Number(20)),
                ("latitude", Value::Double(52.520_008)),
                ("longitude", Value::Double(13.404_954)),
                ("time_zone", Value::Text("Europe/Berlin")),
            ]),
        ),
        ("postal", Value::Map(vec![("code", Value::Text("10115"))])),
        ("subdivisions", Value::List(vec![english("Land Berlin"), english("not the first")])),
    ])
}

fn flat() -> Value {
    Value::Map(vec![
        ("city", Value::Text("Mountain\u{7} View")),
        ("country_code", Value::Text("US")),
        ("latitude", Value::Float(37.4223)),
        ("longitude", Value::Float(-122.085)),
        ("postcode", Value::Text("94043")),
        ("state1", Value::Text("California")),
        ("state2", Value::Text("")),
        ("timezone", Value::Text("America/Los_Angeles")),
    ])
}

fn files(paths: &[&Path]) -> DataFiles {
    DataFiles::rechecked(paths.iter().map(|path| path.to_path_buf()), 0)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn data(seen: &Observation) -> Json {
    let document = seen.document.as_ref().expect("a document").canonical();
    serde_json::from_str::<Json>(document).unwrap()["data"].clone()
}

fn country(files: &DataFiles) -> Result<String, Reason> {
    let seen = geo::judge(files, &ips(&["127.0.0.1"]));
    if seen.outcome == Outcome::Ok {
        return Ok(data(&seen)["geo_country"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen.outcome, Outcome::Skipped);
    assert!(seen.document.is_none());
    Err(seen.reason)
}

fn of_country(code: &'static str) -> Vec<u8> {
    write(4, &[("127.0.0.0", 8, Value::Map(vec![("country_code", Value::Text(code))]))])
}

#[test]
fn the_nested_and_the_flat_layout_say_the_same_things() {
    let folder = Folder::new();
    let file =
        folder.file("city.mmdb", &write(6, &[("203.0.113.0", 24, nested()), ("2001:db8::", 32, flat())]));
    let files = files(&[&file]);
    assert_eq!(
        data(&geo::judge(&files, &ips(&["2001:db8::1", "203.0.113.7"]))),
        json!({
            "geo_country": "DE", "geo_country_name": "Germany", "geo_continent": "EU",
            "geo_continent_name": "Europe", "geo_is_eu": true, "geo_region": "Land Berlin", "geo_city": "Berlin",
            "geo_postal": "10115", "geo_lat": 52.52, "geo_lon": 13.405, "geo_accuracy": 20,
            "geo_tz": "Europe/Berlin", "geo_hash": "u33dc0cpp", "geo_geoname_id": 2_950_159,
        }),
        "v4 first"
    );
    assert_eq!(
        data(&geo::judge(&files, &ips(&["2001:db8::1"]))),
        json!({
            "geo_country": "US", "geo_region": "California", "geo_city": "Mountain View", "geo_postal": "94043",
            "geo_lat": 37.4223, "geo_lon": -122.085, "geo_tz": "America/Los_Angeles", "geo_hash": "9q9hvus2t",
        })
    );
}

#[test]
fn geohashes_are_those_of_the_known_places() {
    for (lat, lon, hash) in [
        (57.64911, 10.40744, "u4pruydqqvj"),
        (-25.382_708, -49.265_506, "6gkzwgjzn820"),
        (0.0, 0.0, "s0000"),
        (90.0, 180.0, "zzzzz"),
        (-90.0, -180.0, "00000"),
    ] {
        assert_eq!(geohash(lat, lon, hash.len()), hash);
    }
}

#[test]
fn files_complete_one_another_in_their_order_and_a_v4_file_is_not_asked_about_v6() {
    let folder = Folder::new();
    let first = folder.file("v4.mmdb", &of_country("AA"));
    let second = folder.file(
        "v6.mmdb",
        &write(
            6,
            &[
                ("127.0.0.0", 8, flat()),
                ("2001:db8::", 32, Value::Map(vec![("country_code", Value::Text("BB"))])),
            ],
        ),
    );
    let alone = geo::judge(&files(&[&first]), &ips(&["2001:db8::9"]));
    assert_eq!(alone.reason, Reason::DataNoRecord, "it is not broken, it does not know");
    let files = files(&[&first, &second]);
    let seen = data(&geo::judge(&files, &ips(&["127.0.0.1"])));
    assert_eq!((&seen["geo_country"], &seen["geo_region"]), (&json!("AA"), &json!("California")));
    assert_eq!(data(&geo::judge(&files, &ips(&["2001:db8::9"]))), json!({"geo_country": "BB"}));
}

#[test]
fn a_file_that_is_missing_broken_or_ignorant_skips_the_check_with_its_reason() {
    let folder = Folder::new();
    let good = folder.file("good.mmdb", &of_country("AA"));
    let missing = folder.0.join("missing.mmdb");
    let empty = folder.file("empty.mmdb", b"");
    let garbage = folder.file("garbage.mmdb", &[0xab; 5_000]);
    let whole = of_country("AA");
    let cut = folder.file("cut.mmdb", &whole[..whole.len() / 2]);
    // The tree stands and leads into records that are none.
    let mut bytes = whole.clone();
    let text = bytes.windows(12).position(|at| at == b"country_code").unwrap();
    bytes[text - 2] = 0xe9;
    bytes[text - 1] = 0xff;
    let rotten = folder.file("rotten.mmdb", &bytes);
    let other = folder.file("other.mmdb", &write(4, &[("9.0.0.0", 8, flat())]));
    assert_eq!(country(&files(&[])), Err(Reason::DataMissing));
    assert_eq!(country(&files(&[&missing])), Err(Reason::DataMissing));
    assert_eq!(country(&files(&[&other])), Err(Reason::DataNoRecord));
    assert_eq!(country(&files(&[&folder.0])), Err(Reason::DataCorrupt), "a folder");
    for broken in [&empty, &garbage, &cut, &rotten] {
        assert_eq!(country(&files(&[broken])), Err(Reason::DataCorrupt), "{}", broken.display());
        assert_eq!(country(&files(&[&missing, &other, broken])), Err(Reason::DataCorrupt));
        assert_eq!(country(&files(&[&missing, broken, &good])), Ok("AA".to_owned()), "the others go on");
    }
}

#[test]
fn a_file_renamed_over_another_is_read_from_then_on_and_one_that_comes_back_too() {
    let folder = Folder::new();
    let path = folder.file("geo.mmdb", &of_country("AA"));
    let (live, patient) = (files(&[&path]), DataFiles::new([path.clone()]));
    assert_eq!((country(&live), country(&patient)), (Ok("AA".to_owned()), Ok("AA".to_owned())));
    folder.file("geo.mmdb", &of_country("BB"));
    assert_eq!(country(&live), Ok("BB".to_owned()));
    assert_eq!(country(&patient), Ok("AA".to_owned()), "the disk is not asked at every look");
    fs::remove_file(&path).unwrap();
    assert_eq!(country(&live), Err(Reason::DataMissing));
    folder.file("geo.mmdb", &of_country("CC"));
    assert_eq!(country(&live), Ok("CC".to_owned()));
}

#[test]
fn the_network_is_that_of_v4_where_both_are_known() {
    let network = |number, name| {
        Value::Map(vec![
            ("autonomous_system_number", Value::Number(number)),
            ("autonomous_system_organization", Value::Text(name)),
        ])
    };
    let folder = Folder::new();
    let file = folder.file(
        "asn.mmdb",
        &write(
            6,
            &[("203.0.113.0", 25, network(64_500, "Four")), ("2001:db8::", 32, network(64_501, "Six"))],
        ),
    );
    let files = files(&[&file]);
    assert_eq!(
        data(&net::judge(&files, &ips(&["2001:db8::2", "2001:db8::1", "203.0.113.9", "203.0.113.7"]))),
        json!({
            "net_ip": "203.0.113.7", "net_ipv6": "2001:db8::1", "net_asn": 64_500, "net_asn_org": "Four",
            "net_network": "203.0.113.0/25", "net_network_v6": "2001:db8::/32",
        })
    );
    assert_eq!(
        data(&net::judge(&files, &ips(&["2001:db8::1", "198.51.100.1"]))),
        json!({
            "net_ip": "198.51.100.1", "net_ipv6": "2001:db8::1", "net_asn": 64_501, "net_asn_org": "Six",
            "net_network_v6": "2001:db8::/32",
        }),
        "what v4 lacks, v6 has"
    );
    let unknown = net::judge(&files, &ips(&["198.51.100.1", "fe80::1"]));
    assert_eq!((unknown.outcome, unknown.reason), (Outcome::Skipped, Reason::DataNoRecord));
}

#[tokio::test]
async fn a_look_places_the_relay_also_when_it_is_down() {
    let folder = Folder::new();
    let file = folder.file("geo.mmdb", &of_country("AA"));
    let looks = Looks::with_files(vec![file], vec![folder.0.join("missing.mmdb")]);
    let relay = url(&format!("ws://{}", free_addr().await));
    let report = run_all(&local_dialer(), &relay, &looks).await;
    assert_eq!(report.reason, Reason::ConnectRefused);
    assert!(!report.reached(), "a file that knows an address proves nothing");
    assert_eq!(data(of(&report, CheckKind::Geo)), json!({"geo_country": "AA"}));
    assert_eq!(of(&report, CheckKind::Net).reason, Reason::DataMissing);
}
