//! Many encrypted sessions, and a client that comes again and again: nothing grows without bound, and all is closed at the
//! end. The peers send nothing but the start of TLS.

use super::*;

fn fake_tls(host: &Host, name: &str, arguments: &[String]) -> BackgroundProcess {
    let script = host.write("fake_tls.py", include_bytes!("fake_tls.py")).unwrap();
    let mut command = host.command("python3");
    command.arg(script).args(arguments);
    host.start(command, name).unwrap()
}

#[test]
fn a_thousand_sessions_and_a_thousand_more_of_one_client_stay_bounded() {
    const COUNT: usize = 1000;
    /// What a session may take, with its record and its range.
    const KIB_EACH: u64 = 4;
    let lab = Lab::new(Topology::PublishedServer).unwrap();
    let configuration = configuration(&lab, "nftables");
    let gateway = Gateway::on(lab, &configuration);
    let (lab, daemon) = (&gateway.lab, &gateway.daemon);
    let _server = fake_tls(&lab.server, "fake-server", &["serve".to_owned()]);
    lab.server.wait_for_port(21, Duration::from_secs(60)).unwrap();
    let host = lab.server_address(V4).to_string();
    let crowd = |name: &str, client: &Host, idle: usize, again: usize| {
        let arguments = [host.clone(), idle.to_string(), again.to_string()];
        let crowd = fake_tls(client, name, &arguments);
        wait_for("the crowd", || crowd.log().contains("ready"));
        crowd
    };
    // What the first ones allocate stays.
    drop(crowd("first", &lab.client, 10, 10));
    let before = daemon.resident_kib().unwrap();

    let idle = crowd("idle", &lab.client, COUNT, 0);
    assert_eq!(daemon.open_pinholes().unwrap().len(), 1, "all are of one client");
    let again = crowd("again", &lab.client2, 0, COUNT);
    let grown = daemon.resident_kib().unwrap().saturating_sub(before);
    println!("{COUNT} sessions, {COUNT} that ended: {grown} KiB");
    assert!(grown < 2 * KIB_EACH * COUNT as u64, "{grown} KiB");
    wait_for("the end of the others", || daemon.open_pinholes().unwrap().len() == 1);
    assert_eq!(daemon.counter("sessions").unwrap(), COUNT as u64);

    drop((idle, again));
    daemon.wait_for_no_pinholes(Duration::from_secs(60)).unwrap();
    gateway.assert_tidy();
}
