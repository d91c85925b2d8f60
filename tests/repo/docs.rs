//! The documentation: its links lead somewhere, its commands are the program's, its rules load, its configurations are
//! valid, and its tables of fields, states and problems are complete.
//!
//! Rules and firewall commands run in network namespaces of their own, so these tests need root.

mod commands;
mod links;
mod live;
mod names;
mod pages;
mod reference;
mod rules;
mod shell;
