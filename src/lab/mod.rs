//! Network namespaces with real servers and clients, for the demo and the tests.
