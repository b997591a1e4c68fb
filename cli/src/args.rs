//! What can be typed: noun then verb, with short forms of the daily ones.
//!
//! Only the shape of the command line; what a verb does is in `verbs`.

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::files;

mod queue;

pub(crate) use queue::{QueueArgs, QueueNameArgs, QueueSetArgs, QueueVerb};

/// Rowen gang-schedules training jobs on GPU clusters and fills what they leave idle.
#[derive(Debug, Parser)]
#[command(
    name = "rowen",
    version,
    propagate_version = false,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 accepted but cannot be placed now,\n\
                  4 denied, 5 conflict, 124 wait expired, 125 Rowen itself failed under --wait."
)]
pub(crate) struct RowenArgs {
    /// Where and how, for every verb.
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Flags that may stand anywhere.
#[derive(Clone, Debug, Args)]
pub(crate) struct GlobalArgs {
    /// Control plane, HOST:PORT; several with commas are tried in order [env: ROWEN_ADDR]
    /// [default: 127.0.0.1:7077].
    // The environment is read in `client`: `agent` has an --addr of its own, into which clap would
    // carry ROWEN_ADDR.
    #[arg(long, global = true, value_name = "ADDR", value_delimiter = ',')]
    pub(crate) addr: Vec<String>,
    /// How fresh an answer must be: `linearizable` (as new as all that was acknowledged; any
    /// replica asks the leader), `stale` (what the first replica that answers has), or a log index
    /// that it must have reached, that of your own write, say. Says on standard error which log
    /// index the answer is of.
    #[arg(long, global = true, value_name = "HOW", value_parser = freshness)]
    pub(crate) read: Option<String>,
    /// How to print.
    #[arg(
        short = 'o',
        long = "output",
        global = true,
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub(crate) output: OutputFormat,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Columns for people.
    Table,
    /// More columns.
    Wide,
    /// One JSON object (one a line under --watch).
    Json,
    /// The same as YAML.
    Yaml,
}

/// The nouns, the verbs without a noun, and the short forms.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Submit a job (= job submit).
    Submit(SubmitArgs),
    /// Say where a job would go and whom it would evict (= job plan).
    Plan(PlanArgs),
    /// List jobs (= job list), or list and change queues.
    #[command(visible_alias = "jobs")]
    Queue(QueueArgs),
    /// Say why a job waits (= job why).
    Why(JobIdArgs),
    /// Say what would come of changes, on a copy of the state: nothing is done.
    #[command(name = "whatif", alias = "what-if")]
    WhatIf(crate::verbs::WhatIfArgs),
    /// Print what a job's tasks wrote (= job logs).
    Logs(LogsArgs),
    /// End jobs (= job cancel).
    Cancel(JobIdsArgs),
    /// Training jobs: gangs that start together or not at all.
    #[command(subcommand, arg_required_else_help = true)]
    Job(JobVerb),
    /// Machines with GPUs.
    #[command(subcommand, arg_required_else_help = true)]
    Node(NodeVerb),
    /// How GPUs, nodes, racks and switches hang together.
    #[command(subcommand, arg_required_else_help = true)]
    Fabric(FabricVerb),
    /// Preemptible inference deployments that run on what is left.
    #[command(subcommand, arg_required_else_help = true)]
    Filler(FillerVerb),
    /// The control plane and what the GPUs were used for.
    Status(WatchArgs),
    /// The replicas of the control plane: set up, look after, back up.
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(ClusterVerb),
    /// Run a whole cluster on this machine, with simulated GPUs.
    Dev(Box<crate::dev::Args>),
    /// Show a real gang over fillers, end to end, in half a minute.
    Demo(Box<crate::demo::Args>),
    /// Measure.
    Bench(Box<crate::bench::Args>),
    /// Replay a trace in virtual time through the same core.
    #[command(subcommand, arg_required_else_help = true)]
    Sim(crate::verbs::SimVerb),
    /// Rebuild any moment from a replica's data folder, and check it.
    Replay(crate::verbs::ReplayArgs),
    /// Run a replica of the control plane.
    Serve(RunArgs),
    /// Run the agent of a node.
    Agent(AgentArgs),
    /// Print the JSON Schema of a kind of file.
    Schema(SchemaArgs),
    /// Print a shell's completion script.
    Completion(CompletionArgs),
    /// Print the version.
    Version,
    /// One task, beside the agent (internal; dispatched before this parser).
    #[command(hide = true)]
    Shim,
    /// Ask the GPU libraries in a process of its own (internal; dispatched before this parser).
    #[command(hide = true)]
    ProbeGpus,
    /// A rank of the demo's gang (internal).
    #[command(hide = true)]
    DemoWorker,
    /// An instance of the demo's filler (internal).
    #[command(hide = true)]
    DemoFiller,
    /// Ends what a killed `dev` or `demo` left behind (internal).
    #[command(hide = true)]
    ClusterGuard,
}

