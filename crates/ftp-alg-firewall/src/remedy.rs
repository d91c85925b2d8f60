//! Makes the rule that a firewall lacks, in the firewall's own language and with its own names.

use super::{
    ChainLocation, ChainVerdict, Gateway, HidingRule, Hook, Origin, PacketClass, TableFamily,
    model::{BaseChain, LocatedChain, LocatedRule, Rule, RuleVerdict, SamplePacket, Table, state},
    xtables::{shell_quoted, split_words},
};

/// The chain that Docker jumps to first. It never changes the rules in it.
const DOCKER_USER: &str = "DOCKER-USER";

/// The place of a rule that accepts data connections: behind the rule that accepts established connections, so that
/// whatever drops packets before that rule drops data connections, too. Without such a rule it is at the end.
///
/// If a rule before that place drops all data connections, or hides their marks, the place is before that rule. If
/// later packets pass nevertheless, the accept rule there accepts only the first packet of each connection, so that
/// whatever drops packets before the rule for established connections still drops data connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulePlace {
    /// The chain: usually the base chain, or one that it jumps to for all packets.
    pub chain: String,
    /// The number of rules before it.
    pub index: usize,
    /// The number of rules in the chain.
    length: usize,
    /// Whether the base chain jumps to this chain.
    is_jump_target: bool,
    /// Whether only the first packet of a data connection is dropped.
    is_for_first_packet: bool,
    anchor: Anchor,
}

/// The rule by which a place is found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Anchor {
    /// The place is behind the rule that accepts established connections.
    Established,
    /// The place is before the rule with this text.
    Before(String),
    /// The place is at the end of the chain, or before the rule that returns from it.
    End,
}

impl RulePlace {
    /// The place in a chain with `rules`, of which the one at `obstacle` drops all data connections, or hides them.
    pub fn new(chain: &str, rules: &[&str], obstacle: Option<usize>) -> Self {
        let established = behind_established(rules.iter().copied());
        let (index, anchor) = match (established, obstacle) {
            (Some(behind), at) if at.is_none_or(|at| at >= behind) => (behind, Anchor::Established),
            (_, Some(at)) => (at, Anchor::Before(rules[at].to_owned())),
            _ => (end_of(rules), Anchor::End),
        };
        let (chain, length) = (chain.to_owned(), rules.len());
        Self { chain, index, length, is_jump_target: false, is_for_first_packet: false, anchor }
    }

    /// The number of rules before the place in a file, in which the chain has `rules`. A rule that is not found may be
    /// in a file that is included among them. Without any known rule, the place is the top of the chain.
    pub fn index_in(&self, rules: &[&str]) -> usize {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let established = behind_established(rules.iter().copied());
        let found = match &self.anchor {
            Anchor::Established => established,
            Anchor::Before(text) => rules.iter().position(|rule| words(rule) == words(text)),
            // The rule may be in the file, and not loaded yet.
            Anchor::End => established.or(Some(end_of(rules))),
        };
        let is_include = |rule: &str| rule.starts_with("include ");
        let in_included = || match self.anchor {
            Anchor::Before(_) => rules.iter().position(|rule| is_include(rule)),
            _ => rules.iter().rposition(|rule| is_include(rule)).map(|index| index + 1),
        };
        // A file may have the same rules in other words.
        let same = || (rules.len() == self.length).then_some(self.index);
        found.or_else(in_included).or_else(same).unwrap_or(0)
    }

    /// Whether a rule that drops or hides all data connections would come before the usual place.
    pub fn is_before_an_obstacle(&self) -> bool {
        matches!(self.anchor, Anchor::Before(_))
    }

    /// The condition of a rule here that matches packets of `class`, in the language of `origin`.
    pub fn condition(&self, origin: Origin, class: PacketClass, gateway: &Gateway) -> String {
        let all = condition(origin, class, gateway);
        let nft = origin == Origin::Nftables;
        match class {
            PacketClass::Injected => all,
            _ if !(self.is_before_an_obstacle() && self.is_for_first_packet) => all,
            PacketClass::MarkedData if nft => format!("ct state new,related {all}"),
            PacketClass::MarkedData => format!("-m conntrack --ctstate NEW,RELATED {all}"),
            PacketClass::RelatedData if nft => "ct state related".to_owned(),
            PacketClass::RelatedData => "-m conntrack --ctstate RELATED".to_owned(),
        }
    }

