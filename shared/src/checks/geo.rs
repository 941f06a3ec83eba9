//! Where the relay's address is, by files an operator provides.
//!
//! Of a place, not of a machine: an address behind a proxy is where the proxy is.

use std::net::IpAddr;

use maxminddb::PathElement::{Index, Key};
use serde_json::{Value, json};

use super::files::{DataFiles, Places, Records};
use super::{CheckKind, CheckSpec, Observation};
use crate::models::MetadataType;

pub(super) const SPEC: CheckSpec = CheckSpec {
    name: "geo",
    document: Some(MetadataType::Nip66Geo),
    applies: |url| !url.network().is_overlay(),
};

/// Characters of a geohash: 9 are a square of 5 m, finer than any file knows.
const GEOHASH_CHARS: usize = 9;

const COUNTRY: Places<'_> = &[&[Key("country"), Key("iso_code")], &[Key("country_code")], &[Key("country")]];
const COUNTRY_NAME: Places<'_> = &[&[Key("country"), Key("names"), Key("en")], &[Key("country_name")]];
const CONTINENT: Places<'_> =
    &[&[Key("continent"), Key("code")], &[Key("continent_code")], &[Key("continent")]];
const CONTINENT_NAME: Places<'_> = &[&[Key("continent"), Key("names"), Key("en")], &[Key("continent_name")]];
const IN_EU: Places<'_> =
    &[&[Key("country"), Key("is_in_european_union")], &[Key("is_in_european_union")], &[Key("is_eu")]];
/// Only the nested layout leaves the flag out where it is false.
const NESTED: Places<'_> = &[&[Key("country"), Key("iso_code")]];
const REGION: Places<'_> =
    &[&[Key("subdivisions"), Index(0), Key("names"), Key("en")], &[Key("state1")], &[Key("region")]];
const CITY: Places<'_> = &[&[Key("city"), Key("names"), Key("en")], &[Key("city")]];
const POSTAL: Places<'_> = &[&[Key("postal"), Key("code")], &[Key("postcode")], &[Key("postal_code")]];
const LATITUDE: Places<'_> = &[&[Key("location"), Key("latitude")], &[Key("latitude")], &[Key("lat")]];
const LONGITUDE: Places<'_> =
    &[&[Key("location"), Key("longitude")], &[Key("longitude")], &[Key("lng")], &[Key("lon")]];
const ACCURACY: Places<'_> = &[&[Key("location"), Key("accuracy_radius")], &[Key("accuracy_radius")]];
const ZONE: Places<'_> = &[&[Key("location"), Key("time_zone")], &[Key("timezone")], &[Key("time_zone")]];
const GEONAME: Places<'_> =
    &[&[Key("city"), Key("geoname_id")], &[Key("country"), Key("geoname_id")], &[Key("geoname_id")]];

/// Looks the address up: v4 before v6, of which files know less. May wait for a disk.
pub(super) fn judge(files: &DataFiles, addresses: &[IpAddr]) -> Observation {
    let Some(address) = addresses.iter().min_by_key(|ip| (ip.is_ipv6(), **ip)) else {
        return Observation::ok(CheckKind::Geo, None);
    };
    match files.look(*address, describe) {
        Ok(data) => Observation::documented(CheckKind::Geo, &data),
        Err(skip) => Observation::failed(CheckKind::Geo, skip),
    }
}

fn describe(records: &Records<'_>) -> Value {
    let position = records.position(LATITUDE, LONGITUDE);
    let in_eu = records.value::<bool>(IN_EU).or_else(|| records.text(NESTED).map(|_| false));
    json!({
        "geo_country": records.text(COUNTRY),
        "geo_country_name": records.text(COUNTRY_NAME),
        "geo_continent": records.text(CONTINENT),
        "geo_continent_name": records.text(CONTINENT_NAME),
        "geo_is_eu": in_eu,
        "geo_region": records.text(REGION),
        "geo_city": records.text(CITY),
        "geo_postal": records.text(POSTAL),
        "geo_lat": position.map(|(lat, _)| lat),
        "geo_lon": position.map(|(_, lon)| lon),
        "geo_accuracy": records.value::<u32>(ACCURACY),
        "geo_tz": records.text(ZONE),
        "geo_hash": position.map(|(lat, lon)| geohash(lat, lon, GEOHASH_CHARS)),
        "geo_geoname_id": records.value::<u32>(GEONAME),
    })
}

/// The geohash of a position: longitude and latitude halved in turn, five bits a character.
pub fn geohash(latitude: f64, longitude: f64, chars: usize) -> String {
    const DIGITS: &[u8; 32] = b"0123456789bcdefghjkmnpqrstuvwxyz";
    let mut spans = [(-180.0, 180.0), (-90.0, 90.0)];
    let values = [longitude, latitude];
    let mut turn = 0;
    let mut digit = || {
        let mut bits = 0_usize;
        for _ in 0..5 {
            let (low, high): (f64, f64) = spans[turn];
            let middle = f64::midpoint(low, high);
            let upper = values[turn] >= middle;
            spans[turn] = if upper { (middle, high) } else { (low, middle) };
            bits = bits << 1 | usize::from(upper);
            turn ^= 1;
        }
        char::from(DIGITS[bits])
    };
    (0..chars).map(|_| digit()).collect()
}
