//! What can be typed about queues. Only its shape.

use clap::{Args, Subcommand};

use super::{JobListArgs, WatchArgs, duration};

/// `queue`: jobs, or a verb of queues.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct QueueArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<QueueVerb>,
    #[command(flatten)]
    pub(crate) jobs: JobListArgs,
}

/// Verbs of queues.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueVerb {
    /// List queues: what each may have, has and has had.
    #[command(visible_alias = "ls")]
    List(WatchArgs),
    /// Add a queue, or change what is said here of the one of that name.
    Set(QueueSetArgs),
    /// Forget a queue that has no jobs.
    #[command(visible_alias = "rm")]
    Remove(QueueNameArgs),
}

/// One queue.
#[derive(Debug, Args)]
pub(crate) struct QueueNameArgs {
    /// Name of the queue.
    #[arg(value_name = "QUEUE")]
    pub(crate) name: String,
}

/// `queue set`.
#[derive(Debug, Args)]
pub(crate) struct QueueSetArgs {
    /// Name of the queue.
    #[arg(value_name = "QUEUE")]
    pub(crate) name: String,
    /// The queue above it; none: none.
    #[arg(long, value_name = "QUEUE")]
    pub(crate) parent: Option<String>,
    /// GPUs that it gets whenever it asks.
    #[arg(long, value_name = "GPUS")]
    pub(crate) guarantee: Option<u64>,
    /// GPUs that it never has more of; none: as many as there are.
    #[arg(long, value_name = "GPUS|none")]
    pub(crate) limit: Option<Gpus>,
    /// Guarantee and limit of one GPU model: H100=64:128; 0:none takes them away.
    #[arg(long, value_name = "MODEL=GPUS:GPUS")]
    pub(crate) model: Vec<ModelQuota>,
    /// Of its guarantee so many may be lent while it does not use them; all: all.
    #[arg(long, value_name = "GPUS|all")]
    pub(crate) lend: Option<Gpus>,
    /// Its share of what nobody is guaranteed.
    #[arg(long, value_name = "N")]
    pub(crate) weight: Option<u32>,
    /// Whether its jobs of higher priority evict those of lower priority.
    #[arg(long, value_name = "true|false")]
    pub(crate) preempts: Option<bool>,
    /// A gang of it has its GPUs for so long before it is evicted for another.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) min_run: Option<std::time::Duration>,
}

/// So many GPUs, or no bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gpus(pub(crate) Option<u64>);

impl std::str::FromStr for Gpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Gpus, String> {
        match text {
            "none" | "all" => Ok(Gpus(None)),
            text => match text.parse() {
                Ok(gpus) => Ok(Gpus(Some(gpus))),
                Err(_) => Err(format!("{text:?} is no number of GPUs, nor none or all")),
            },
        }
    }
}

/// `MODEL=GUARANTEE:LIMIT`.
#[derive(Clone, Debug)]
pub(crate) struct ModelQuota {
    pub(crate) name: String,
    pub(crate) guarantee: u64,
    pub(crate) limit: Gpus,
}

impl std::str::FromStr for ModelQuota {
    type Err = String;

    fn from_str(text: &str) -> Result<ModelQuota, String> {
        let wrong = || format!("{text:?} is not MODEL=GUARANTEE:LIMIT, as in H100=64:128");
        let (name, quota) = text.rsplit_once('=').ok_or_else(wrong)?;
        let (guarantee, limit) = quota.split_once(':').ok_or_else(wrong)?;
        let guarantee = guarantee.parse().map_err(|_| wrong())?;
        Ok(ModelQuota { name: name.to_owned(), guarantee, limit: limit.parse()? })
    }
}
