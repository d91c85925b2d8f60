//! Checked views of IPv4, IPv6 and TCP, and the building of changed packets.