/// Verbs of jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum JobVerb {
    /// Submit a job: a file, or --name, --workers, --gpus -- COMMAND.
    Submit(SubmitArgs),
    /// Say where a job would go, whom it would evict and when it would start; change nothing.
    Plan(PlanArgs),
    /// Check a job file without a cluster.
    Validate(ValidateArgs),
    /// List jobs.
    #[command(visible_alias = "ls")]
    List(JobListArgs),
    /// Show one job: its tasks and its story.
    Show(JobIdArgs),
    /// Say why a job waits and what would admit it.
    Why(JobIdArgs),
    /// Print what a job's tasks wrote.
    Logs(LogsArgs),
    /// End jobs, with their notice.
    Cancel(JobIdsArgs),
    /// Stop a job's tasks, with their notice, and queue it again.
    Requeue(JobIdsArgs),
    /// Print the JSON Schema of job files.
    Schema,
}

/// A job as a file, as flags, or as a file changed by flags.
#[derive(Debug, Args)]
pub(crate) struct JobSource {
    /// Job file, .toml, .yaml or .json; `-` reads standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<String>,
    /// What the file is written in, where its ending does not tell.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<files::Format>,
    /// Change a key of the file: --set workers=4 --set env.STEPS=100.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Name of the job.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Workers of the gang.
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) workers: Option<u32>,
    /// GPUs a worker.
    #[arg(short = 'g', long, value_name = "N")]
    pub(crate) gpus: Option<u32>,
    /// 0 to 1000, higher goes first.
    #[arg(short = 'p', long, value_name = "N")]
    pub(crate) priority: Option<u32>,
    /// Keep all workers inside one site, pod, block, nvlink or node.
    #[arg(long, value_name = "LEVEL")]
    pub(crate) required: Option<String>,
    /// End the job after this long: 2h, 90s, 02:30:00.
    #[arg(short = 't', long, value_name = "TIME")]
    pub(crate) time_limit: Option<String>,
    /// The command of each worker, after `--`.
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// `job submit`.
#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// The job.
    #[command(flatten)]
    pub(crate) source: JobSource,
    /// Wait for the job to end and return its exit code (125 where Rowen itself failed).
    #[arg(short = 'w', long)]
    pub(crate) wait: bool,
    /// Print what the tasks write until the job ends; returns as --wait does.
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// With --wait or --follow: give up waiting after this long, with exit code 124.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<std::time::Duration>,
    /// Print the job's id alone.
    #[arg(long)]
    pub(crate) parsable: bool,
}

/// `job plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The job.
    #[command(flatten)]
    pub(crate) source: JobSource,
}

/// `job validate`, `filler validate`, `fabric check`.
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// Files; `-` reads standard input.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<String>,
    /// What the files are written in, where their endings do not tell.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<files::Format>,
}

/// What lists can do.
#[derive(Clone, Debug, Args)]
pub(crate) struct WatchArgs {
    /// Print again each second.
    #[arg(short = 'w', long)]
    pub(crate) watch: bool,
}

