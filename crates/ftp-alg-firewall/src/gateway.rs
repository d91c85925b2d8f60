//! The gateway whose connections are followed through the rules: how rules can recognise its packets, and which
//! packets it has.

/// How rules can recognise the connections and packets of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The ports of control connections, ascending.
    pub control_ports: Vec<u16>,
    /// The ct mark bit of an admitted data connection.
    pub data_mark: u32,
    /// The ct mark bit of a control connection whose packets all go to the queue.
    pub queue_all_mark: u32,
    /// The ct mark bit of a control connection none of whose packets goes to the queue.
    pub queue_none_mark: u32,
    /// The packet mark bits that may hold the number of a translation.
    pub slot_mask: u32,
}

impl Gateway {
    /// All of the gateway's ct mark bits; also the packet mark of packets that it injects.
    pub fn mask(&self) -> u32 {
        self.data_mark | self.control_bits()
    }

    /// The ct mark bits of control connections.
    pub(crate) fn control_bits(&self) -> u32 {
        self.queue_all_mark | self.queue_none_mark
    }
}

#[cfg(test)]
impl Default for Gateway {
    fn default() -> Self {
        Self {
            control_ports: vec![21],
            data_mark: 0x4000_0000,
            queue_all_mark: 0x2000_0000,
            queue_none_mark: 0x1000_0000,
            slot_mask: 0x8ffe_0000,
        }
    }
}

/// How this machine handles packets of other hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Whether it forwards IPv4.
    pub v4: bool,
    /// Whether it forwards IPv6, and has a route to other networks.
    pub v6: bool,
    /// Whether it has an IPv6 address other than on `lo`.
    pub has_v6: bool,
    /// Whether a local program listens on a control port.
    pub has_local_server: bool,
}
