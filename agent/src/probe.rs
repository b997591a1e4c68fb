//! Whether an instance is ready to serve.
//!
//! Owns one try after another until one passes; never what follows from it.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::spec::ProbeSpec;

/// A try that hangs is given up after this.
const TRY_MS: u64 = 5000;

/// What a try needs to know of the instance.
pub(crate) struct Target {
    pub(crate) probe: ProbeSpec,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) dir: PathBuf,
}

/// Returns once a try has passed.
pub(crate) async fn until_ready(target: Target) {
    let period = Duration::from_millis(target.probe.period_ms.max(10));
    loop {
        if timeout(Duration::from_millis(TRY_MS), passes(&target)).await.unwrap_or(false) {
            return;
        }
        sleep(period).await;
    }
}

async fn passes(target: &Target) -> bool {
    if !target.probe.exec.is_empty() {
        return runs(target).await;
    }
    let port = if target.probe.port == 0 { target.port } else { target.probe.port };
    let Ok(stream) = TcpStream::connect((target.host.as_str(), port)).await else { return false };
    target.probe.path.is_empty() || answers(stream, target, port).await.unwrap_or(false)
}

/// A plain HTTP/1.1 GET; 2xx passes.
async fn answers(mut stream: TcpStream, target: &Target, port: u16) -> std::io::Result<bool> {
    let (path, host) = (&target.probe.path, &target.host);
    let slash = if path.starts_with('/') { "" } else { "/" };
    let request = format!(
        "GET {slash}{path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: rowen\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // "HTTP/1.1 2" is all that counts.
    let mut head = [0; 10];
    stream.read_exact(&mut head).await?;
    Ok(head.starts_with(b"HTTP/1.") && head[8..] == *b" 2")
}

async fn runs(target: &Target) -> bool {
    let exec = &target.probe.exec;
    let mut command = tokio::process::Command::new(&exec[0]);
    command.args(&exec[1..]).env_clear().envs(&target.env).current_dir(&target.dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.status().await.is_ok_and(|status| status.success())
}
