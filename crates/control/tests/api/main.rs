//! The router with a real store, driven as HTTP clients drive it, and as attackers do.

#![expect(clippy::unwrap_used, reason = "helpers of tests stop at what should not happen")]

mod access;
mod attacks;
mod certificates;
mod client;
mod clusters;
mod cmek;
mod connections;
mod double;
mod egress;
mod endpoints;
mod key_services;
mod network;
mod peerings;
mod rules;
mod served;
mod sign_in;
mod stopping;
mod storage;
mod versions;
mod world;
