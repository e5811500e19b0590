//! What `plumb` stands on: its vocabulary (digests, bounded reads of files, random numbers, foreign text as it is shown), devices, and what
//! computes on them. `plumb` names these modules as its own, and its documentation says which may use which.

#![cfg_attr(
    test,
    expect(
        clippy::disallowed_methods,
        reason = "tests make and damage files as they need"
    )
)]

pub mod digest;
pub mod files;
pub mod monitor;
pub mod rng;
pub mod shown;

pub mod device;
pub mod nn;