/// `job list`.
#[derive(Debug, Args)]
pub(crate) struct JobListArgs {
    /// Ended jobs too.
    #[arg(short = 'a', long)]
    pub(crate) all: bool,
    /// Only this tenant's.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) tenant: String,
    /// Only this queue's.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) queue: String,
    /// Again and again.
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
}

/// One job.
#[derive(Debug, Args)]
pub(crate) struct JobIdArgs {
    /// Job id, or a name that only one live job has.
    #[arg(value_name = "JOB")]
    pub(crate) id: String,
}

/// Several jobs.
#[derive(Debug, Args)]
pub(crate) struct JobIdsArgs {
    /// Job ids, or names that only one live job has.
    #[arg(required = true, value_name = "JOB")]
    pub(crate) ids: Vec<String>,
}

/// `job logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Job id, or a name that only one live job has.
    #[arg(value_name = "JOB")]
    pub(crate) id: String,
    /// Only this worker's.
    #[arg(short = 'r', long, value_name = "N")]
    pub(crate) rank: Option<u32>,
    /// Go on until the job ends.
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// Only the last lines of each task.
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 0, hide_default_value = true)]
    pub(crate) tail: u32,
    /// Only standard error.
    #[arg(long, conflicts_with = "stdout")]
    pub(crate) stderr: bool,
    /// Only standard output.
    #[arg(long)]
    pub(crate) stdout: bool,
    /// Of an earlier start of the job; left out: the newest.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) attempt: u32,
}

/// Verbs of nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// List nodes, those alike on one line (-o wide: a line each).
    #[command(visible_alias = "ls")]
    List(WatchArgs),
    /// Show one node and its GPUs.
    Show(NodeNameArgs),
    /// Place nothing new on nodes; what runs goes on.
    Cordon(NodeReasonArgs),
    /// Cordon nodes and end what runs there, each with its notice; gangs requeue.
    Drain(NodeReasonArgs),
    /// Put nodes back in service after a cordon or a drain.
    #[command(visible_alias = "uncordon")]
    Undrain(NodeNamesArgs),
    /// Give a node's GPUs back at once, because you have seen that the machine is off.
    Forget(ForgetArgs),
}

/// `node forget`.
#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// Name of the node.
    #[arg(value_name = "NODE")]
    pub(crate) name: String,
    /// You have looked: the machine is off or cut from its GPUs. If it still runs, two jobs may
    /// use one GPU.
    #[arg(long)]
    pub(crate) i_checked: bool,
}

/// One node.
#[derive(Debug, Args)]
pub(crate) struct NodeNameArgs {
    /// Name of the node.
    #[arg(value_name = "NODE")]
    pub(crate) name: String,
}

/// Several nodes.
#[derive(Debug, Args)]
pub(crate) struct NodeNamesArgs {
    /// Nodes, also as host lists: node[1-4].
    #[arg(required = true, value_name = "NODE")]
    pub(crate) names: Vec<String>,
}

/// Several nodes and why.
#[derive(Debug, Args)]
pub(crate) struct NodeReasonArgs {
    /// Which.
    #[command(flatten)]
    pub(crate) nodes: NodeNamesArgs,
    /// Why, for those who wonder later.
    #[arg(short = 'm', long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) reason: String,
}

/// Verbs of the replicas.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterVerb {
    /// Make an empty data folder the first replica of a new cluster; `rowen serve` then runs it.
    Init(ServeArgs),
    /// Make an empty data folder a further replica of a cluster; `rowen serve` then runs it.
    Join(JoinArgs),
    /// Show the replicas: who leads, who votes, how much of the log each has.
    Status(WatchArgs),
    /// Take a replica out for good; its id is never used again.
    Remove(RemoveArgs),
    /// Hand the leadership to another replica.
    TransferLeader(TransferArgs),
    /// Change how long node leases last, and what is waited for beside, on every replica.
    SetTiming(TimingArgs),
    /// Write the state and the archive into one file, checked before it gets its name.
    Backup(BackupArgs),
    /// Make an empty data folder the first replica of a cluster that goes on from a backup.
    Restore(RestoreArgs),
}

