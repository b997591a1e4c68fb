//! The shim's socket: whoever connects hears the status and may order a stop.
//!
//! Owns the connections and their lines. The agent binds the socket and hands
//! it over as standard input, so that it can connect before the shim is up.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use nix::sys::socket::{getsockopt, sockopt};

use crate::spec::{self, Status, StopLine};

/// A line longer than this is no stop.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Connections at a time.
const CLIENTS_MAX: usize = 16;

struct Client {
    stream: UnixStream,
    read: Vec<u8>,
}

pub(super) struct Clients {
    listener: UnixListener,
    clients: Vec<Client>,
    /// The last status, a line, for who comes later.
    status: Vec<u8>,
}

impl Clients {
    /// Takes over standard input where it is a listening socket, and binds one
    /// in the current folder where a person started the shim.
    pub(super) fn from_stdin() -> io::Result<Self> {
        let stdin = io::stdin();
        let listener = if getsockopt(&stdin.as_fd(), sockopt::AcceptConn).unwrap_or(false) {
            UnixListener::from(stdin.as_fd().try_clone_to_owned()?)
        } else {
            let _ = fs::remove_file(spec::SOCKET);
            UnixListener::bind(spec::SOCKET)?
        };
        listener.set_nonblocking(true)?;
        Ok(Clients { listener, clients: Vec::new(), status: Vec::new() })
    }

    /// To wait on.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let streams = self.clients.iter().map(|client| client.stream.as_fd());
        [self.listener.as_fd()].into_iter().chain(streams)
    }

    /// Takes in connections and returns the stops they ordered.
    pub(super) fn serve(&mut self) -> Vec<StopLine> {
        while let Ok((stream, _)) = self.listener.accept() {
            let mut client = Client { stream, read: Vec::new() };
            let usable = client.stream.set_nonblocking(true).is_ok();
            if usable && self.clients.len() < CLIENTS_MAX && client.send(&self.status) {
                self.clients.push(client);
            }
        }
        let mut stops = Vec::new();
        self.clients.retain_mut(|client| client.receive(&mut stops));
        stops
    }

    /// Tells everybody.
    pub(super) fn push(&mut self, status: &Status) {
        let Ok(mut line) = serde_json::to_vec(status) else { return };
        line.push(b'\n');
        self.clients.retain_mut(|client| client.send(&line));
        self.status = line;
    }
}

impl Client {
    /// False when it is gone, or so slow that its buffer is full.
    fn send(&mut self, line: &[u8]) -> bool {
        self.stream.write_all(line).is_ok()
    }

    /// False when it is gone.
    fn receive(&mut self, stops: &mut Vec<StopLine>) -> bool {
        let mut buffer = [0; 4096];
        let open = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break false,
                Ok(length) => self.read.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break error.kind() == ErrorKind::WouldBlock,
            }
            if self.read.len() > LINE_BYTES_MAX {
                return false;
            }
        };
        while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.read.drain(..=end).collect();
            stops.extend(serde_json::from_slice::<StopLine>(&line).ok());
        }
        open
    }
}
