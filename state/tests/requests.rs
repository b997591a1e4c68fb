//! Exactly once: the table of answers, and the bounds that refuse with `Exhausted`.

use rowen_state::{
    Cluster, Code, Command, Entry, FillerSpec, JobId, JobSpec, Refusal, Reply, RequestId, Resources,
};

fn job(name: &str) -> JobSpec {
    JobSpec {
        name: name.into(),
        tenant: "lab".into(),
        queue: "main".into(),
        priority: 1,
        workers: 1,
        processes_per_worker: 1,
        resources: Resources { gpus: 1, ..Resources::default() },
        required: None,
        preferred: None,
        command: vec!["train".into()],
        env: Default::default(),
        working_dir: String::new(),
        time_limit_ms: 0,
        notice_ms: 0,
        restarts: 0,
        checkpoint_interval_ms: 0,
        shape: Default::default(),
    }
}

fn ask(cluster: &mut Cluster, client: &str, seq: u64, command: Command) -> Result<Reply, Refusal> {
    let request = Some(RequestId { client: client.into(), seq });
    let at_ms = cluster.now_ms().max(1_000_000) + 10;
    let entry = Entry { at_ms, principal: "test".into(), request, command };
    cluster.apply(cluster.applied() + 1, &entry).answer.expect("an answer")
}

fn submit(cluster: &mut Cluster, client: &str, seq: u64) -> Result<Reply, Refusal> {
    ask(cluster, client, seq, Command::SubmitJob(job("gang")))
}

fn code(answer: Result<Reply, Refusal>) -> Option<Code> {
    answer.err().map(|refusal| refusal.code)
}

#[test]
fn a_retry_gets_the_same_answer_and_does_not_run_again() {
    let mut cluster = Cluster::default();
    assert_eq!(submit(&mut cluster, "a", 1), Ok(Reply::Job(JobId(1))));
    let hash_of_jobs: Vec<_> = cluster.jobs().values().cloned().collect();
    assert_eq!(submit(&mut cluster, "a", 1), Ok(Reply::Job(JobId(1))));
    assert_eq!(cluster.jobs().values().cloned().collect::<Vec<_>>(), hash_of_jobs);
    // Another client's number 1 is another request.
    assert_eq!(submit(&mut cluster, "b", 1), Ok(Reply::Job(JobId(2))));
}

#[test]
fn a_refusal_is_remembered_too() {
    let mut cluster = Cluster::default();
    let cancel = Command::CancelJob(JobId(1));
    let refused = ask(&mut cluster, "a", 1, cancel.clone());
    assert_eq!(code(refused.clone()), Some(Code::NotFound));
    submit(&mut cluster, "b", 1).unwrap();
    assert_eq!(ask(&mut cluster, "a", 1, cancel), refused, "now there is a job 1, still the same");
}

#[test]
fn concurrent_requests_of_one_client_may_come_in_any_order() {
    let mut cluster = Cluster::default();
    for seq in [1, 4, 2, 5, 3] {
        submit(&mut cluster, "a", seq).unwrap();
    }
    assert_eq!(cluster.jobs().len(), 5);
    assert_eq!(submit(&mut cluster, "a", 2), Ok(Reply::Job(JobId(3))));
    assert_eq!(cluster.jobs().len(), 5);
}

#[test]
fn one_too_old_is_expired_and_never_runs_twice() {
    let mut cluster = Cluster::default();
    for seq in 1..=65 {
        submit(&mut cluster, "a", seq).unwrap();
    }
    assert_eq!(code(submit(&mut cluster, "a", 1)), Some(Code::Expired));
    assert_eq!(submit(&mut cluster, "a", 2), Ok(Reply::Job(JobId(2))), "64 answers are kept");
    assert_eq!(cluster.jobs().len(), 65);
    // 67 to 131 overtook number 66: it may have been forgotten, so it is not run.
    for seq in 67..=131 {
        submit(&mut cluster, "a", seq).unwrap();
    }
    assert_eq!(code(submit(&mut cluster, "a", 66)), Some(Code::Expired));
    assert_eq!(cluster.jobs().len(), 130);
}

/// A client nobody knows may have been forgotten, unless it says that it begins.
#[test]
fn an_unknown_client_begins_with_one() {
    let mut cluster = Cluster::default();
    assert_eq!(code(submit(&mut cluster, "a", 2)), Some(Code::Expired));
    assert!(cluster.jobs().is_empty());
    submit(&mut cluster, "a", 1).unwrap();
    submit(&mut cluster, "a", 2).unwrap();
    assert_eq!(cluster.jobs().len(), 2);
}

#[test]
fn the_table_survives_a_snapshot() {
    let mut cluster = Cluster::default();
    for seq in 1..=68 {
        submit(&mut cluster, "a", seq).unwrap();
    }
    let mut restored = Cluster::from_snapshot(&cluster.to_snapshot().unwrap()).unwrap();
    for (seq, answer) in [(3, None), (5, Some(5)), (20, Some(20))] {
        let expected = cluster.clone();
        let answered = submit(&mut restored, "a", seq);
        assert_eq!(answered, submit(&mut cluster, "a", seq));
        assert_eq!(answered.ok(), answer.map(|id| Reply::Job(JobId(id))));
        assert!(expected.jobs().iter().eq(restored.jobs().iter()));
        assert_eq!(restored.state_hash(), cluster.state_hash());
    }
}

#[test]
fn no_more_fillers_than_the_bound() {
    let mut cluster = Cluster::default();
    let mut deploy = |number: u64| {
        let spec = FillerSpec {
            name: format!("filler-{number}"),
            tenant: "lab".into(),
            model: "m".into(),
            resources: Resources { gpus: 1, ..Resources::default() },
            min_instances: 0,
            max_instances: 1,
            value_micros: 0,
            warm_up_ms: 0,
            notice_ms: 0,
            withdraw_ms: 0,
            readiness: None,
            command: vec!["serve".into()],
            env: Default::default(),
            working_dir: String::new(),
        };
        ask(&mut cluster, &number.to_string(), 1, Command::DeployFiller(spec))
    };
    for number in 1..=4_096 {
        deploy(number).unwrap();
    }
    assert_eq!(code(deploy(4_097)), Some(Code::Exhausted));
    assert!(deploy(4_096).is_ok(), "one that is there may change");
    assert_eq!(cluster.fillers().len(), 4_096);
}

/// The archive has the ended jobs that the state forgets, oldest first.
#[test]
fn ended_jobs_leave_the_state_beyond_the_bound() {
    let mut cluster = Cluster::default();
    for number in 1..=10_003 {
        submit(&mut cluster, &format!("s{number}"), 1).unwrap();
        ask(&mut cluster, &format!("c{number}"), 1, Command::CancelJob(JobId(number))).unwrap();
    }
    assert_eq!(cluster.jobs().len(), 10_000);
    assert_eq!(cluster.jobs().iter().next().map(|(id, _)| id), Some(JobId(4)));
    assert_eq!(cluster.verify(), []);
}
