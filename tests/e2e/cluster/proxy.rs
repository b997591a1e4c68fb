//! A link that a test can cut, each way by itself, as a network does: nothing is closed, bytes
//! that are under way wait until it is mended.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Which ways are cut.
#[derive(Default)]
struct Cut {
    to_server: AtomicBool,
    to_agent: AtomicBool,
}

/// Forwards to one replica until the test's process ends.
pub(super) struct Proxy {
    pub(super) addr: String,
    cut: Arc<Cut>,
}

impl Proxy {
    pub(super) fn start(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let cut = Arc::new(Cut::default());
        let (kept, server) = (cut.clone(), server.to_owned());
        thread::spawn(move || {
            for agent in listener.incoming().map_while(Result::ok) {
                let (cut, server) = (kept.clone(), server.clone());
                thread::spawn(move || forward(agent, &server, &cut));
            }
        });
        Proxy { addr, cut }
    }

    /// Cuts or mends what the agent sends, and what it is sent.
    pub(super) fn cut(&self, to_server: bool, to_agent: bool) {
        self.cut.to_server.store(to_server, Ordering::SeqCst);
        self.cut.to_agent.store(to_agent, Ordering::SeqCst);
    }
}

fn forward(agent: TcpStream, server: &str, cut: &Arc<Cut>) {
    let Ok(server) = TcpStream::connect(server) else { return };
    let (from, to, flags) = (agent.try_clone().unwrap(), server.try_clone().unwrap(), cut.clone());
    thread::spawn(move || copy(from, to, &flags.to_server));
    copy(server, agent, &cut.to_agent);
}

fn copy(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut bytes).unwrap_or(0);
        // Also the end of the connection does not get through.
        while cut.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        if length == 0 || to.write_all(&bytes[..length]).is_err() {
            let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
            return;
        }
    }
}
