//! What is put together from the kernel's own messages is what the rules' text says.

use std::time::Duration;

use ftp_alg::kernel::{
    LinuxKernel, RuleParameters,
    parameters::{Backend, CtMarkUse, Learned, QueueStatement},
    table::{Commits, Table, TableCondition, rule_files},
};

use super::lab::{CLIENT, Lab, OneAtATime as _, SERVER, at, opening, pinhole};

const LIST: &str = "nft --stateless list table inet ftp_alg";

#[test]
fn the_table_is_the_one_that_nft_loads_from_the_text() {
    let lab = Lab::new();
    // A kernel may count no connections, or log none.
    let whole = RuleParameters::new(&[21, 2121], 7, 4, 1 << 3, 0b1011);
    for parameters in [
        whole.clone().with_backend(Backend::Conntrack),
        whole.clone().with_max_encrypted(None).with_data_log(false),
        whole,
    ] {
        let way = QueueStatement::Operator;
        let text = rule_files::render_nftables(&parameters, way);
        let ours = lab.on_gateway(|| {
            let table = Table::install_with(&parameters, way, &Commits::default(), false).unwrap();
            let listed = lab.gateway_sh(LIST);
            table.remove().unwrap();
            listed
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        lab.gateway_sh(&format!("nft -f {}", file.path().display()));
        let theirs = lab.gateway_sh(LIST);
        // A helper of ours is in no text that an operator can load.
        if !ours.contains("ct helper") {
            assert_eq!(ours, theirs, "{parameters:?}");
        }
        lab.gateway_sh("nft delete table inet ftp_alg");
    }
}

#[test]
fn a_table_in_place_of_another_retains_what_is_open() {
    let lab = Lab::new();
    lab.on_gateway(|| {
        let parameters = RuleParameters::default();
        let commits = Commits::default();
        let table = Table::install(&parameters, &commits).unwrap();
        let ends = "198.51.100.10 . 192.0.2.1 . 4000";
        let open = || {
            for (set, element) in [
                ("pinholes4", format!("{ends} timeout 100s expires 50s")),
                ("targets4", format!("{ends} timeout 100s : 10.0.0.9 . 4000")),
                ("fast_path_targets4", "0x50000001 : 10.0.0.9".to_owned()),
                ("fast_path_sources4", "192.0.2.1 . 10.0.0.9 : 192.0.2.7".to_owned()),
            ] {
                lab.gateway_sh(&format!("nft add element inet ftp_alg {set} '{{ {element} }}'"));
            }
        };
        open();
        let elements = || {
            let list = lab.gateway_sh("nft list table inet ftp_alg");
            let left = lab.gateway_sh("nft list set inet ftp_alg pinholes4");
            assert!(!left.contains("expires 1m"), "{left}");
            let expected = [ends, "10.0.0.9 . 4000", "0x50000001 : 10.0.0.9", "192.0.2.7"];
            expected.into_iter().filter(|element| list.contains(element)).count()
        };
        assert_eq!(elements(), 4);
        let record = table.record().unwrap();
        table.leave_in_kernel();
        let others = RuleParameters::new(&[21], 2300, 2, 0x4000_0000, 0x7000_0000);
        let mut table = Table::install_in_place_of(&record, &others, &commits).unwrap();
        assert_eq!((table.has_retained_elements(), elements()), (true, 4));
        let listed = |text| lab.gateway_sh("nft list table inet ftp_alg").contains(text);
        let learned = Learned {
            source_ports: Some((40960, 41023)),
            ct_mark_use: CtMarkUse::Compared,
            ..Learned::default().with_zones([7])
        };
        for (learned, has_more) in [(learned.clone(), true), (Learned::default(), false)] {
            others.learned.set(learned);
            assert!(table.is_outdated());
            table.update().unwrap();
            assert_eq!((table.is_outdated(), elements()), (false, 4));
            assert_eq!(listed(":40960-41023"), has_more);
            assert_eq!(listed("chain clear_restored_prerouting"), has_more);
            assert!(listed("{ 0, 7 }"), "there may be connections in a zone");
        }
        others.learned.set(learned.clone());
        table.update().unwrap();
        assert_eq!(table.record().unwrap().into_learned(), learned);
        // Nobody knows what is in another table of this name, or in one that was changed.
        let newer = Table::install_in_place_of(&record, &others, &commits).unwrap();
        assert_eq!((newer.has_retained_elements(), elements()), (false, 0));
        // The program marks packets as the rules before say.
        open();
        let record = newer.record().unwrap();
        let marks = RuleParameters::new(&[21], 2300, 2, 0x1000_0000, 0x7000_0000);
        let marked = Table::install_in_place_of(&record, &marks, &commits).unwrap();
        assert_eq!((marked.has_retained_elements(), elements()), (false, 0));
        table.leave_in_kernel();
        newer.leave_in_kernel();
        marked.remove().unwrap();
    });
}

/// It is seen at the next look, whatever we do meanwhile.
#[test]
fn a_change_of_others_is_seen_among_ours() {
    let lab = Lab::new();
    let commits = Commits::default();
    let (mut kernel, mut table) = lab.on_gateway(|| {
        let parameters = RuleParameters::default();
        let kernel = LinuxKernel::new(&parameters, &commits).unwrap();
        (kernel, Table::install(&parameters, &commits).unwrap())
    });
    let arrival = at(SERVER, 4000);
    let hole = pinhole(CLIENT, arrival);
    let opening = opening(hole, Duration::from_secs(20));
    for round in 0..4 {
        let mut ours = || {
            kernel.open_one(&opening).unwrap();
            kernel.open_one(&opening).unwrap_err(); // taken
            kernel.close_and_open(&[hole], &opening).unwrap();
            for _ in 0..=round {
                kernel.close_one(&hole).unwrap(); // but for the first they change nothing
            }
        };
        assert_eq!(table.condition().unwrap(), TableCondition::Intact);
        ours();
        assert_eq!(table.condition().unwrap(), TableCondition::Intact);
        lab.gateway_sh("nft add rule inet ftp_alg control counter");
        ours();
        assert_eq!(table.condition().unwrap(), TableCondition::Changed);
        assert_eq!(table.condition().unwrap(), TableCondition::Changed);
        lab.on_gateway(|| table.restore()).unwrap();
        assert_eq!(table.condition().unwrap(), TableCondition::Intact);
        lab.gateway_sh("nft add table ip other; nft delete table ip other");
        assert_eq!(table.condition().unwrap(), TableCondition::Intact);
    }
    lab.gateway_sh("nft delete table inet ftp_alg");
    assert_eq!(table.condition().unwrap(), TableCondition::Gone);
    lab.gateway_sh("nft add table inet ftp_alg");
    assert_eq!(table.condition().unwrap(), TableCondition::Replaced);
}

/// The helper belongs to the machine: each that leaves removes it while the others load tables that refer to it.
#[test]
fn tables_of_several_namespaces_share_the_helper() {
    let stays = Lab::new();
    let leave: Vec<_> = (0..3).map(|_| Lab::new()).collect();
    let parameters = RuleParameters::default();
    let come_and_go = |lab: &Lab| {
        lab.on_gateway(|| {
            for _ in 0..8 {
                Table::install(&parameters, &Commits::default()).unwrap().remove().unwrap();
            }
        });
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = leave.iter().map(|lab| scope.spawn(|| come_and_go(lab))).collect();
        stays.on_gateway(|| {
            let table = Table::install(&parameters, &Commits::default()).unwrap();
            let statement = table.statement();
            table.remove().unwrap();
            while others.iter().any(|other| !other.is_finished()) {
                let table = Table::install(&parameters, &Commits::default()).unwrap();
                assert_eq!(table.statement(), statement);
                let text = stays.gateway_sh("nft list table inet ftp_alg");
                let is_whole = text.contains("l3proto inet");
                assert!(is_whole || !text.contains("ct helper"), "{text}");
                table.remove().unwrap();
            }
        });
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}