    /// Makes this the place of a rule that serves `other` as well. Both places are for the same base chain. No rule of
    /// the base chain drops packets that reach a place in another chain.
    pub fn merge(&mut self, other: &Self) {
        let is_for_first_packet = self.is_for_first_packet && other.is_for_first_packet;
        if (other.is_jump_target, other.index) < (self.is_jump_target, self.index) {
            *self = other.clone();
        }
        self.is_for_first_packet = is_for_first_packet;
    }
}

/// The index of the rule that returns for all packets, or the number of `rules`.
fn end_of(rules: &[&str]) -> usize {
    let returns = |rule: &&str| {
        let words: Vec<&str> = rule.split_whitespace().collect();
        matches!(words[..], ["return"] | ["-A", _, "-j", "RETURN"])
    };
    rules.iter().position(returns).unwrap_or(rules.len())
}

/// The index behind the rule that accepts established connections: the first one for all packets, or else the last one
/// for some interfaces.
fn behind_established<'a>(rules: impl Iterator<Item = &'a str>) -> Option<usize> {
    let (mut all, mut some) = (None, None);
    for (index, rule) in rules.enumerate() {
        let rule = format!(" {} ", rule.to_ascii_lowercase());
        let has = |words: &[&str]| words.iter().any(|word| rule.contains(word));
        if !(rule.contains("established") && rule.contains("accept"))
            || has(&["port", "addr", "udp", "icmp", "@", "-set ", " -s ", " -d ", " --source "])
        {
            continue;
        }
        match has(&["iif", "oif", " -i ", " -o "]) {
            true => some = Some(index + 1),
            false => all = all.or(Some(index + 1)),
        }
    }
    all.or(some)
}

impl LocatedChain<'_> {
    /// The place of a rule that accepts data connections, of which `packet` is one. `obstacles` are the rules that lead to
    /// its drop, to what hides it, or back from its chain, each with its chain.
    pub(crate) fn place_of_accept_rule(
        &self,
        obstacles: &[(String, usize)],
        packet: &SamplePacket<'_>,
    ) -> RulePlace {
        let rules = |chain: &str| self.table.chains.get(chain).map_or(&[][..], |one| &one.rules);
        let established = |chain: &str| {
            behind_established(rules(chain).iter().map(|rule| rule.text.as_str())).is_some()
        };
        let obstacle = |chain: &str| {
            obstacles.iter().filter(|(one, _)| one == chain).map(|(_, index)| *index).min()
        };
        let mut chain = self.location().insert_into;
        let reached = obstacle(&chain).map_or(usize::MAX, |at| at + 1);
        let target = rules(&chain).iter().take(reached).find_map(|rule| match &rule.action {
            RuleVerdict::Jump(to) if rule.conditions.is_empty() => {
                Some(to).filter(|to| established(to))
            }
            _ => None,
        });
        let target = target.filter(|_| !established(&chain));
        let is_jump_target = target.is_some();
        chain = target.cloned().unwrap_or(chain);
        let own: Vec<&str> = rules(&chain).iter().map(|rule| rule.text.as_str()).collect();
        let is_for_first_packet = matches!(packet.state, state::NEW | state::RELATED);
        let place = RulePlace::new(&chain, &own, obstacle(&chain));
        RulePlace { is_jump_target, is_for_first_packet, ..place }
    }

    pub(crate) fn location(&self) -> ChainLocation {
        let Self { table, name, base: BaseChain { hook, priority, .. } } = *self;
        let jumps = |rule: &Rule| {
            let user = |to: &RuleVerdict| matches!(to, RuleVerdict::Jump(to) if to == DOCKER_USER);
            rule.conditions.is_empty() && user(&rule.action)
        };
        let docker = hook == Hook::Forward
            && table.chains.get(name).is_some_and(|chain| chain.rules.iter().any(jumps));
        ChainLocation {
            origin: table.origin,
            family: table.family,
            table: table.name.clone(),
            chain: name.to_owned(),
            insert_into: if docker { DOCKER_USER } else { name }.to_owned(),
            manager: table.manager(),
            has_owner: table.has_owner,
            hook,
            priority,
        }
    }
}

