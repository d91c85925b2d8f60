//! Many encrypted sessions, and a client that opens one after another: nothing grows without bound, and all is closed at the
//! end. The peers send nothing but the start of TLS.

use super::*;

fn fake_tls(host: &Host, name: &str, arguments: &[String]) -> BackgroundProcess {
    let script = host.write("fake_tls.py", include_bytes!("fake_tls.py")).unwrap();
    let mut command = host.command("python3");
    command.arg(script).args(arguments);
    host.start(command, name).unwrap()
}

fn fake_server(lab: &Lab) -> BackgroundProcess {
    let server = fake_tls(&lab.server, "fake-server", &["serve".to_owned()]);
    lab.server.wait_for_port(21, Duration::from_secs(60)).unwrap();
    server
}

/// Sessions of `client` with the servers at so many addresses from `first` on: `idle` ones that stay, and `again` that end.
fn crowd(
    client: &Host,
    first: &str,
    servers: usize,
    idle: usize,
    again: usize,
) -> BackgroundProcess {
    let numbers = [servers, idle, again].map(|number| number.to_string());
    let arguments = [&[first.to_owned()][..], &numbers].concat();
    let crowd = fake_tls(client, &format!("crowd-{idle}-{again}"), &arguments);
    wait_for("the crowd", || crowd.log().contains("ready"));
    crowd
}

#[test]
fn many_sessions_and_as_many_more_of_one_client_stay_bounded() {
    /// What a session may take, with its record and its range.
    const KIB_EACH: u64 = 4;
    let count = telling(&[200], &[1000])[0];
    let lab = Lab::new(Topology::PublishedServer).unwrap();
    let configuration = configuration(&lab, "nftables");
    let gateway = Gateway::on(lab, &configuration);
    let (lab, daemon) = (&gateway.lab, &gateway.daemon);
    let _server = fake_server(lab);
    let host = lab.server_address(V4).to_string();
    // What the first ones allocate stays.
    drop(crowd(&lab.client, &host, 1, 10, 10));
    let before = daemon.resident_kib().unwrap();

    let idle = crowd(&lab.client, &host, 1, count, 0);
    assert_eq!(daemon.open_pinholes().unwrap().len(), 1, "all are of one client");
    let again = crowd(&lab.client2, &host, 1, 0, count);
    let grown = daemon.resident_kib().unwrap().saturating_sub(before);
    println!("{count} sessions, {count} that ended: {grown} KiB");
    assert!(grown < 2 * KIB_EACH * count as u64, "{grown} KiB");
    wait_for("the end of the others", || daemon.open_pinholes().unwrap().len() == 1);
    assert_eq!(daemon.counter("sessions").unwrap(), count as u64);

    drop((idle, again));
    daemon.wait_for_no_pinholes(Duration::from_secs(60)).unwrap();
    gateway.assert_tidy();
}
