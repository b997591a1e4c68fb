//! The checker checked: small histories of known verdict, every order of tiny ones
//! tried by hand, and large ones of which one answer was changed.

use proptest::prelude::*;
use rowen_state::{Code, Duty, FillerId, FillerState, JobId, JobState, NodeId};

use super::{model, partition::Part, search, *};
use crate::{
    history::{Answer, Op},
    rng::Rng,
};

const JOB: JobId = JobId(1);
const NODE: NodeId = NodeId(1);

fn submit() -> Op {
    Op::Submit { name: "a".into() }
}

fn cancel() -> Op {
    Op::Cancel { job: JOB }
}

fn look() -> Op {
    Op::ReadJob { job: JOB }
}

fn job(state: JobState, attempt: u32) -> Answer {
    Answer::SeenJob { name: "a".into(), state, attempt }
}

/// (call, return, op, answer); return 0: never answered.
type Line = (u64, u64, Op, Answer);

fn history(lines: &[Line]) -> History {
    let operations = lines.iter().map(|(call_ms, return_ms, op, answer)| Operation {
        client: 0,
        op: op.clone(),
        call_ms: *call_ms,
        return_ms: (*return_ms > 0).then_some(*return_ms),
        result: (*return_ms > 0).then(|| answer.clone()),
        index: None,
    });
    History { operations: operations.collect() }
}

fn verdict(lines: &[Line]) -> Verdict {
    check(&history(lines), BUDGET).0
}

fn good(lines: &[Line]) {
    assert_eq!(verdict(lines), Verdict::Ok);
}

/// Gives the window's operations by their call times.
fn bad(lines: &[Line]) -> Vec<u64> {
    match verdict(lines) {
        Verdict::Violation(violation) => violation.window.iter().map(|o| o.call_ms).collect(),
        other => panic!("{other:?} of {lines:?}"),
    }
}

#[test]
fn a_job_is_cancelled_for_good() {
    let queued = || job(JobState::Queued, 0);
    let submitted = (1, 5, submit(), Answer::Job(JOB));
    good(&[submitted.clone(), (6, 7, look(), queued()), (8, 9, cancel(), Answer::Done)]);
    // While the cancel is under way, either may be seen.
    let cancelled = (8, 20, cancel(), Answer::Done);
    let ended = || job(JobState::Cancelled, 0);
    let both = [submitted.clone(), cancelled, (9, 10, look(), queued()), (11, 12, look(), ended())];
    good(&both);
    // But not one after the other, nor a queued job after the cancel's answer.
    let [a, b, c, d] = both;
    assert_eq!(bad(&[a, b, (13, 14, look(), c.3), d]), [1, 8, 11, 13]);
    let late = [submitted, (8, 9, cancel(), Answer::Done), (6, 7, look(), queued())];
    let mut late = late.to_vec();
    late.push((10, 11, look(), queued()));
    assert_eq!(bad(&late), [1, 8, 10], "the read at 6 plays no part");
}

#[test]
fn what_was_never_answered_may_happen_at_any_time_or_never() {
    let submitted = (1, 5, submit(), Answer::Job(JOB));
    let open = (6, 0, cancel(), Answer::Done);
    let seen = |at: u64, state| (at, at + 1, look(), job(state, 1));
    good(&[submitted.clone(), open.clone(), seen(10, JobState::Running)]);
    good(&[
        submitted.clone(),
        open.clone(),
        seen(10, JobState::Running),
        seen(90, JobState::Cancelled),
    ]);
    assert_eq!(bad(&[submitted.clone(), seen(10, JobState::Cancelled)]), [1, 10], "by nobody");
    // An unanswered submission that a read has seen took place.
    good(&[(1, 0, submit(), Answer::Done), seen(10, JobState::Running)]);
    assert_eq!(bad(&[(20, 0, submit(), Answer::Done), seen(10, JobState::Running)]), [10]);
    // One that nobody saw is in no part.
    let (verdict, stats) = check(&history(&[(1, 0, submit(), Answer::Done)]), BUDGET);
    assert_eq!((verdict, stats.parts, stats.unseen), (Verdict::Ok, 0, 1));
}