/// `cluster join`.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// Which folder, and where the others reach it.
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    /// Replicas of the cluster, HOST:PORT with commas between; one that answers is enough.
    #[arg(long, value_name = "ADDR", value_delimiter = ',', required = true)]
    pub(crate) peer: Vec<String>,
}

/// `cluster remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Its id, as `cluster status` has it.
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) id: u64,
}

/// `cluster transfer-leader`.
#[derive(Debug, Args)]
pub(crate) struct TransferArgs {
    /// Who is to lead. Left out: the voter with most of the log.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) to: Option<u64>,
}

/// `cluster set-timing`. What is left out stays.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct TimingArgs {
    /// How long an agent may run without a leader that a quorum confirmed.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) node_lease: Option<std::time::Duration>,
    /// Between two heartbeats of an agent; at most a third of the lease.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) heartbeat: Option<std::time::Duration>,
    /// From SIGKILL until processes are gone; at least 500ms.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) kill: Option<std::time::Duration>,
    /// Bound on the drift between two machines' clocks, in millionths.
    #[arg(long, value_name = "N")]
    pub(crate) drift_ppm: Option<u64>,
}

/// `cluster backup`.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Where to.
    #[arg(value_name = "FILE")]
    pub(crate) file: std::path::PathBuf,
    /// Replace a file of that name.
    #[arg(long)]
    pub(crate) force: bool,
}

/// `cluster restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// What `cluster backup` wrote.
    #[arg(value_name = "FILE")]
    pub(crate) file: std::path::PathBuf,
    /// The longest node lease that an agent of before may still hold. A node that does not come back
    /// keeps its GPUs for as long. 1h is the most that can have been granted: give less only if you
    /// know what was granted since the backup.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub(crate) longest_lease: std::time::Duration,
    /// Which folder, and where clients and agents reach it.
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
}

/// Verbs of the fabric.
#[derive(Debug, Subcommand)]
pub(crate) enum FabricVerb {
    /// Draw the racks, one cell a GPU, coloured by owner.
    Show(WatchArgs),
    /// Check a fabric file without a cluster.
    Check(ValidateArgs),
    /// Replace the cluster's fabric by a file's.
    Set(FileArgs),
    /// Turn what another system knows of a fabric into a fabric file.
    Import(Box<ImportArgs>),
    /// Faulty GPUs and links: list them, or say what is faulty.
    #[command(subcommand, arg_required_else_help = true)]
    Health(crate::verbs::HealthVerb),
    /// Print the JSON Schema of fabric files.
    Schema,
}

/// `fabric import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// What the file is written in.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) from: ImportFormat,
    /// The file; `-` reads standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: String,
    /// Write the fabric file here and print what was found; left out: the other way round.
    #[arg(long, value_name = "FILE")]
    pub(crate) to: Option<String>,
    /// The nodes, as a host list: all other hosts are left out. Of one machine's inside: the
    /// machines that are like it.
    #[arg(long, value_name = "HOSTS")]
    pub(crate) nodes: Option<String>,
    /// Site of all nodes.
    #[arg(long, value_name = "NAME")]
    pub(crate) site: Option<String>,
    /// The inside of each node, as nccl:FILE or nvidia-smi:FILE.
    #[arg(long, value_name = "FORMAT:FILE")]
    pub(crate) inside: Option<String>,
    /// Model of each node's GPUs.
    #[arg(long, value_name = "MODEL")]
    pub(crate) gpu_model: Option<String>,
    /// GPUs of each node.
    #[arg(long, value_name = "N")]
    pub(crate) gpus: Option<u16>,
    /// Memory of each GPU.
    #[arg(long, value_name = "MIB")]
    pub(crate) gpu_memory_mib: Option<u64>,
    /// Model of each node's NICs.
    #[arg(long, value_name = "MODEL")]
    pub(crate) nic: Option<String>,
    /// Hardware threads of each node.
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// Main memory of each node.
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_mib: Option<u64>,
}

