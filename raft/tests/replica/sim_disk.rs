//! A whole replica on the simulated disk: power cuts lose nothing that was answered, a failed sync
//! stops it for good. (The archive is on the real one: it may be ahead of nothing, only behind.)

use std::{path::Path, sync::Arc, time::Duration};

use crate::common::{Keeper, config, member};
use rowen_raft::{OpenError, ProposeError, Replica, WalError, dial_tcp, sim_disk::SimDisk};

async fn open(disk: &SimDisk, dir: &Path) -> Result<(Replica, Keeper), OpenError> {
    let keeper = Keeper::default();
    let mut config = config(1, dir);
    (config.snapshot_every, config.keep_log, config.segment_bytes) = (40, 5, 4_096);
    let disk_handle = Arc::new(disk.process());
    let opened =
        Replica::open_on(config.clone(), keeper.clone(), disk_handle.clone(), dial_tcp()).await;
    let replica = match opened {
        Err(OpenError::Log(WalError::TornTail { .. })) => {
            config.accept_torn_tail = true;
            Replica::open_on(config, keeper.clone(), disk_handle, dial_tcp()).await?
        }
        opened => opened?,
    };
    if !replica.is_initialized().await.unwrap() {
        replica.initialize(vec![member(1, "127.0.0.1:1")]).await.unwrap();
    }
    let mut leadership = replica.leadership();
    let ready = leadership.wait_for(|leadership| leadership.ready);
    tokio::time::timeout(Duration::from_secs(60), ready).await.expect("ready in time").unwrap();
    Ok((replica, keeper))
}

#[tokio::test]
async fn power_cuts_lose_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(11);
    let mut answered: Vec<Vec<u8>> = Vec::new();
    for life in 0..25_u32 {
        let (replica, keeper) = open(&disk, dir.path()).await.unwrap();
        let held = keeper.entries();
        assert!(answered.iter().all(|entry| held.contains(entry)), "life {life}");
        assert_eq!(replica.archive().scan(b"entry/").unwrap().count(), held.len());
        disk.die_after(2 + u64::from(life * 7 % 60));
        let proposals = (0..60_u32).map(|number| {
            let (replica, entry) = (replica.clone(), format!("{life}-{number}").into_bytes());
            async move {
                tokio::time::sleep(Duration::from_millis(u64::from(number) % 7)).await;
                replica.propose(entry.clone()).await.map(|_| entry)
            }
        });
        answered.extend(futures::future::join_all(proposals).await.into_iter().flatten());
        if life % 3 == 0 {
            disk.kill_process()
        } else {
            disk.cut_power()
        }
        replica.shutdown().await;
    }
    println!("{} proposals answered over 25 lives", answered.len());
    assert!(answered.len() > 300 && answered.len() < 1_400, "some were cut off, some were not");
}

#[tokio::test]
async fn a_failed_sync_stops_the_replica_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(3);
    let (replica, _) = open(&disk, dir.path()).await.unwrap();
    replica.propose(b"kept".to_vec()).await.unwrap();
    assert!(replica.failed().borrow().is_none());

    disk.fail_syncs(true);
    let Err(ProposeError::Stopped(why)) = replica.propose(b"lost".to_vec()).await else {
        panic!("a proposal cannot succeed without a sync");
    };
    assert!(why.contains("cannot sync") && why.contains("simulated sync error"), "{why}");
    disk.fail_syncs(false);
    assert!(matches!(replica.propose(b"again".to_vec()).await, Err(ProposeError::Stopped(_))));
    assert!(matches!(replica.read_index().await, Err(ProposeError::Stopped(_))));
    let mut failed = replica.failed();
    let failed = tokio::time::timeout(Duration::from_secs(60), failed.wait_for(Option::is_some));
    let why = failed.await.expect("reported in time").unwrap().clone().unwrap();
    assert!(why.contains("cannot sync"), "{why}");
    assert!(!replica.leadership().borrow().ready, "a failed replica plans nothing");
    replica.shutdown().await;

    disk.cut_power();
    let (replica, keeper) = open(&disk, dir.path()).await.unwrap();
    assert!(keeper.entries().contains(&b"kept".to_vec()));
    replica.shutdown().await;
}