#[test]
fn ended_is_ended_and_attempts_only_rise() {
    let submitted = (1, 2, submit(), Answer::Job(JOB));
    let seen = |at: u64, state, attempt| (at, at + 1, look(), job(state, attempt));
    let run = [
        submitted,
        seen(5, JobState::Queued, 0),
        seen(10, JobState::Running, 1),
        seen(15, JobState::Holding, 1),
        seen(20, JobState::Starting, 2),
        seen(25, JobState::Completed, 2),
    ];
    good(&run);
    for stale in [seen(30, JobState::Running, 2), seen(30, JobState::Failed, 2)] {
        bad(&[run.to_vec(), vec![stale]].concat());
    }
    let mut back = run[..5].to_vec();
    back.push(seen(23, JobState::Running, 1));
    assert_eq!(bad(&back), [1, 15, 23]);
    let twice =
        [run[0].clone(), seen(5, JobState::Queued, 0), (9, 9, submit(), Answer::Job(JobId(2)))];
    assert_eq!(bad(&twice), [1, 9], "one name, two jobs");
    let refused = (30, 31, cancel(), Answer::Refused(Code::Conflict));
    good(&[run.to_vec(), vec![refused.clone()]].concat());
    bad(&[run[..1].to_vec(), vec![refused], vec![seen(40, JobState::Running, 1)]].concat());
}

#[test]
fn a_node_is_what_was_last_asked_of_it() {
    let read = |at: u64, duty| (at, at + 1, Op::ReadNode { node: NODE }, Answer::SeenNode { duty });
    let drain = (5, 6, Op::Drain { node: NODE }, Answer::Done);
    let undrain = (5, 9, Op::Undrain { node: NODE }, Answer::Done);
    good(&[read(1, Duty::InService), drain.clone(), read(7, Duty::Draining)]);
    good(&[drain.clone(), undrain.clone(), read(20, Duty::Draining)]);
    good(&[drain.clone(), undrain.clone(), read(20, Duty::InService)]);
    assert_eq!(bad(&[drain.clone(), read(7, Duty::InService)]), [5, 7]);
    let both = [read(20, Duty::Draining), read(30, Duty::InService)];
    assert_eq!(bad(&[vec![drain, undrain], both.to_vec()].concat()), [5, 5, 20, 30]);
}

#[test]
fn a_gpu_never_goes_back_to_an_older_owner() {
    let read = |at: u64, index: Option<u64>| {
        let epoch = index.map(|index| (1, index));
        (at, at + 1, Op::ReadGpu { node: NODE, gpu: 3 }, Answer::SeenGpu { epoch })
    };
    good(&[read(1, None), read(3, Some(10)), read(5, Some(10)), read(7, None), read(9, Some(12))]);
    assert_eq!(bad(&[read(1, Some(10)), read(5, Some(8))]), [1, 5]);
    assert_eq!(bad(&[read(1, Some(10)), read(5, None), read(7, Some(10))]), [1, 5, 7]);
}

#[test]
fn a_filler_comes_and_goes_by_name() {
    let deploy =
        |at: u64, id| (at, at + 1, Op::Deploy { name: "f".into() }, Answer::Filler(FillerId(id)));
    let remove =
        |at: u64, id| (at, at + 1, Op::RemoveFiller { filler: FillerId(id) }, Answer::Done);
    let nothing = |at: u64| (at, at + 1, Op::ReadFiller { name: "f".into() }, Answer::Nothing);
    let seen = |at: u64, id, state| {
        (
            at,
            at + 1,
            Op::ReadFiller { name: "f".into() },
            Answer::SeenFiller { filler: FillerId(id), state },
        )
    };
    good(&[
        nothing(1),
        deploy(3, 4),
        deploy(5, 4),
        remove(7, 4),
        seen(9, 4, FillerState::Removing),
        nothing(11),
        deploy(13, 6),
        seen(15, 6, FillerState::Active),
    ]);
    assert_eq!(bad(&[deploy(3, 4), nothing(5)]), [3, 5]);
    assert_eq!(bad(&[deploy(3, 4), deploy(5, 6)]), [3, 5], "a name has one filler at a time");
    bad(&[deploy(3, 4), remove(5, 4), nothing(7), deploy(9, 3)]);
    let open = (1, 0, Op::Deploy { name: "f".into() }, Answer::Done);
    good(&[nothing(3), open.clone(), seen(5, 9, FillerState::Active)]);
    bad(&[nothing(3), open, seen(5, 9, FillerState::Active), nothing(7)]);
}

