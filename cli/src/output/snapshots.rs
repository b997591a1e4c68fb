//! Each noun drawn from the samples, as text, wide and JSON: one file a picture in `snapshots/`.

use expect_test::expect_file;

use super::fabric::OccupancyView;
use super::filler::{FillerListView, FillerView};
use super::health::HealthView;
use super::job::{JobListView, JobSpecView, JobView};
use super::node::{NodeListView, NodeView};
use super::plan::{PlanView, WhyView};
use super::status::StatusView;
use super::whatif::WhatIfView;
use super::{fabric, filler, health, job, node, plan, samples, status, whatif};

/// Compares with `snapshots/NAME`; escape characters are written as `^`.
fn check(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/output/snapshots");
    expect_file![path.join(name)].assert_eq(&(text.replace('\x1b', "^") + "\n"));
}

fn check_json(name: &str, view: &impl serde::Serialize) {
    check(name, &serde_json::to_string_pretty(view).unwrap());
}

fn job_list() -> JobListView {
    JobListView { jobs: samples::jobs().iter().map(JobView::new).collect(), index: 42 }
}

fn node_list() -> NodeListView {
    NodeListView { nodes: samples::nodes().iter().map(NodeView::new).collect(), index: 42 }
}

fn filler_list() -> FillerListView {
    FillerListView { fillers: vec![FillerView::new(&samples::filler())], index: 42 }
}

#[test]
fn jobs() {
    let list = job_list();
    check("job-list.txt", &job::list(&list, samples::NOW_MS, false, false));
    check("job-list-wide.txt", &job::list(&list, samples::NOW_MS, true, false));
    check("job-list-colour.txt", &job::list(&list, samples::NOW_MS, false, true));
    check_json("job-list.json", &list);
    let empty = JobListView { jobs: vec![], index: 0 };
    assert_eq!(job::list(&empty, 0, true, true), "No jobs.");
}

#[test]
fn one_job() {
    for (at, name) in ["running", "queued", "failed"].into_iter().enumerate() {
        let view = JobView::new(&samples::jobs()[at]);
        check(&format!("job-show-{name}.txt"), &job::show(&view, samples::NOW_MS, false));
    }
}

#[test]
fn many_tasks_are_cut() {
    let mut job = samples::running_job();
    let task = job.tasks[0].clone();
    job.tasks = (0..100).map(|rank| rowen_api::v1::Task { rank, ..task.clone() }).collect();
    let text = job::show(&JobView::new(&job), samples::NOW_MS, false);
    assert!(text.contains("… and 36 more"), "{text}");
}

#[test]
fn plans() {
    let view = PlanView::new(&samples::plan(), JobSpecView::new(&samples::job_spec()));
    check("plan-evicts.txt", &plan::plan(&view, false, false));
    check("plan-evicts-wide.txt", &plan::plan(&view, true, false));
    check_json("plan-evicts.json", &view);
    let now = rowen_api::v1::PlanJobResponse {
        fits_now: true,
        victims: vec![],
        start_in_ms: 0,
        ..samples::plan()
    };
    let view = PlanView::new(&now, JobSpecView::new(&samples::job_spec()));
    check("plan-now.txt", &plan::plan(&view, false, false));
    let never = rowen_api::v1::PlanJobResponse {
        reason: "no block has 8 GPUs of model H100".into(),
        ..Default::default()
    };
    let view = PlanView::new(&never, JobSpecView::new(&samples::job_spec()));
    assert!(!view.fits());
    check("plan-not.txt", &plan::plan(&view, false, false));
}

#[test]
fn whys() {
    let view = WhyView::new(&samples::why());
    check("why.txt", &plan::why(&view, samples::NOW_MS, false));
    check_json("why.json", &view);
}

#[test]
fn what_ifs() {
    let view = WhatIfView::new(&samples::what_if());
    check("whatif.txt", &whatif::show(&view, false, false));
    check("whatif-wide.txt", &whatif::show(&view, true, false));
    check_json("whatif.json", &view);
    let nothing = WhatIfView::new(&Default::default());
    let text = whatif::show(&nothing, false, false);
    assert!(text.starts_with("No job starts, moves, waits or ends for it."), "{text}");
}

#[test]
fn faulty_parts() {
    let view = HealthView::new(&samples::health());
    check("fabric-health.txt", &health::show(&view, false));
    check_json("fabric-health.json", &view);
    let none = HealthView::new(&Default::default());
    assert_eq!(health::show(&none, false), "Nothing is known to be faulty.");
}

#[test]
fn nodes() {
    let list = node_list();
    check("node-list.txt", &node::list(&list, false, false));
    check("node-list-wide.txt", &node::list(&list, true, false));
    check_json("node-list.json", &list);
    check("node-show.txt", &node::show(&NodeView::new(&samples::one_node()), false));
}

#[test]
fn fillers() {
    let list = filler_list();
    check("filler-list.txt", &filler::list(&list, false, false));
    check("filler-list-wide.txt", &filler::list(&list, true, false));
    check_json("filler-list.json", &list);
    check("filler-show.txt", &filler::show(&list.fillers[0], samples::NOW_MS, false));
}

#[test]
fn cluster() {
    let view = StatusView::new(&samples::status());
    check("status.txt", &status::show(&view, false));
    check("status-colour.txt", &status::show(&view, true));
    check_json("status.json", &view);
    check("fabric-show.txt", &fabric::show(&samples::occupancy(), false));
    let view = OccupancyView::new(&samples::occupancy());
    assert_eq!(serde_json::to_value(&view).unwrap()["unix_ms"], samples::NOW_MS);
}

#[test]
fn yaml_reads_back_as_the_same() {
    let view = job_list();
    let yaml = serde_saphyr::to_string(&view).unwrap();
    let back: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(back, serde_json::to_value(&view).unwrap());
}
