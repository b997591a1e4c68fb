//! A ring all-reduce over TCP, built from nothing but RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
//!
//! Rank 0 listens on MASTER_PORT; every rank tells it where it listens itself and gets the table
//! of all; then each connects to its right neighbour. Never reads anything of Rowen's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

/// How long ranks wait for each other.
const RENDEZVOUS: Duration = Duration::from_secs(60);

/// Where a rank stands; all of it comes from its environment.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) rank: u32,
    pub(crate) world: u32,
    pub(crate) master: String,
    pub(crate) port: u16,
}

impl Place {
    pub(crate) fn from_env() -> Result<Place> {
        Ok(Place {
            rank: variable("RANK")?.parse().context("RANK is no number")?,
            world: variable("WORLD_SIZE")?.parse().context("WORLD_SIZE is no number")?,
            master: variable("MASTER_ADDR")?,
            port: variable("MASTER_PORT")?.parse().context("MASTER_PORT is no port")?,
        })
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}

/// The two connections of a rank. A world of one has none.
pub(crate) struct Ring {
    place: Place,
    neighbours: Option<(TcpStream, TcpStream)>,
}

impl Ring {
    /// Meets the other ranks.
    pub(crate) async fn join(place: Place) -> Result<Ring> {
        if place.world == 1 {
            return Ok(Ring { place, neighbours: None });
        }
        timeout(RENDEZVOUS, join(place)).await.context("the ranks did not meet within 60 s")?
    }

    /// Replaces each element by its sum over all ranks: reduce-scatter, then all-gather.
    pub(crate) async fn all_reduce(&mut self, vector: &mut [u64]) -> Result<()> {
        let world = self.place.world as usize;
        let rank = self.place.rank as usize;
        let Some((left, right)) = &mut self.neighbours else { return Ok(()) };
        let bounds = |chunk: usize| {
            let chunk = chunk % world;
            vector_part(vector.len(), world, chunk)..vector_part(vector.len(), world, chunk + 1)
        };
        let parts: Vec<_> = (0..world).map(bounds).collect();
        for step in 0..world - 1 {
            let (send, take) =
                ((rank + world - step) % world, (rank + 2 * world - step - 1) % world);
            let sent = &vector[parts[send].clone()];
            let received = exchange(left, right, sent, parts[take].len()).await?;
            for (mine, theirs) in vector[parts[take].clone()].iter_mut().zip(received) {
                *mine = mine.wrapping_add(theirs);
            }
        }
        for step in 0..world - 1 {
            let (send, take) = ((rank + 1 + world - step) % world, (rank + world - step) % world);
            let sent = &vector[parts[send].clone()];
            let received = exchange(left, right, sent, parts[take].len()).await?;
            vector[parts[take].clone()].copy_from_slice(&received);
        }
        Ok(())
    }
}

fn vector_part(length: usize, parts: usize, part: usize) -> usize {
    length * part / parts
}

// Both directions at once: with large chunks a ring that first sends and then reads stands still.
async fn exchange(
    left: &mut TcpStream,
    right: &mut TcpStream,
    send: &[u64],
    take: usize,
) -> Result<Vec<u64>> {
    let bytes: Vec<u8> = send.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut buffer = vec![0u8; take * 8];
    tokio::try_join!(right.write_all(&bytes), left.read_exact(&mut buffer))?;
    let (values, _) = buffer.as_chunks::<8>();
    Ok(values.iter().map(|value| u64::from_le_bytes(*value)).collect())
}

async fn join(place: Place) -> Result<Ring> {
    let mine = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let port = mine.local_addr()?.port();
    let table =
        if place.rank == 0 { host(&place, port).await? } else { register(&place, port).await? };
    let next = (place.rank + 1) % place.world;
    let (right, left) = tokio::try_join!(
        async {
            let mut right = TcpStream::connect(table[next as usize]).await?;
            right.write_u32(place.rank).await?;
            anyhow::Ok(right)
        },
        async {
            let (mut left, _) = mine.accept().await?;
            let rank = left.read_u32().await?;
            ensure!((rank + 1) % place.world == place.rank, "rank {rank} is not my left neighbour");
            Ok(left)
        }
    )?;
    left.set_nodelay(true)?;
    right.set_nodelay(true)?;
    Ok(Ring { place, neighbours: Some((left, right)) })
}

// Rank 0: waits for all, then tells all.
async fn host(place: &Place, my_port: u16) -> Result<Vec<SocketAddr>> {
    let listener = bind_patiently(place.port).await?;
    let mut guests: Vec<Option<(TcpStream, SocketAddr)>> = (0..place.world).map(|_| None).collect();
    for _ in 1..place.world {
        let (mut guest, from) = listener.accept().await?;
        let (rank, port) = (guest.read_u32().await?, guest.read_u16().await?);
        let seat = guests.get_mut(rank as usize).with_context(|| format!("no rank {rank} here"))?;
        ensure!(seat.is_none() && rank != 0, "two processes say that they are rank {rank}");
        *seat = Some((guest, SocketAddr::new(from.ip(), port)));
    }
    // Rank 0 is where its guests reached it.
    let my_ip = match guests.iter().flatten().next() {
        Some((guest, _)) => guest.local_addr()?.ip(),
        None => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let table: Vec<SocketAddr> = guests
        .iter()
        .map(|guest| guest.as_ref().map_or(SocketAddr::new(my_ip, my_port), |(_, addr)| *addr))
        .collect();
    let text = table.iter().map(|addr| format!("{addr}\n")).collect::<String>();
    for (guest, _) in guests.iter_mut().flatten() {
        guest.write_all(text.as_bytes()).await?;
        guest.shutdown().await?;
    }
    Ok(table)
}

async fn register(place: &Place, my_port: u16) -> Result<Vec<SocketAddr>> {
    let mut master = loop {
        // Rank 0 may not be up yet.
        match TcpStream::connect((place.master.as_str(), place.port)).await {
            Ok(stream) => break stream,
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    };
    master.write_u32(place.rank).await?;
    master.write_u16(my_port).await?;
    let mut text = String::new();
    master.read_to_string(&mut text).await?;
    let table: Vec<SocketAddr> =
        text.lines().map(str::parse).collect::<Result<_, _>>().context("rank 0 sent nonsense")?;
    ensure!(table.len() == place.world as usize, "rank 0 ended before all ranks were there");
    Ok(table)
}

// The agent lets go of the reserved port only just before.
async fn bind_patiently(port: u16) -> Result<TcpListener> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("cannot listen on MASTER_PORT {port}"));
            }
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sums(world: u32, length: usize) -> Vec<Vec<u64>> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ranks = (0..world).map(|rank| async move {
            let place = Place { rank, world, master: "127.0.0.1".into(), port };
            let mut ring = Ring::join(place).await.unwrap();
            let mut vector: Vec<u64> =
                (0..length as u64).map(|i| i * 100 + u64::from(rank)).collect();
            ring.all_reduce(&mut vector).await.unwrap();
            vector
        });
        futures::future::join_all(ranks).await
    }

    #[tokio::test]
    async fn sums_are_exact_for_any_world_and_length() {
        for (world, length) in [(1, 5), (2, 1), (2, 7), (3, 1000), (5, 3), (8, 100_000)] {
            let n = u64::from(world);
            for vector in sums(world, length).await {
                assert_eq!(vector.len(), length);
                for (i, value) in vector.into_iter().enumerate() {
                    assert_eq!(value, n * (i as u64) * 100 + n * (n - 1) / 2, "world {world}");
                }
            }
        }
    }
}