#[test]
fn indices_follow_time_and_reads_see_what_is_below_them() {
    let node = |call_ms, return_ms, op, result, index| Operation {
        client: 0,
        op,
        call_ms,
        return_ms: Some(return_ms),
        result: Some(result),
        index: Some(index),
    };
    let read = Op::ReadNode { node: NODE };
    let drain = node(5, 20, Op::Drain { node: NODE }, Answer::Done, 7);
    let before = Answer::SeenNode { duty: Duty::InService };
    let check = |operations: Vec<Operation>| check(&History { operations }, BUDGET).0;
    assert_eq!(
        check(vec![drain.clone(), node(6, 8, read.clone(), before.clone(), 6)]),
        Verdict::Ok
    );
    let stated = check(vec![drain.clone(), node(6, 8, read.clone(), before.clone(), 7)]);
    assert!(matches!(stated, Verdict::Violation(_)), "it says that it has seen 7");
    let other = Op::ReadNode { node: NodeId(2) };
    match check(vec![drain, node(21, 22, other, before, 6)]) {
        Verdict::Violation(violation) => assert_eq!(violation.part, "log"),
        verdict => panic!("{verdict:?}: a read after the answer is at an older index"),
    }
}

#[test]
fn a_spent_budget_is_no_pass() {
    let mut lines: Vec<Line> = vec![(1, 100, Op::Drain { node: NODE }, Answer::Done)];
    lines.extend((2..10).map(|at| (at, 100, Op::Undrain { node: NODE }, Answer::Done)));
    let duty = Duty::Cordoned;
    lines.push((200, 201, Op::ReadNode { node: NODE }, Answer::SeenNode { duty }));
    assert!(matches!(verdict(&lines), Verdict::Violation(_)));
    let (verdict, stats) = check(&history(&lines), 100);
    assert_eq!(verdict, Verdict::Unknown { part: "node 1".into(), operations: 10 });
    assert_eq!(stats.steps, 101);
}

/// Tries every order of every choice of open operations.
fn brute_force(part: &Part, operations: &[Operation]) -> bool {
    fn any_order(state: model::State, left: &[Operation]) -> bool {
        if left.iter().all(|operation| operation.return_ms.is_none()) {
            return true;
        }
        (0..left.len()).any(|first| {
            let mut rest = left.to_vec();
            let next = rest.remove(first);
            let too_late = rest.iter().any(|o| o.return_ms.is_some_and(|r| r < next.call_ms));
            !too_late && model::step(&state, &next).is_some_and(|after| any_order(after, &rest))
        })
    }
    any_order(model::initial(part), operations)
}

fn tiny(part: usize) -> impl Strategy<Value = Vec<Operation>> {
    let line = move |(choice, answer, call_ms, lasts): (u8, u8, u64, u64)| {
        let (op, result) = match part {
            0 => draw_job(choice, answer),
            1 => draw_node(choice, answer),
            _ => draw_filler(choice, answer),
        };
        let open = lasts == 0 && !op.reads();
        let return_ms = (!open).then_some(call_ms + lasts.max(1));
        let result = (!open).then_some(result);
        Operation { client: 0, op, call_ms, return_ms, result, index: None }
    };
    let one = (0u8..6, 0u8..6, 0u64..12, 0u64..8).prop_map(line);
    proptest::collection::vec(one, 1..7)
}

fn draw_job(choice: u8, answer: u8) -> (Op, Answer) {
    let states = [
        JobState::Queued,
        JobState::Running,
        JobState::Stopping,
        JobState::Cancelled,
        JobState::Completed,
    ];
    match choice {
        0 => (submit(), Answer::Job(JOB)),
        1 if answer < 3 => (cancel(), Answer::Done),
        1 => (cancel(), Answer::Refused(Code::Conflict)),
        2 if answer == 0 => (look(), Answer::Nothing),
        _ => (look(), job(states[usize::from(answer % 5)], u32::from(choice % 2))),
    }
}

fn draw_node(choice: u8, answer: u8) -> (Op, Answer) {
    let duties = [Duty::InService, Duty::Cordoned, Duty::Draining];
    match choice {
        0 => (Op::Drain { node: NODE }, Answer::Done),
        1 => (Op::Undrain { node: NODE }, Answer::Done),
        2 => (Op::Cordon { node: NODE }, Answer::Done),
        _ => {
            let duty = duties[usize::from(answer % 3)];
            (Op::ReadNode { node: NODE }, Answer::SeenNode { duty })
        }
    }
}

fn draw_filler(choice: u8, answer: u8) -> (Op, Answer) {
    let states = [FillerState::Active, FillerState::Draining, FillerState::Removing];
    let filler = FillerId(1 + u64::from(answer / 3));
    match choice {
        0 => (Op::Deploy { name: "f".into() }, Answer::Filler(filler)),
        1 => (Op::DrainFiller { filler }, Answer::Done),
        2 => (Op::RemoveFiller { filler }, Answer::Done),
        3 => (Op::ReadFiller { name: "f".into() }, Answer::Nothing),
        _ => {
            let state = states[usize::from(answer % 3)];
            (Op::ReadFiller { name: "f".into() }, Answer::SeenFiller { filler, state })
        }
    }
}

