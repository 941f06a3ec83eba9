use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::net::Dialer;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A file of its own per test, removed with the guard.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bigbrotr-config-{}.toml", crate::clock::random_hex(8)));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn file(text: &str) -> Result<Config, ConfigError> {
    Config::load(Some(&File::new(text).0), &BTreeMap::new())
}

fn problem(text: &str) -> String {
    file(text).unwrap_err().to_string()
}

#[test]
fn without_file_and_environment_everything_has_a_default() {
    let config = file("").unwrap();
    assert!(config.require_database().unwrap_err().to_string().contains("DATABASE_URL"));
    let (jobs, default) = (config.jobs_config(), crate::jobs::JobsConfig::default());
    assert_eq!(format!("{jobs:?}"), format!("{default:?}"), "one truth about defaults");
    assert_eq!(config.enabled_networks(), [Network::Clearnet]);
    let queues: Vec<String> = config.queue_options("w").queues.into_iter().map(|(queue, _)| queue).collect();
    assert_eq!(
        queues,
        ["discover.local", "validate.clearnet", "monitor.clearnet", "sync.clearnet", "refresh.local"]
    );
    let net = config.net_config().unwrap();
    assert_eq!(net.networks, crate::net::NetConfig::default().networks);
    Dialer::new(net).unwrap();
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let text = File::new("[monitor]\ninterval_s = 10\n[sync]\ninterval_s = 10\n[refresh]\ninterval_s = 10\n");
    let env = env(&[("BIGBROTR_MONITOR_INTERVAL_S", "20"), ("BIGBROTR_SYNC_INTERVAL_S", "20")]);
    let flag = Flag { key: "monitor.interval_s", value: "30".to_owned(), name: "--interval" };
    let jobs = Config::load_with(Some(&text.0), &env, &[flag]).unwrap().jobs_config();
    let seconds = [jobs.monitor_interval, jobs.sync_interval, jobs.refresh_interval].map(|d| d.as_secs());
    assert_eq!(seconds, [30, 20, 10]);
}

#[test]
fn publishing_needs_relays_to_load_and_a_key_only_where_it_is_signed() {
    let text = File::new(
        "[publish]\nenabled = true\nrelays = [\"wss://a.example\", \"wss://A.example/\"]\ngeohash = \"u33d\"\n\
         [publish.profile]\nname = \"watcher\"\n",
    );
    let keyless = Config::load(Some(&text.0), &BTreeMap::new()).unwrap();
    assert!(keyless.require_publishing().unwrap_err().to_string().contains("BIGBROTR_IDENTITY_KEY"));
    assert!(keyless.publishing().is_none() && keyless.scheduler_options().publish);
    let secret = "67".repeat(32);
    for variable in ["BIGBROTR_IDENTITY_KEY", "NOSTR_PRIVATE_KEY"] {
        let config = Config::load(Some(&text.0), &env(&[(variable, &secret)])).unwrap();
        config.require_publishing().unwrap();
        let publishing = config.jobs_config().publish.unwrap();
        assert_eq!(
            (publishing.about.relays.len(), publishing.about.profile.name.as_deref()),
            (1, Some("watcher"))
        );
        assert!(config.queue_options("w").queues.contains(&("monitor.local".to_owned(), 1)));
        assert!(!format!("{config:?}{config}{:?}", config.jobs_config()).contains(&secret));
    }
    assert!(file("").unwrap().publishing().is_none());
    assert!(problem("[publish]\nenabled = true\n").contains("publish.relays is []"));
    assert!(problem("[publish]\ngeohash = \"ail\"\n").contains("must be a geohash"));
    assert!(problem("[publish]\nrelays = [\"ws://127.0.0.1\"]\n").contains("publish.relays holds"));
    assert!(problem(&format!("[identity]\nkey = \"{secret}\"\n")).contains("is not read"));
    let bad = Config::load(None, &env(&[("NOSTR_PRIVATE_KEY", "hunter2")])).unwrap_err().to_string();
    assert!(bad.contains("NOSTR_PRIVATE_KEY") && !bad.contains("hunter2"), "{bad}");
}

