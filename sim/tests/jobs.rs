//! Traces played on the production core: small enough to work out by hand, and one that is not.

use rowen_sim::{Options, Pace, Report, filler, read_jobs, run_jobs};

/// Everything but what the trace says takes no time, and every entry is verified.
const EXACT: Pace =
    Pace { launch_ms: 0, stop_ms: u64::MAX >> 1, plan_ms: 0, tick_ms: 60_000, verify_every: 1 };

fn play(csv: &str, options: &Options) -> Report {
    let trace = read_jobs(csv).expect("the trace of a test");
    let report = run_jobs(&trace, options);
    assert_eq!(report.failures, Vec::<String>::new());
    report
}

/// Each wanted figure, by name.
fn check(csv: &str, options: &Options, wanted: &[(&str, f64)]) {
    let report = play(csv, options);
    for (name, value) in wanted {
        assert_eq!(report.value(name), Some(*value), "{name} of {}", report.json());
    }
}

fn exact(nodes: u32, gpus: u32) -> Options {
    Options { pace: EXACT, ..Options::new(nodes, gpus).expect("a fabric") }
}

#[test]
fn two_gangs_that_need_everything_run_one_after_the_other() {
    let csv = "job_id,submission_time,duration,num_gpu\na,100,50,16\nb,100,30,16\n";
    check(
        csv,
        &exact(2, 8),
        &[
            ("jobs", 2.0),
            ("queueing_delay_mean", 25.0),
            ("queueing_delay_p99", 50.0),
            ("jct_mean", 65.0),
            ("jct_p99", 80.0),
            ("makespan", 80.0),
            ("gang_share", 100.0),
            ("utilisation", 100.0),
            ("filler_share", 0.0),
            ("evictions", 0.0),
        ],
    );
}

#[test]
fn gangs_of_odd_sizes_are_split_into_equal_workers() {
    // 12 = 2 × 6 on nodes of 8; 7 on one node; 17 is prime and needs 17 nodes.
    let csv = "job_id,submission_time,duration,num_gpu\na,0,10,12\nb,20,10,7\nc,40,10,17\n";
    check(csv, &exact(2, 8), &[("jobs", 2.0), ("jobs_too_large", 1.0), ("jct_mean", 10.0)]);
}

/// One GPU-hungry filler and a gang of everything at 100 s: the fillers have it until then, get
/// their whole notice of 20 s, and come back when the gang has ended at 170 s.
#[test]
fn a_gang_waits_for_fillers_exactly_as_long_as_their_notice() {
    let csv = "job_id,submission_time,duration,num_gpu\nfirst,0,1,1\ngang,100,50,16\n";
    let options = Options { filler: Some(filler(20_000)), ..exact(2, 8) };
    let report = play(csv, &options);
    assert_eq!(report.value("queueing_delay_p99"), Some(20.0), "{}", report.json());
    assert_eq!(report.value("makespan"), Some(170.0));
    assert_eq!(report.value("evictions"), Some(16.0));
    // 16 GPUs × 50 s and one GPU × 1 s of the 16 × 170 GPU-seconds are the gangs'.
    assert_eq!(report.value("gang_share"), Some(29.44));
    assert!(report.value("utilisation") > Some(99.0), "{}", report.json());
}

#[test]
fn fillers_raise_utilisation_and_every_gang_still_runs() {
    let csv = busy_trace(150);
    let without = play(&csv, &Options { pace: paced(7), ..Options::new(4, 8).unwrap() });
    let with =
        Options { filler: Some(filler(10_000)), pace: paced(7), ..Options::new(4, 8).unwrap() };
    let with = play(&csv, &with);
    assert_eq!(without.value("jobs"), Some(150.0));
    assert_eq!(with.value("jobs"), Some(150.0));
    assert!(with.value("utilisation") > without.value("utilisation"), "{}", with.json());
    assert!(with.value("evictions") > Some(0.0));
}

#[test]
fn the_same_trace_gives_the_same_report_byte_for_byte() {
    let options =
        Options { filler: Some(filler(30_000)), pace: paced(50), ..Options::new(4, 8).unwrap() };
    let csv = busy_trace(120);
    assert_eq!(play(&csv, &options).json(), play(&csv, &options).json());
}

#[test]
fn a_fabric_must_have_nodes_and_gpus() {
    let error = Options::new(0, 8).unwrap_err().to_string();
    assert_eq!(error, "nodes: is 0; choose 1 to 16384");
    assert_eq!(Options::new(4, 65).unwrap_err().to_string(), "gpus: is 65; choose 1 to 64");
}

fn paced(verify_every: u64) -> Pace {
    Pace { verify_every, ..Pace::default() }
}

/// Gangs of 1 to 32 GPUs, more than 4 nodes of 8 can run at once.
fn busy_trace(jobs: u64) -> String {
    let mut csv = String::from("job_id,submission_time,duration,num_gpu\n");
    for n in 0..jobs {
        let gpus = 1u64 << (n * n % 6);
        csv += &format!("j{n},{},{},{gpus}\n", n * 37, 60 + n * 131 % 900);
    }
    csv
}
