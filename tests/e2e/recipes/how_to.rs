//! The firewalls on the pages of `docs/howto`, as a reader types them: files move through each.

use super::site::*;
use crate::common::*;

/// The first block of code in `language` on `page` that has `words`, with the lab's names and addresses.
fn block(page: &str, language: &str, words: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/howto").join(page);
    let page = fs::read_to_string(path).unwrap();
    let fence = format!("```{language}\n");
    let mut blocks = page.split(&fence).skip(1).filter_map(|rest| rest.split("```").next());
    let block = blocks.find(|block| block.contains(words)).unwrap();
    [("lan0", "lan"), ("wan0", "wan"), ("10.0.0.5", "192.168.150.90")]
        .iter()
        .fold(block.to_owned(), |text, (documented, here)| text.replace(documented, here))
}

#[test]
fn nftables_firewalls_of_how_to_pages_are_enough() {
    for (page, place, families) in [
        ("masquerade.md", Place::Masquerade, &FAMILIES[..]),
        ("published-server.md", Place::Published, &[V4]),
        ("host-firewall.md", Place::Server, &FAMILIES),
        ("host-firewall.md", Place::Client, &FAMILIES),
    ] {
        let site = Site::new(place);
        site.guard().nft(&block(page, "nft", "table inet")).unwrap();
        let daemon = site.daemon(NFTABLES);
        site.carries(&daemon, families);
    }
}

#[test]
fn the_iptables_firewall_of_its_page_is_enough() {
    for place in [Place::Masquerade, Place::Published] {
        let site = Site::new(place);
        let rules = block("iptables.md", "iptables", "*filter");
        let file = site.guard().write("page.rules", rules.as_bytes()).unwrap();
        site.guard().shell(&format!("iptables-restore {}", file.display())).unwrap();
        let daemon = site.daemon(NFTABLES);
        site.carries(&daemon, &[V4]);
    }
}
