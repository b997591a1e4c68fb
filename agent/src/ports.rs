//! Ports of this node that nobody else takes.
//!
//! Owns reserving (bound, not listening), handing over and taking back. Never
//! decides which gang gets which: the leader picks from those offered.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
};

use tokio::net::TcpSocket;

/// Reserved whatever the number of GPUs.
const PORTS_MIN: usize = 8;
/// Reservations start above this: what lies below is other services'.
const LOWEST: u16 = 20_000;

#[derive(Debug)]
pub(crate) struct Ports {
    addr: IpAddr,
    /// Ports may come from here: below the range of outgoing connections,
    /// which could take one between our letting go and the task's binding.
    range: (u16, u16),
    next: u16,
    /// Offered to the leader for rank 0 of gangs; `None` while it is not bound.
    offered: BTreeMap<u16, Option<TcpSocket>>,
    /// In use by tasks: offered ones, and those lent to instances.
    used: BTreeSet<u16>,
}

impl Ports {
    /// Reserves one a GPU, and at least eight.
    pub(crate) fn reserve(addr: &str, gpus: usize, seed: u64) -> io::Result<Self> {
        let range = (LOWEST, ephemeral_start().max(LOWEST + 1000) - 1);
        let span = u64::from(range.1 - range.0);
        let start = u16::try_from(seed % span).expect("less than the span of ports");
        let mut ports = Ports {
            addr: resolve(addr),
            range,
            next: range.0 + start,
            offered: BTreeMap::new(),
            used: BTreeSet::new(),
        };
        for _ in 0..gpus.max(PORTS_MIN) {
            let (port, socket) = ports.bind_any()?;
            ports.offered.insert(port, Some(socket));
        }
        Ok(ports)
    }

    /// What the leader may give to gangs.
    pub(crate) fn offered(&self) -> Vec<u32> {
        self.offered.keys().map(|port| u32::from(*port)).collect()
    }

    /// A task that was given `port` starts now and binds it itself.
    pub(crate) fn release(&mut self, port: u16) {
        if let Some(slot) = self.offered.get_mut(&port) {
            *slot = None;
            self.used.insert(port);
        }
    }

    /// A port for an instance that starts now.
    pub(crate) fn lend(&mut self) -> io::Result<u16> {
        let (port, _socket) = self.bind_any()?;
        self.used.insert(port);
        Ok(port)
    }

    /// A port an adopted instance serves on.
    pub(crate) fn adopt(&mut self, port: u16) {
        self.used.insert(port);
    }

    /// Its task has exited.
    pub(crate) fn take_back(&mut self, port: u16) {
        self.used.remove(&port);
        self.retake();
    }

    /// Binds what nobody uses any more. A port may stay busy for a minute after
    /// its task (TIME_WAIT), so this is tried again now and then.
    pub(crate) fn retake(&mut self) {
        let idle = self.offered.iter_mut().filter(|(port, _)| !self.used.contains(port));
        for (port, slot) in idle.filter(|(_, slot)| slot.is_none()) {
            *slot = bind(SocketAddr::new(self.addr, *port)).ok();
        }
    }

    fn bind_any(&mut self) -> io::Result<(u16, TcpSocket)> {
        for _ in self.range.0..=self.range.1 {
            let port = self.next;
            self.next = if port >= self.range.1 { self.range.0 } else { port + 1 };
            if self.used.contains(&port) || self.offered.contains_key(&port) {
                continue;
            }
            match bind(SocketAddr::new(self.addr, port)) {
                Ok(socket) => return Ok((port, socket)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!("no free port from {} to {}", self.range.0, self.range.1)))
    }
}

/// Without SO_REUSEADDR: a second agent on this machine must not get it too.
fn bind(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(addr)?;
    Ok(socket)
}

/// The address to bind on: the agent's own, or any where it cannot be bound
/// (a name of a load balancer, an address behind NAT).
fn resolve(addr: &str) -> IpAddr {
    let found = (addr, 0).to_socket_addrs().ok().and_then(|mut addrs| addrs.next());
    let own = found.map(|addr| addr.ip()).filter(|ip| bind(SocketAddr::new(*ip, 0)).is_ok());
    own.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

fn ephemeral_start() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|start| start.parse().ok()).unwrap_or(32_768)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_has_one_owner() {
        let mut ports = Ports::reserve("127.0.0.1", 3, 7).unwrap();
        let other = Ports::reserve("127.0.0.1", 3, 7).unwrap();
        let offered = ports.offered();
        assert_eq!(offered.len(), PORTS_MIN);
        assert!(other.offered().iter().all(|port| !offered.contains(port)));
        let port = u16::try_from(offered[0]).unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        std::net::TcpListener::bind(addr).unwrap_err();
        ports.release(port);
        let task = std::net::TcpListener::bind(addr).unwrap();
        ports.retake();
        assert!(ports.offered[&port].is_none());
        drop(task);
        ports.take_back(port);
        std::net::TcpListener::bind(addr).unwrap_err();
        let lent = [ports.lend().unwrap(), ports.lend().unwrap()];
        assert!(lent[0] != lent[1] && !offered.contains(&u32::from(lent[0])));
    }
}