impl LocatedRule<'_> {
    /// The command that removes the rule.
    pub(crate) fn delete_command(&self) -> Option<String> {
        let Table { origin, family, name, .. } = self.table;
        if *origin == Origin::Nftables {
            let handle = self.rule.handle?;
            return Some(format!("nft delete rule {} handle {handle}", self.chain_name()));
        }
        let words = split_words(self.rule.text.strip_prefix("-A ")?);
        Some(format!("{} -t {name} -D {}", origin.program(*family), shell_quoted(&words)))
    }
}

impl ChainVerdict {
    /// Whether a rule here can recognise packets of `class`. The chains of devices see no connections.
    fn can_recognise(&self, class: PacketClass) -> bool {
        match self.location.family {
            TableFamily::Netdev => class == PacketClass::Injected,
            _ => class.is_recognised_at(self.location.hook, self.location.priority),
        }
    }

    /// The command that adds a rule here to accept packets of `class`. If no rule can recognise them here, what to do
    /// instead.
    pub fn accept_command(&self, class: PacketClass, gateway: &Gateway) -> Result<String, String> {
        if let Some(hiding) = &self.hidden_by {
            return Err(hiding.advice(gateway));
        }
        if !self.can_recognise(class) {
            return Err(self.advice_without_rule());
        }
        let ChainLocation { origin, family, table, .. } = &self.location;
        let RulePlace { chain, index, length, .. } = &self.place;
        let condition = self.place.condition(*origin, class, gateway);
        let program = origin.program(*family);
        if *origin == Origin::Nftables {
            let at = format!("{family} {table} {chain}");
            return Ok(match index {
                0 => format!("nft insert rule {at} {condition} accept"),
                _ if index == length => format!("nft add rule {at} {condition} accept"),
                // It goes behind the rule with this index, which the first rule has as 0.
                _ => format!("nft add rule {at} index {} {condition} accept", index - 1),
            });
        }
        let at = match index {
            0 => format!("-I {chain}"),
            _ if index == length => format!("-A {chain}"),
            _ => format!("-I {chain} {}", index + 1),
        };
        // The default, so the shorter command is the usual one.
        let table = if table == "filter" { String::new() } else { format!("-t {table} ") };
        Ok(format!("{program} {table}{at} {condition} -j ACCEPT"))
    }

    /// What to do about a chain in which no rule can recognise the packets.
    fn advice_without_rule(&self) -> String {
        let (ports, after) = match self.location.origin {
            Origin::Nftables => ("tcp dport 1024-65535 accept", "a chain of priority 0"),
            _ => ("-p tcp --dport 1024:65535 -j ACCEPT", "the chain FORWARD or INPUT"),
        };
        let (why, after) = match self.location.family {
            TableFamily::Netdev => ("it sees no connections", "a chain at forward or input"),
            _ => ("they get their marks later", after),
        };
        format!(
            "no rule of {} can tell data connections from others, because {why}: drop in \
             {after} instead, or accept new connections here by `{ports}` and leave them to the chains that follow",
            self.location
        )
    }
}

impl HidingRule {
    fn advice(&self, gateway: &Gateway) -> String {
        let Self { chain, rule, untracks } = self;
        if *untracks {
            return format!(
                "`{rule}` in {chain} takes data connections out of connection tracking: leave TCP out of it, or name \
                 the ports of services in it"
            );
        }
        let (ours, others) = (gateway.mask(), !gateway.mask());
        format!(
            "`{rule}` in {chain} overwrites the ct mark of data connections: give it a mask that spares {ours:#010x}, \
             as in `ct mark set ct mark & {ours:#010x} | 0x1`, `--set-xmark 0x1/0xff` or \
             `--save-mark --nfmask {others:#010x} --ctmask {others:#010x}`"
        )
    }
}