fn part_of(number: usize) -> Part {
    match number {
        0 => Part::Job(JOB),
        1 => Part::Node(NODE),
        _ => Part::Filler("f".into()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_search_says_what_every_order_says(
        (part, operations) in (0usize..3).prop_flat_map(|part| (Just(part), tiny(part)))
    ) {
        let part = part_of(part);
        let expected = brute_force(&part, &operations);
        prop_assert_eq!(search::explain(&part, &operations, BUDGET).0, Some(expected));
        if !expected {
            let window = search::least(&part, operations.clone(), BUDGET);
            prop_assert!(!brute_force(&part, &window), "{:?}", window);
            prop_assert!(window.len() <= operations.len());
        }
    }
}

/// Clients drain and undrain a node and look at it: a history that was made by carrying each
/// operation out at a moment between its call and its return.
fn long_history(seed: u64, operations: u64, lost_percent: u64) -> Vec<Operation> {
    let mut rng = Rng::new(seed);
    let mut duty = Duty::InService;
    let history = (0..operations).map(|number| {
        let at_ms = 1_000 + number * 10;
        let (op, result) = match rng.between(0, 5) {
            0 => (Op::Drain { node: NODE }, Answer::Done),
            1 => (Op::Undrain { node: NODE }, Answer::Done),
            2 => (Op::Cordon { node: NODE }, Answer::Done),
            _ => (Op::ReadNode { node: NODE }, Answer::SeenNode { duty }),
        };
        match op {
            Op::Drain { .. } => duty = Duty::Draining,
            Op::Undrain { .. } => duty = Duty::InService,
            Op::Cordon { .. } => duty = Duty::Cordoned,
            _ => {}
        }
        let (call_ms, return_ms) = (at_ms - rng.between(0, 30), at_ms + rng.between(0, 30));
        let lost = rng.chance(lost_percent) && !op.reads();
        let (return_ms, result) = if lost { (None, None) } else { (Some(return_ms), Some(result)) };
        Operation { client: number, op, call_ms, return_ms, result, index: None }
    });
    history.collect()
}

#[test]
fn long_histories_are_explained() {
    for seed in 0..20 {
        let history = long_history(seed, 200, 10);
        let (explained, steps) = search::explain(&Part::Node(NODE), &history, BUDGET);
        assert_eq!(explained, Some(true), "seed {seed}, {steps} steps");
    }
}

/// Of good histories one read is changed to a duty that no write near it explains.
#[test]
fn a_changed_answer_is_found() {
    let mut changed = 0;
    for seed in 0..20 {
        let good = long_history(seed, 60, 0);
        let read = good.iter().rposition(|operation| operation.op.reads()).unwrap();
        for duty in [Duty::InService, Duty::Cordoned, Duty::Draining] {
            let mut bad = good.clone();
            bad[read].result = Some(Answer::SeenNode { duty });
            if may_see(&good, read, duty) {
                continue;
            }
            changed += 1;
            let (explained, _) = search::explain(&Part::Node(NODE), &bad, BUDGET);
            assert_eq!(explained, Some(false), "seed {seed}: {duty:?}");
            let window = search::least(&Part::Node(NODE), bad, BUDGET);
            assert!(window.contains(&Operation {
                result: Some(Answer::SeenNode { duty }),
                ..good[read].clone()
            }));
            assert!(window.len() < good.len());
        }
    }
    assert!(changed >= 10, "{changed}");
}

/// Whether some write of that duty is not surely overwritten before the read, by times alone.
fn may_see(history: &[Operation], read: usize, duty: Duty) -> bool {
    let of = |operation: &Operation| match operation.op {
        Op::Drain { .. } => Some(Duty::Draining),
        Op::Undrain { .. } => Some(Duty::InService),
        Op::Cordon { .. } => Some(Duty::Cordoned),
        _ => None,
    };
    let read = &history[read];
    let writes: Vec<&Operation> = history.iter().filter(|o| of(o).is_some()).collect();
    writes.iter().filter(|write| of(write) == Some(duty)).any(|write| {
        let over = |other: &&Operation| {
            of(other) != Some(duty)
                && write.return_ms < Some(other.call_ms)
                && other.return_ms < Some(read.call_ms)
        };
        Some(write.call_ms) <= read.return_ms && !writes.iter().copied().any(|other| over(&other))
    })
}
