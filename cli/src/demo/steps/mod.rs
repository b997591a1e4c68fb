//! The story, in order.

pub(super) mod books;
mod control_plane_dies;
mod fill;
mod hello;
mod node_dies;
mod pretrain;
mod too_large;

use std::path::PathBuf;

use anyhow::Result;

use super::Demo;

/// One after the other; the first error ends the story.
pub(super) async fn all(demo: &mut Demo<'_>) -> Result<()> {
    hello::play(demo).await?;
    fill::play(demo).await?;
    pretrain::play(demo).await?;
    fill::again(demo, "fillers flow back").await?;
    let gangs = too_large::play(demo).await?;
    if demo.args.crash {
        control_plane_dies::play(demo, &gangs).await?;
    }
    node_dies::play(demo, &gangs).await?;
    fill::again(demo, "fillers flow back once more").await
}

/// The two gangs of the second half.
struct Gangs {
    /// Runs on a block until `stop_long` exists.
    long: u64,
    stop_long: PathBuf,
    /// Wants every node.
    wide: u64,
}