#[test]
fn a_value_out_of_range_is_refused_with_key_value_and_range() {
    let said = problem("[monitor]\ninterval_s = 0\n");
    assert!(said.starts_with("monitor.interval_s is 0 (in "), "{said}");
    assert!(said.ends_with("it must be a whole number between 1 and 2592000"), "{said}");
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_key() {
    let said = problem("[network]\nallow_local = \"yes\"\n[sync]\npage_limit = 1.5\n");
    assert!(said.contains("network.allow_local is \"yes\""), "{said}");
    assert!(said.contains("it must be true or false"), "{said}");
    assert!(said.contains("sync.page_limit is 1.5"), "every problem is told at once: {said}");
    assert!(problem("monitor = 5\n").contains("must be a section, [monitor]"));
}

#[test]
fn an_unknown_key_names_the_nearest_right_one() {
    for (wrong, right) in [
        ("[monitor]\nintervall_s = 5\n", "monitor.interval_s"),
        ("[archive]\nmax_gbs = 5\n", "archive.max_gb"),
        ("[network.tor]\nproxi = \"a:1\"\n", "network.tor.proxy"),
        ("[worker.slots]\nmonitors = 5\n", "worker.slots.monitor"),
    ] {
        let said = problem(wrong);
        assert!(said.contains(&format!("did you mean {right}?")), "{said}");
    }
}

#[test]
fn an_unknown_variable_names_the_nearest_right_one_and_foreign_ones_are_left_alone() {
    let said = Config::load(None, &env(&[("BIGBROTR_WORKER_LEASE", "5")])).unwrap_err().to_string();
    assert!(said.contains("did you mean BIGBROTR_WORKER_LEASE_S?"), "{said}");
    for (wrong, right) in [
        ("BIGBROTR_DATABSE_PASSWORD", "did you mean BIGBROTR_DATABASE_PASSWORD?"),
        (
            "BIGBROTR_WRITTER_PASSWORD_FILE",
            "BIGBROTR_WRITTER_PASSWORD_FILE (in the environment) is not known",
        ),
    ] {
        let said = Config::load(None, &env(&[(wrong, "/x")])).unwrap_err().to_string();
        assert!(said.contains(right), "{said}");
    }
    Config::load(
        None,
        &env(&[
            ("BIGBROTR_ROLE_PREFIX", "x"),
            ("BIGBROTR_WRITER_PASSWORD", "x"),
            ("BIGBROTR_REFRESHER_PASSWORD", "x"),
            ("BIGBROTR_TEST_PG", "x"),
            ("BIGBROTR_MONITOR_INTERVAL_S", ""),
            ("WORKER_LEASE", "x"),
        ]),
    )
    .unwrap();
}

#[test]
fn a_variable_may_name_a_file_that_holds_its_value() {
    let password = File::new("s3cret/ =\n");
    let path = password.0.to_str().unwrap();
    let config = Config::load(
        None,
        &env(&[
            ("DATABASE_URL", "postgres://u@pool/n"),
            ("BIGBROTR_DATABASE_DIRECT_URL", "postgres://u:own@db/n"),
            ("BIGBROTR_DATABASE_PASSWORD_FILE", path),
        ]),
    )
    .unwrap();
    assert_eq!(config.database_url(), "postgres://u@pool/n?password=s3cret%2F%20%3D");
    assert_eq!(config.direct_url(), "postgres://u:own@db/n");
    let printed = config.to_string();
    assert!(printed.contains("password = \"***\"  # BIGBROTR_DATABASE_PASSWORD_FILE"), "{printed}");
    assert!(!printed.contains("s3cret"), "{printed}");
    let passwords = Config::with_files(&env(&[("BIGBROTR_WRITER_PASSWORD_FILE", path)])).unwrap();
    assert_eq!(passwords.get("BIGBROTR_WRITER_PASSWORD").map(String::as_str), Some("s3cret/ ="));
}

#[test]
fn a_file_that_cannot_be_had_is_one_sentence_that_names_it() {
    let (empty, key) = (File::new("\n"), File::new("not a key"));
    for (pairs, wanted) in [
        (
            vec![("DATABASE_URL_FILE", "/nowhere/url")],
            "DATABASE_URL_FILE is /nowhere/url: the file does not exist",
        ),
        (vec![("DATABASE_URL_FILE", empty.0.to_str().unwrap())], "the file is empty"),
        (vec![("DATABASE_URL_FILE", "/nowhere/url"), ("DATABASE_URL", "postgres://h/n")], "are both set"),
        (vec![("BIGBROTR_IDENTITY_KEY_FILE", key.0.to_str().unwrap())], "BIGBROTR_IDENTITY_KEY_FILE is"),
        (
            vec![("BIGBROTR_WORKER_LEASE_FILE", "x")],
            "BIGBROTR_WORKER_LEASE_FILE (in the environment) is not known",
        ),
    ] {
        let said = Config::load(None, &env(&pairs)).unwrap_err().to_string();
        assert!(said.contains(wanted) && said.lines().count() == 1 && !said.contains("not a key"), "{said}");
    }
}

#[test]
fn every_key_can_be_set_by_its_variable_and_printed_values_read_back() {
    let config = file("").unwrap();
    let printed = file(&config.to_redacted_toml()).unwrap();
    assert_eq!(format!("{:?}", printed.jobs_config()), format!("{:?}", config.jobs_config()));
    for [path, variable, default, ..] in key_lines() {
        let text = default.trim_matches(['"', '[', ']']).replace('"', "");
        if !text.is_empty() {
            let loaded = Config::load(None, &env(&[(variable.as_str(), text.as_str())])).unwrap();
            assert!(loaded.is_set(&path), "{variable}");
        }
    }
}

#[test]
fn passwords_are_neither_printed_nor_named_in_errors() {
    let config = Config::load(None, &env(&[("DATABASE_URL", "postgres://u:s3cret@h/n")])).unwrap();
    assert_eq!(config.database_url(), "postgres://u:s3cret@h/n");
    assert_eq!(config.direct_url(), config.database_url());
    for text in [config.to_string(), format!("{config:?}")] {
        assert!(text.contains("postgres://u:***@h/n") && !text.contains("s3cret"), "{text}");
    }
    let said = Config::load(None, &env(&[("DATABASE_URL", "mysql://u:s3cret@h/n")])).unwrap_err().to_string();
    assert!(said.contains("mysql://u:***@h/n") && !said.contains("s3cret"), "{said}");
    let secret = "s3cret-s3cret-s3cret";
    let config = Config::load(None, &env(&[("BIGBROTR_ALERT_SECRET", secret)])).unwrap();
    assert!(config.is_set("alert.secret"));
    for text in [config.to_string(), format!("{config:?}"), format!("{:?}", config.jobs_config())] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    let said = Config::load(None, &env(&[("BIGBROTR_ALERT_SECRET", "s3cret")])).unwrap_err().to_string();
    assert!(said.contains("16 to 256") && !said.contains("s3cret"), "{said}");
    assert!(!problem("[alert]\nsecret = \"s3cret\"").contains("s3cret"));
    let said = problem("[alert]\nwebhook = \"ftp://hooks.example/s3cret\"");
    assert!(said.contains("ftp://hooks.example/***") && !said.contains("s3cret"), "{said}");
}

#[test]
fn a_broken_file_or_an_odd_url_does_not_show_the_password_it_holds() {
    for text in [
        "[database]\nurl = postgres://u:s3cret@h/n",
        "[database]\nurl = \"postgres://u:s3cret@h/n\"\nurl = \"postgres://u:s3cret@h/n\"",
        "database = \"postgres://u:s3cret@h/n\"",
    ] {
        let said = problem(text);
        assert!(!said.contains("s3cret"), "{said}");
    }
    assert!(problem("[database]\nurl = postgres://u:s3cret@h/n").contains("line 2"));
    let odd = Config::load(None, &env(&[("DATABASE_URL", "postgres://u:s3?cret@h/n")])).unwrap();
    assert!(!odd.to_redacted_toml().contains("cret@") && !odd.to_redacted_toml().contains("s3?"));
}

#[test]
fn limits_are_numbers_or_the_word_for_none() {
    let config = file("[archive]\ndays = 30\nmax_gb = 0.5\n").unwrap();
    assert_eq!((config.archive_days(), config.archive_max_bytes()), (Some(30), Some(500_000_000)));
    let config = file("[archive]\ndays = \"all\"\nmax_gb = \"unlimited\"\n").unwrap();
    assert_eq!((config.archive_days(), config.archive_max_bytes()), (None, None));
    assert!(config.is_set("archive.days") && !file("").unwrap().is_set("archive.days"));
    assert!(problem("[archive]\ndays = \"week\"\n").contains("or \"all\""));
    assert!(problem("[archive]\nmax_gb = nan\n").contains("archive.max_gb is NaN"));
}

#[test]
fn an_overlay_needs_its_proxy_and_clearnet_takes_none() {
    assert!(problem("[network.tor]\nenabled = true\n").contains("network.tor.proxy is not set"));
    assert!(problem("[network.clearnet]\nproxy = \"p:1080\"\n").contains("dialled directly"));
    let config = file("[network.tor]\nenabled = true\nproxy = \"127.0.0.1:9050\"\ntimeout_s = 60\n").unwrap();
    assert_eq!(config.enabled_networks(), [Network::Clearnet, Network::Tor]);
    assert_eq!(config.net_config().unwrap().network(Network::Tor).timeout(), Duration::from_mins(1));
    assert_eq!(config.scheduler_options().networks, ["clearnet", "tor"]);
}

#[test]
fn the_policy_follows_the_network_section() {
    let allows = |text: &str, ip: &str| file(text).unwrap().policy().permits(ip.parse().unwrap());
    assert!(!allows("", "10.1.2.3"));
    assert!(allows("[network]\nallow = [\"10.0.0.0/8\"]\n", "10.1.2.3"));
    assert!(!allows("[network]\nallow = [\"10.0.0.0/8\"]\n", "127.0.0.1"));
    assert!(allows("[network]\nallow_local = true\n", "127.0.0.1"));
    assert!(problem("[network]\nallow = [\"10.0.0.1/8\"]\n").contains("address ranges"));
}

#[test]
fn canaries_are_relays_of_their_network() {
    let canary = |list: &str| file(&format!("[network.clearnet]\ncanaries = [{list}]\n"));
    assert_eq!(canary("\"wss://A.example/\"").unwrap().jobs_config().canaries[0].as_str(), "wss://a.example");
    assert!(canary("\"ws://127.0.0.1:1\"").unwrap_err().to_string().contains("not a public one"));
    let onion = format!("\"ws://{}.onion\"", "a".repeat(56));
    assert!(canary(&onion).is_err());
}

#[test]
fn a_missing_or_broken_file_is_named() {
    let missing = Config::load(Some(Path::new("/nowhere/b.toml")), &BTreeMap::new()).unwrap_err().to_string();
    assert!(missing.starts_with("the configuration file /nowhere/b.toml cannot be read"), "{missing}");
    assert!(problem("[worker\n").contains("is not TOML"));
    let named = Config::load(None, &env(&[(FILE_VARIABLE, "/nowhere/c.toml")])).unwrap_err().to_string();
    assert!(named.contains("/nowhere/c.toml"), "{named}");
}

#[test]
fn trust_names_the_file_that_holds_no_certificate() {
    let empty = File::new("# nothing\n");
    let text = format!("[network]\ntrust = [{:?}]\n", empty.0.display().to_string());
    let said = file(&text).unwrap().net_config().unwrap_err().to_string();
    assert!(said.starts_with("network.trust names ") && said.ends_with("it holds no certificate"), "{said}");
}

#[test]
fn a_kind_without_slots_or_not_named_has_no_queue() {
    let config =
        file("[worker]\nkinds = [\"sync\", \"monitor\"]\n[worker.slots]\nsync = 0\nmonitor = 7\n").unwrap();
    assert_eq!(config.queue_options("w").queues, [("monitor.clearnet".to_owned(), 7)]);
    assert!(problem("[worker]\nkinds = []\n").contains("at least one kind"));
    assert!(problem("[worker]\nkinds = [\"find\"]\n").contains("words out of discover"));
}

#[test]
fn the_readme_lists_every_key_with_its_variable_and_default() {
    let readme = include_str!("../../../README.md");
    for [key, variable, default, range, doc] in key_lines() {
        let default = if default.is_empty() { "not set".to_owned() } else { format!("`{default}`") };
        let row = format!("| `{key}` | `{variable}` | {default} | {range} | {doc} |");
        assert!(readme.contains(&row), "README.md lacks this row: {row}");
    }
}

#[test]
fn sources_are_texts_or_tables_and_a_wrong_expression_is_a_configuration_error() {
    let text = "[discover]\nsources = [\"https://a.example/v1 [*]\", { url = \"https://b.example/\", expression = \"relays[?up].{u: url, n: name} | [*].u\" }]\n";
    let sources = file(text).unwrap().jobs_config().sources;
    assert_eq!(
        format!("{sources:?}"),
        "[https://a.example/v1 [*], https://b.example/ relays[?up].{u: url, n: name} | [*].u]"
    );
    let variable =
        env(&[("BIGBROTR_DISCOVER_SOURCES", "https://a.example/ [a, b][]; https://b.example/ [*]")]);
    assert_eq!(Config::load(None, &variable).unwrap().jobs_config().sources.len(), 2);
    for (entry, word) in [
        ("https://a.example/ [", "is not JMESPath"),
        ("https://a.example/", "a JMESPath expression"),
        ("http://127.0.0.1/ [*]", "not a public one"),
    ] {
        let said = problem(&format!("[discover]\nsources = [\"{entry}\"]\n"));
        assert!(said.starts_with("discover.sources holds") && said.contains(word), "{said}");
    }
    let said = problem("[discover]\nsources = [\"https://a.example/ a\", \"https://a.example/ b\"]\n");
    assert!(said.contains("twice"), "{said}");
    let said = problem("[discover]\nsources = [{ url = \"https://a.example/\" }]\n");
    assert!(said.contains("tables { url, expression }"), "{said}");
}

const SECRET: &str = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa";
const OTHER: &str = "0000000000000000000000000000000000000000000000000000000000000001";

#[test]
fn our_key_comes_from_the_environment_and_is_printed_nowhere() {
    let text = File::new(
        "[identity]\nauth = true\n[monitor]\nwrite_probe = \"own\"\nwrite_probe_relays = [\"wss://relay.example\"]\npow_max = 8\n",
    );
    let both = env(&[("NOSTR_PRIVATE_KEY", OTHER), ("BIGBROTR_IDENTITY_KEY", SECRET)]);
    let config = Config::load(Some(&text.0), &both).unwrap();
    let jobs = config.jobs_config();
    assert!(jobs.identity().unwrap().pubkey_hex().starts_with("7e7e9c42"), "ours wins over the general one");
    assert_eq!(jobs.write_probe, crate::jobs::WriteTo::Own(vec!["relay.example".to_owned()]));
    assert_eq!(jobs.looks.speak.pow_max, 8);
    let printed = format!("{config} {config:?} {jobs:?} {:?}", config.entries());
    assert!(!printed.contains(SECRET) && !printed.contains(OTHER), "{printed}");
    let quiet = Config::load(Some(&File::new("").0), &both).unwrap().jobs_config();
    assert!(quiet.identity().is_none(), "known, and shown to nobody");
}

#[test]
fn a_key_that_is_missing_wrong_or_in_a_file_is_named_and_not_quoted() {
    // Who signs nothing may share the configuration of those who do.
    let auth = "identity.auth needs a key of ours: set BIGBROTR_IDENTITY_KEY";
    let write = "monitor.write_probe needs a key of ours";
    for (text, wanted) in [("[identity]\nauth = true", auth), ("[monitor]\nwrite_probe = \"all\"", write)] {
        assert!(file(text).unwrap().require_publishing().unwrap_err().to_string().contains(wanted), "{text}");
    }
    let said = problem(&format!("[identity]\nkey = \"{SECRET}\""));
    assert!(said.contains("set the variable BIGBROTR_IDENTITY_KEY") && !said.contains(SECRET), "{said}");
    for name in ["BIGBROTR_IDENTITY_KEY", "NOSTR_PRIVATE_KEY"] {
        let wrong = env(&[(name, &format!("{SECRET}0"))]);
        let error = Config::load(Some(&File::new("").0), &wrong).unwrap_err().to_string();
        assert!(error.contains(name) && !error.contains(SECRET), "{error}");
    }
}

#[test]
fn what_is_not_kept_is_read_with_its_days_and_a_relay_in_its_one_spelling() {
    let config = file(
        "[retention]\ndays = 90\nkinds = [\"7\", \"20000-29999:2\"]\nrelays = [\"wss://Relay.example:443/ 30\"]\n",
    )
    .unwrap();
    let kept = config.retention();
    assert_eq!((kept.days, &kept.relays[..]), (Some(90), &[("wss://relay.example".to_owned(), 30)][..]));
    assert_eq!(kept.kinds.iter().map(ToString::to_string).collect::<Vec<_>>(), ["7-7:0", "20000-29999:2"]);
    assert!(file("").unwrap().retention().is_empty());
    assert!(problem("[retention]\nkinds = [\"9-7\"]\n").contains("7:30 (days)"));
    assert!(problem("[retention]\nrelays = [\"wss://relay.example\"]\n").contains("days behind a blank"));
    assert!(
        problem("[retention]\nrelays = [\"wss://127.0.0.1 5\"]\n")
            .contains("retention.relays holds wss://127.0.0.1")
    );
}
