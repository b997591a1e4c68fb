//! The planning passes, one file each. The order in which they run is in [`crate::Cycle::consider`].

pub(crate) mod allocate;
pub(crate) mod backfill;
pub(crate) mod clear;
pub(crate) mod earmark;
pub(crate) mod fill;
pub(crate) mod grow;
pub(crate) mod preempt;
pub(crate) mod reclaim;
