//! `rules/table/iptables.in`: queue rules that the operator loads, for a kernel with neither the queue
//! statement of nftables nor nft_compat. `ftp-alg run` then adds no queue rules.

use super::{native::*, site::*};
use crate::common::*;

/// Loads the output of `ftp-alg rules iptables` and `ftp-alg rules ip6tables`.
pub fn load_queueing(host: &Host, variant: &str) {
    let program = executable();
    let lines = ["iptables", "ip6tables"].map(|flavour| {
        let restore = format!("{flavour}-{variant}-restore --noflush");
        format!("{} rules {flavour} --config /dev/null | {restore}", program.display())
    });
    host.shell(&lines.join("\n")).unwrap();
}

#[test]
fn iptables_queue_rules_work_in_every_place() {
    let all = ["nft", "legacy"].map(|variant| PLACES.map(|place| (variant, place))).concat();
    for &(variant, place) in telling(&[("nft", Place::Published), ("legacy", Place::Server)], &all)
    {
        let site = Site::new(place);
        run_iptables(site.guard(), &iptables(place, variant).text);
        load_queueing(site.guard(), variant);
        let daemon = site.daemon(NFTABLES);
        let table = site.guard().shell("nft list table inet ftp_alg").unwrap().stdout_text();
        let queues = ["queue to", "queue flags", "NFQUEUE"];
        assert!(!queues.iter().any(|statement| table.contains(statement)), "{table}");
        let doctor = daemon.ask(&["doctor", "--json"]).unwrap().stdout_text();
        assert!(!doctor.contains("queued-twice"), "{doctor}");
        site.carries(&daemon, &FAMILIES);
        site.assert_outsider_finds_only_published_ports(&daemon, FEW_PORTS);
        assert_eq!(site.guard().invalid_packets().unwrap(), 0, "{variant} {place:?}");
        // The start of an announcement is held and acknowledged here too.
        let times = [(); 3].map(|()| site.reply_time_of_split_announcement());
        assert!(times.into_iter().any(|time| time < Duration::from_millis(100)), "{times:?}");
    }
}

#[test]
fn doctor_reports_iptables_queue_rules_loaded_after_the_daemon() {
    let site = Site::new(Place::Masquerade);
    let daemon = site.daemon(NFTABLES);
    load_queueing(site.guard(), "nft");
    let doctor = daemon.ask(&["doctor", "--json"]).unwrap();
    assert_eq!(doctor.status.code(), Some(1));
    assert!(doctor.stdout_text().contains("\"name\":\"queued-twice\""), "{}", doctor.stdout_text());
}
