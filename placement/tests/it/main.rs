//! Plans over worlds that real commands built.

mod explains;
mod plans;
mod properties;
mod world;
