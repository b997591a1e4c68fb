//! A fabric of Rowen's own under the real `ibsim`, read back by the real `ibnetdiscover`.
//!
//! Without the tools (Debian: `ibsim-utils`, `infiniband-diags`) it says SKIPPED and passes. Has
//! no harness, so that what it says is seen.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test of its own, without harness")]

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rowen_topology::FlatIndex;
use rowen_topology::import::{Format, import};
use support::{Cables, Plan, options};

fn main() {
    let preload = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|arch| PathBuf::from(format!("/usr/lib/{arch}/umad2sim/libumad2sim.so")));
    let preload = preload.iter().find(|path| path.exists());
    let (Some(preload), true, true) = (preload, known("ibsim"), known("ibnetdiscover")) else {
        println!(
            "SKIPPED: ibsim or ibnetdiscover is missing; apt-get install ibsim-utils infiniband-diags"
        );
        return;
    };
    let uplinks = vec![vec![true, true, true], vec![true, false, true], vec![true, true, false]];
    let plan = Plan { racks: 4, nodes: 6, rails: 4, spines: 3, uplinks, lacking: true };
    let mut want = plan.record();
    let folder = std::env::temp_dir().join(format!("rowen-ibsim-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let net = folder.join("net");
    std::fs::write(&net, Cables::of(&want).ibsim()).unwrap();
    let name = format!("rowen-{}", std::process::id());
    let server = Guard(
        Command::new("ibsim")
            .arg("-s")
            .arg(&net)
            .env("IBSIM_SOCKNAME", &name)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let dump = discover(preload, &name);
    drop(server);
    std::fs::remove_dir_all(&folder).unwrap();
    let imported = import(Format::Ibnetdiscover, &dump, &options()).unwrap();
    let got = imported.inventory.expand().unwrap();
    // ibsim's HCAs have no device number; the model came from the caller.
    want.nodes.iter_mut().for_each(|node| node.nic_model = got.nodes[0].nic_model.clone());
    assert_eq!(got, want);
    assert_eq!(FlatIndex::build(&got).unwrap(), FlatIndex::build(&want).unwrap());
    println!(
        "ok: {} nodes, {} leafs, {} spines, {} cables went through ibsim and ibnetdiscover",
        got.nodes.len(),
        got.leafs.len(),
        got.spines.len(),
        Cables::of(&want).list.len()
    );
}

/// What `ibnetdiscover` prints, once the server answers.
fn discover(preload: &PathBuf, name: &str) -> String {
    let mut last = String::new();
    for _ in 0..50 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let output = Command::new("ibnetdiscover")
            .env("LD_PRELOAD", preload)
            .env("IBSIM_SOCKNAME", name)
            .env("SIM_HOST", "r000-n01 mlx5_0")
            .output()
            .unwrap();
        if output.status.success() {
            return String::from_utf8(output.stdout).unwrap();
        }
        last = String::from_utf8_lossy(&output.stderr).into_owned();
    }
    panic!("ibnetdiscover never reached ibsim: {last}");
}

fn known(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// Ends the server whatever happens.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
