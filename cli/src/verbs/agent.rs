//! `agent`: the agent of one node, until it is told to stop.

use std::process::ExitCode;

use anyhow::Context as _;
use rowen_agent::{Config, Simulate};

use crate::args::AgentArgs;
use crate::exit::{DONE, Outcome};

/// Runs the agent.
pub(super) fn run(args: AgentArgs) -> Outcome {
    super::log_to_stderr();
    let config = config(args)?;
    super::on_all_cores(async {
        rowen_agent::run(config, super::interrupted()?).await?;
        Ok(ExitCode::from(DONE))
    })
}

fn config(args: AgentArgs) -> anyhow::Result<Config> {
    let simulate = args.simulate_gpus.map(|gpus| Simulate {
        gpus,
        model: args.simulate_model,
        memory_mib: args.simulate_memory_mib,
    });
    let addr = match args.addr.into_iter().next() {
        Some(addr) => addr,
        None => host_name()?,
    };
    let shim = std::env::current_exe().context("cannot find my own executable")?;
    let cgroup = !args.no_cgroup;
    Ok(Config {
        node: args.node,
        servers: args.server,
        dir: args.dir,
        addr,
        simulate,
        shim,
        cgroup,
    })
}

/// Where other nodes reach this one, unless told otherwise.
fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot read the host's name; add --addr")?;
    name.into_string().ok().context("the host's name is not UTF-8; add --addr")
}
