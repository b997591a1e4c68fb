//! Reads job traces. Takes text, gives values: whoever calls opens the file.
//!
//! The format is the one of the Microsoft ITP traces of 2021: a header line, then
//! `job_id,submission_time,duration,num_gpu`, times in seconds. Columns are found
//! by name, others are passed over.

/// One job of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceJob {
    /// As the trace names it.
    pub id: String,
    /// On the trace's own clock.
    pub submitted_ms: u64,
    /// How long it runs once it runs.
    pub duration_ms: u64,
    /// GPUs of the whole gang.
    pub gpus: u32,
}

/// What is wrong with a trace, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// The header lacks a column.
    #[error("line 1: no column {0}; the header names job_id, submission_time, duration, num_gpu")]
    Column(&'static str),
    /// A value cannot be used.
    #[error("line {line}: {column}: {value:?} is not {wanted}")]
    Value {
        /// From 1.
        line: usize,
        /// Its name.
        column: &'static str,
        /// As it stands there.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
}

const COLUMNS: [&str; 4] = ["job_id", "submission_time", "duration", "num_gpu"];

/// The jobs of a trace in the order of their submission.
pub fn read_jobs(text: &str) -> Result<Vec<TraceJob>, TraceError> {
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let header: Vec<&str> =
        lines.next().map_or("", |(_, line)| line).split(',').map(str::trim).collect();
    let mut at = [0; COLUMNS.len()];
    for (place, column) in at.iter_mut().zip(COLUMNS) {
        *place =
            header.iter().position(|name| *name == column).ok_or(TraceError::Column(column))?;
    }
    let mut jobs = Vec::new();
    for (line, text) in lines {
        jobs.push(job(line, text, at)?);
    }
    jobs.sort_by_key(|job: &TraceJob| job.submitted_ms); // stable: ties keep the file's order
    Ok(jobs)
}

fn job(line: usize, text: &str, at: [usize; 4]) -> Result<TraceJob, TraceError> {
    let cells: Vec<&str> = text.split(',').map(str::trim).collect();
    let cell = |column: usize| cells.get(at[column]).copied().unwrap_or("");
    let bad = |column: usize, wanted| TraceError::Value {
        line,
        column: COLUMNS[column],
        value: cell(column).to_owned(),
        wanted,
    };
    let seconds = |column| millis(cell(column)).ok_or_else(|| bad(column, "seconds"));
    let gpus = cell(3).parse().ok().filter(|gpus| *gpus > 0);
    Ok(TraceJob {
        id: cell(0).to_owned(),
        submitted_ms: seconds(1)?,
        duration_ms: seconds(2)?,
        gpus: gpus.ok_or_else(|| bad(3, "a number of GPUs from 1 up"))?,
    })
}

/// `12` or `12.5` seconds, without a detour through floats.
fn millis(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) {
        return None;
    }
    let part: String = part.chars().chain("000".chars()).take(3).collect();
    whole.parse::<u64>().ok()?.checked_mul(1_000)?.checked_add(part.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name_and_jobs_sorted() {
        let text =
            "vc,num_gpu,job_id,duration,submission_time\nx,8,late,2.5,60\ny,1,early,1,0.25\n";
        let jobs = read_jobs(text).unwrap();
        let seen: Vec<_> =
            jobs.iter().map(|j| (j.id.as_str(), j.submitted_ms, j.duration_ms, j.gpus)).collect();
        assert_eq!(seen, [("early", 250, 1_000, 1), ("late", 60_000, 2_500, 8)]);
    }

    #[test]
    fn a_bad_line_is_named_with_its_column() {
        let header = "job_id,submission_time,duration,num_gpu";
        for (line, wanted) in [
            ("a,0,1,0", "line 2: num_gpu: \"0\" is not a number of GPUs from 1 up"),
            ("a,-1,1,1", "line 2: submission_time: \"-1\" is not seconds"),
            ("a,0,soon,1", "line 2: duration: \"soon\" is not seconds"),
            ("a,0", "line 2: duration: \"\" is not seconds"),
        ] {
            let error = read_jobs(&format!("{header}\n{line}\n")).unwrap_err();
            assert_eq!(error.to_string(), wanted);
        }
        assert_eq!(read_jobs("job_id,duration\n"), Err(TraceError::Column("submission_time")));
        assert_eq!(read_jobs(""), Err(TraceError::Column("job_id")));
    }
}