/// The condition that matches all packets of `class`, in the language of `origin`.
fn condition(origin: Origin, class: PacketClass, gateway: &Gateway) -> String {
    let (data, mask) = (gateway.data_mark, gateway.mask());
    match (origin, class) {
        (Origin::Nftables, PacketClass::MarkedData) => format!("ct mark and {data:#010x} != 0"),
        (Origin::Nftables, PacketClass::RelatedData) => "ct state established,related".to_owned(),
        (Origin::Nftables, PacketClass::Injected) => format!("meta mark {mask:#010x}"),
        (_, PacketClass::MarkedData) => format!("-m connmark --mark {data:#010x}/{data:#010x}"),
        (_, PacketClass::RelatedData) => "-m conntrack --ctstate ESTABLISHED,RELATED".to_owned(),
        (_, PacketClass::Injected) => format!("-m mark --mark {mask:#010x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Firewall;

    #[test]
    fn place_is_behind_the_rule_that_accepts_established_connections() {
        /// The rules before the place in a chain in which the rule that ends with ` #` drops all data connections.
        fn before(rules: &[&str]) -> usize {
            let drop = rules.iter().position(|rule| rule.ends_with(" #"));
            RulePlace::new("forward", rules, drop).index
        }
        const BLOCKED: &str = "ip saddr @blocked drop";
        for rule in [
            "ct state { established, related } counter packets 1 bytes 2 accept comment \"x\"",
            "ct state vmap { established : accept, related : accept, invalid : drop }",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "iifname \"wan0\" ct state established accept",
            "-A FORWARD -i wan0 -m state --state ESTABLISHED -j ACCEPT",
        ] {
            assert_eq!(before(&[BLOCKED, rule, "ip saddr @late drop", "drop #"]), 2, "{rule}");
            // A rule that drops what that rule would not accept.
            assert_eq!(before(&[BLOCKED, "iifname wan0 ct state new drop #", rule]), 1, "{rule}");
        }
        for rule in [
            "tcp dport 22 ct state new,established accept",
            "ip saddr 10.0.0.0/8 ct state established accept",
            "-A FORWARD -s 10.0.0.0/8 -m state --state ESTABLISHED -j ACCEPT",
            "-A FORWARD -p udp -m state --state ESTABLISHED -j ACCEPT",
            "-A FORWARD -m set --match-set x src -m state --state ESTABLISHED -j ACCEPT",
            "ct state established drop",
        ] {
            assert_eq!(before(&[rule, BLOCKED]), 2, "{rule}");
            assert_eq!(before(&[rule, BLOCKED, "drop #"]), 2, "{rule}");
        }
        let (all, wan) = ("ct state established accept", "iifname wan ct state established accept");
        let lan = wan.replace("wan", "lan");
        assert_eq!(before(&[wan, BLOCKED, &lan, "drop #"]), 3);
        assert_eq!(before(&[wan, "iifname wan drop #", &lan]), 1);
        assert_eq!(before(&[wan, all, BLOCKED, &lan]), 2);
        assert_eq!(before(&[BLOCKED, "-A DOCKER-USER -j RETURN"]), 1);
    }

    #[test]
    fn place_in_a_file_is_found_by_its_rule_or_by_the_number_of_rules() {
        const OLD: &str = "ct state established accept";
        let (behind_old, before_drop) =
            (["ip saddr @a drop", OLD, "tcp dport 22 accept"], ["a accept", "b  drop"]);
        for (loaded, drop, file, expected) in [
            (&behind_old[..], None, &["a", "b", OLD][..], 3),
            (&behind_old, None, &["$a drop", "$old accept", "$ssh accept"], 2),
            (&behind_old, None, &["a", "b"], 0),
            (&before_drop, Some(1), &["x", "y", "b drop", "z"], 2),
            (&before_drop, Some(1), &["x", "y"], 1),
            // What is not found is in an included file.
            (&behind_old, None, &["x", "include \"y\"", "z"], 2),
            (&before_drop, Some(1), &["x", "include \"y\"", "z"], 1),
            (&before_drop, Some(1), &["x", "y", "z"], 0),
            (&before_drop, None, &["x", "y", "z"], 3),
            (&before_drop, None, &["x", OLD, "z"], 2),
        ] {
            let place = RulePlace::new("forward", loaded, drop);
            assert_eq!(place.index_in(file), expected, "{loaded:?} {drop:?} {file:?}");
        }
    }

    /// What is inserted at the number in the list, or added. `ALL` accepts all packets of data connections, and `FIRST`
    /// their first ones.
    #[test]
    fn command_names_the_place_of_the_rule() {
        const OLD: &str = "FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT";
        const BAD: &str = "FORWARD -s 10.0.0.9/32 -j DROP";
        const NEW: &str = "FORWARD -m conntrack --ctstate NEW -j DROP";
        const SET: &str = "FORWARD -j CONNMARK --set-xmark 0x5/0xffffffff";
        const DROP: &str = "FORWARD -j DROP";
        const JUMP: &str = "FORWARD -j X";
        let no_related = NEW.replace("NEW", "NEW,RELATED");
        let [old_in_x, set_in_x] = [OLD, SET].map(|rule| rule.replace("FORWARD", "X"));
        let spared = SET.replace("0xffffffff", "0xff");
        let (marked, related) = (PacketClass::MarkedData, PacketClass::RelatedData);
        for (class, rules, expected) in [
            (marked, &[][..], "-I FORWARD ALL"),
            (marked, &[BAD], "-A FORWARD ALL"),
            (marked, &[BAD, OLD, BAD], "-I FORWARD 3 ALL"),
            (marked, &[BAD, DROP], "-I FORWARD 2 ALL"),
            (marked, &[&old_in_x, BAD, JUMP, DROP], "-A X ALL"),
            // The jump is not reached, or not by all packets.
            (marked, &[&old_in_x, DROP, JUMP], "-I FORWARD ALL"),
            (marked, &[&old_in_x, BAD, "FORWARD -i wan -j X", DROP], "-I FORWARD 3 ALL"),
            // A rule that drops from another chain.
            (marked, &["X -j DROP", BAD, JUMP], "-I FORWARD 2 ALL"),
            (marked, &[NEW, BAD, OLD], "-I FORWARD FIRST"),
            (marked, &[BAD, SET, OLD], "-I FORWARD 2 FIRST"),
            (marked, &[BAD, OLD, SET], "-I FORWARD 3 ALL"),
            // Later packets are dropped, too.
            (marked, &[BAD, NEW], "-I FORWARD 2 ALL"),
            (marked, &[BAD, SET], "-I FORWARD 2 ALL"),
            (marked, &[DROP, OLD], "-I FORWARD ALL"),
            // The mark is written in another chain, or spares the bit.
            (marked, &[&set_in_x, BAD, JUMP, OLD], "-I FORWARD 2 FIRST"),
            (marked, &[BAD, &spared, OLD], "-A FORWARD ALL"),
            (related, &[&no_related, BAD, OLD], "-I FORWARD -m conntrack --ctstate RELATED"),
            (related, &[BAD, OLD], "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED"),
        ] {
            let lines: String = rules.iter().map(|rule| format!("-A {rule}\n")).collect();
            let filter = format!(":FORWARD DROP\n:X - [0:0]\n{lines}");
            let firewall = Firewall::from_iptables_tables(&[("filter", &filter)]);
            let command = firewall.remedies(&firewall.forward(class), class).swap_remove(0);
            let expected = expected.replace("FIRST", "-m conntrack --ctstate NEW,RELATED ALL");
            let expected = expected.replace("ALL", "-m connmark --mark 0x40000000/0x40000000");
            assert_eq!(command, format!("iptables-legacy {expected} -j ACCEPT"), "{rules:?}");
        }
    }
}
