//! What others do to our table is seen at the next look, whatever we do meanwhile.

use std::time::Duration;

use ftp_alg::kernel::{
    LinuxKernel, RuleParameters,
    table::{Commits, Table, TableCondition},
};

use super::lab::{CLIENT, Lab, OneAtATime as _, SERVER, at, opening, pinhole};

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