/// What `fabric import` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportFormat {
    /// Slurm's topology.conf, tree or block.
    Slurm,
    /// The output of ibnetdiscover.
    Ibnetdiscover,
    /// A model of NVIDIA topograph.
    Topograph,
    /// NCCL's topology XML of one machine.
    Nccl,
    /// The matrix of nvidia-smi topo -m of one machine.
    NvidiaSmi,
}

/// One file.
#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// The file, .toml, .yaml or .json; `-` reads standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: String,
    /// What it is written in, where its ending does not tell.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<files::Format>,
}

/// Verbs of fillers.
#[derive(Debug, Subcommand)]
pub(crate) enum FillerVerb {
    /// Create the filler of a file, or change the one of that name.
    Deploy(DeployArgs),
    /// Check a filler file without a cluster.
    Validate(ValidateArgs),
    /// List fillers.
    #[command(visible_alias = "ls")]
    List(WatchArgs),
    /// Show one filler and its instances.
    Show(FillerNameArgs),
    /// End a filler's instances, with their notice, and start no more until it is deployed again.
    Drain(FillerNameArgs),
    /// Drain a filler and forget it.
    #[command(visible_alias = "rm")]
    Remove(FillerNameArgs),
    /// Print the JSON Schema of filler files.
    Schema,
}

/// `filler deploy`.
#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// The file.
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Change a key of the file: --set instances.max=4.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// One filler.
#[derive(Debug, Args)]
pub(crate) struct FillerNameArgs {
    /// Name of the filler.
    #[arg(value_name = "FILLER")]
    pub(crate) name: String,
}

/// `serve`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    /// Your word, for this start, that the damaged end of the log after a power cut is a write
    /// that nobody was told of. Where most replicas need it, nobody else can elect a leader.
    #[arg(long)]
    pub(crate) accept_torn_tail: bool,
}

/// Which replica.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Configuration of the replica, TOML.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: std::path::PathBuf,
}

/// `agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Replicas of the control plane, HOST:PORT with commas between.
    #[arg(long, value_name = "ADDR", value_delimiter = ',', required = true)]
    pub(crate) server: Vec<String>,
    /// Name of this node in the fabric.
    #[arg(long, value_name = "NAME")]
    pub(crate) node: String,
    /// Folder of its tasks and logs.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: std::path::PathBuf,
    /// Where other nodes reach its tasks.
    #[arg(long, value_name = "HOST")]
    pub(crate) addr: Vec<String>,
    /// Pretend to have this many GPUs; nothing looks for real ones.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) simulate_gpus: Option<u16>,
    /// Model of the simulated GPUs.
    #[arg(long, value_name = "MODEL", default_value = "H100", requires = "simulate_gpus")]
    pub(crate) simulate_model: String,
    /// Memory of each simulated GPU.
    #[arg(long, value_name = "MIB", default_value_t = 81_920, requires = "simulate_gpus")]
    pub(crate) simulate_memory_mib: u64,
    /// Leave cgroups alone.
    #[arg(long)]
    pub(crate) no_cgroup: bool,
}

/// `schema`.
#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    /// Which kind of file.
    pub(crate) kind: files::Kind,
}

/// `completion`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// Which shell.
    pub(crate) shell: clap_complete::Shell,
}

/// What `--read` takes.
fn freshness(text: &str) -> Result<String, String> {
    match text {
        "linearizable" | "stale" => Ok(text.to_owned()),
        _ if text.parse::<u64>().is_ok() => Ok(text.to_owned()),
        _ => Err("choose linearizable, stale or a log index".to_owned()),
    }
}

