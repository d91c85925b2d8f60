//! Two gateways with keepalived, conntrackd and a store each, of which one fails or is stopped.

mod changes;
mod clients;
mod configuration;
mod crashes;
mod gateways;
mod store;
