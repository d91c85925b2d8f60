//! Tests of the totals: servers of the configuration, and clients of the last hour.

use std::time::Duration;

use super::{super::tests::finished, *};

fn count(totals: &mut Totals, now: Instant, client: &str, server: &str, bytes: u64) {
    count_result(totals, now, client, server, bytes, TransferResult::Complete);
}

fn count_result(
    totals: &mut Totals,
    now: Instant,
    client: &str,
    server: &str,
    bytes: u64,
    result: TransferResult,
) {
    let (event, transfer) = finished(None, Some(226));
    let (client, server) = (format!("{client}:1035"), format!("{server}:21"));
    let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
    let transfer = Transfer { bytes: Some(bytes), result, ..transfer };
    totals.count(now, &Event { client, server, ..event }, &transfer);
}

fn top(totals: &Totals, now: Instant) -> Vec<(String, u64)> {
    let row = |row: ClientBytes| (row.client, row.bytes);
    totals.read(now).top_clients.into_iter().map(row).collect()
}

#[test]
fn each_configured_server_has_its_totals() {
    let now = Instant::now();
    let mut totals = Totals::new(now);
    let servers = ["10.0.0.9", "2001:db8::9"].map(|server| server.parse::<IpAddr>().unwrap());
    totals.set_servers([servers[1], servers[0], servers[1]]);
    for server in ["10.0.0.9", "10.0.0.9", "[2001:db8::9]", "10.0.0.10"] {
        count(&mut totals, now, "10.1.0.1", server, 5);
    }
    let missing = TransferResult::NoDataConnection;
    count_result(&mut totals, now, "10.1.0.1", "10.0.0.9", 0, missing);
    let read = totals.read(now);
    assert_eq!(read.bytes_up, 20);
    let [v4, v6] = &read.servers[..] else { panic!("{read:?}") };
    assert_eq!((v4.server, v4.bytes_up, v4.bytes_down), (servers[0], 10, 0));
    assert_eq!((v4.results.complete, v4.results.no_data_connection), (2, 1));
    assert_eq!((v6.server, v6.bytes_up, v6.results.complete), (servers[1], 5, 1));
    // A reload.
    totals.set_servers([servers[0], "10.0.0.10".parse().unwrap()]);
    let read = totals.read(now).servers;
    assert_eq!(read.iter().map(|total| total.bytes_up).collect::<Vec<_>>(), [10, 0]);
}

#[test]
fn the_clients_with_the_most_bytes_in_an_hour_are_shown() {
    let begin = Instant::now();
    let after = |minutes: u64| begin + Duration::from_secs(60 * minutes);
    let mut totals = Totals::new(begin);
    count(&mut totals, begin, "10.1.0.1", "10.0.0.9", 7);
    count(&mut totals, after(30), "10.1.0.1", "10.0.0.9", 3);
    count(&mut totals, after(30), "[2001:db8::1]", "10.0.0.9", 4);
    count(&mut totals, after(31), "[2001:db8::2]", "10.0.0.9", 4);
    count(&mut totals, after(31), "10.1.0.2", "10.0.0.9", 0);
    let network = "2001:db8::/64".to_owned();
    let client = "10.1.0.1".to_owned();
    assert_eq!(top(&totals, after(31)), [(client.clone(), 10), (network.clone(), 8)]);
    assert_eq!(top(&totals, after(61)), [(network, 8), (client, 3)]);
    assert_eq!(top(&totals, after(95)), []);
    for number in 0..20 {
        count(&mut totals, after(100), &format!("10.2.0.{number}"), "10.0.0.9", number + 1);
    }
    let shown = top(&totals, after(100));
    assert_eq!((shown.len(), &*shown[0].0, shown[9].1), (TOP_CLIENTS, "10.2.0.19", 11));
}

#[test]
fn many_clients_take_bounded_memory() {
    let now = Instant::now();
    let mut totals = Totals::new(now);
    count(&mut totals, now, "10.1.0.1", "10.0.0.9", 1000);
    for number in 0..2 * MAX_CLIENTS as u32 {
        let client = std::net::Ipv4Addr::from(0x0a02_0000 + number);
        count(&mut totals, now, &client.to_string(), "10.0.0.9", 1);
    }
    assert_eq!(totals.clients.len(), MAX_CLIENTS);
    assert_eq!(top(&totals, now)[0], ("10.1.0.1".to_owned(), 1000));
}