/// A duration on the command line, as files have it.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    files::duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<RowenArgs, clap::Error> {
        RowenArgs::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_parser_is_sound() {
        RowenArgs::command().debug_assert();
    }

    /// Each line parses, and its short form parses to the same.
    #[test]
    fn short_forms_mean_the_long_ones() {
        let pairs = [
            ("rowen submit job.toml --wait", "rowen job submit job.toml --wait"),
            ("rowen plan job.toml", "rowen job plan job.toml"),
            ("rowen queue -a", "rowen job list --all"),
            ("rowen jobs", "rowen job ls"),
            ("rowen why 7", "rowen job why 7"),
            ("rowen logs 7 -f -r 2 -n 10", "rowen job logs 7 --follow --rank 2 --tail 10"),
            ("rowen cancel 7 8", "rowen job cancel 7 8"),
        ];
        let inner = |args: RowenArgs| {
            let text = match &args.verb {
                Verb::Queue(QueueArgs { verb: None, jobs }) => format!("{jobs:?}"),
                verb => format!("{verb:?}"),
            };
            let from = text.find("Args").expect("each of these verbs has arguments");
            text[from..].trim_end_matches(')').to_owned()
        };
        for (short, long) in pairs {
            assert_eq!(inner(parse(short).unwrap()), inner(parse(long).unwrap()), "{short}");
        }
    }

    #[test]
    fn accepted() {
        let lines = [
            "rowen submit --name x -n 4 -g 8 -t 2h --required block -- python3 train.py --lr 1",
            "rowen submit - --format yaml --set workers=4 --set env.A=b --parsable",
            "rowen submit job.toml --follow --timeout 90s",
            "rowen --addr a:1,b:2 -o json status",
            "rowen status --addr a:1 -o yaml --watch",
            "rowen job validate a.toml b.yaml",
            "rowen node list -w -o wide",
            "rowen node drain node[1-4] node9 -m fans",
            "rowen node uncordon node1",
            "rowen fabric show -w",
            "rowen fabric check fabric.yaml",
            "rowen fabric import --from slurm topology.conf --gpus 8 --to fabric.yaml",
            "rowen fabric import --from ibnetdiscover - --nodes n[1-8] --inside nccl:topo.xml",
            "rowen filler deploy chat.yaml --set instances.max=2",
            "rowen filler rm chat",
            "rowen serve --config rowen.toml",
            "rowen serve --config rowen.toml --accept-torn-tail",
            "rowen node forget node1 --i-checked",
            "rowen cluster init --config rowen.toml",
            "rowen cluster join --config rowen.toml --peer a:1,b:1",
            "rowen cluster status -o yaml",
            "rowen cluster remove 2",
            "rowen cluster transfer-leader --to 3",
            "rowen cluster backup rowen.backup --force",
            "rowen cluster restore rowen.backup --config rowen.toml",
            "rowen agent --server a:1,b:1 --node n1 --dir /d --addr h --simulate-gpus 8",
            "rowen schema job",
            "rowen completion bash",
            "rowen version",
        ];
        for line in lines {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn refused_as_usage() {
        let lines = [
            "rowen submit job.toml --timeout 90",
            "rowen queue --frobnicate",
            "rowen job",
            "rowen node drain",
            "rowen cluster",
            "rowen cluster join --config rowen.toml",
            "rowen fabric import topology.conf",
            "rowen fabric import --from lshw x",
            "rowen cluster remove 0",
            "rowen cluster transfer-leader --to x",
            "rowen cluster restore rowen.backup",
            "rowen cancel",
            "rowen logs 7 --stdout --stderr",
            "rowen status -o xml",
            "rowen agent --server a:1 --node n1 --dir /d --simulate-gpus 65",
            "rowen agent --node n1 --dir /d",
        ];
        for line in lines {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    /// `agent --addr` is where its tasks are reached, and no ROWEN_ADDR gets into it.
    #[test]
    fn the_agent_has_an_address_of_its_own() {
        let args = parse("rowen agent --server s:1 --node n --dir /d --addr host").unwrap();
        let Verb::Agent(agent) = args.verb else { panic!("{:?}", args.verb) };
        assert_eq!(agent.addr, ["host"]);
        let args = parse("rowen agent --server s:1 --node n --dir /d").unwrap();
        let Verb::Agent(agent) = args.verb else { panic!("{:?}", args.verb) };
        assert_eq!(agent.addr, Vec::<String>::new());
    }
}
