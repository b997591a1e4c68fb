//! What a person sees of the demo while it runs.
//!
//! On a terminal one picture, redrawn in place: the step, the racks, the last events. Otherwise
//! plain lines, with a picture at each notable moment. With `--json` only a line a step, on
//! standard error. Never asks the cluster for anything but its occupancy.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossterm::cursor::{Hide, MoveToColumn, MoveUp, Show};
use crossterm::queue;
use crossterm::terminal::{Clear, ClearType, size};
use rowen_api::v1::Occupancy;
use tokio::task::JoinHandle;

use crate::cluster::rpc::Rpc;
use crate::output::cells::{legend_lines, rack_lines};

const FRAME: Duration = Duration::from_millis(100);
/// How long a person needs to see what changed.
const LOOK: Duration = Duration::from_millis(1500);
const EVENTS: usize = 6;
/// A smaller terminal gets plain lines: a picture that wraps cannot be redrawn in place.
const LEAST_SIZE: (u16, u16) = (80, 20);

/// The picture, shared with the task that paints it.
pub(crate) struct Screen {
    style: Style,
    view: Arc<Mutex<View>>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Live,
    Plain,
    Quiet,
}

struct View {
    begun: Instant,
    step: String,
    events: VecDeque<String>,
    occupancy: Option<Occupancy>,
    /// How many lines of the picture stand above the cursor.
    painted: u16,
}

impl Screen {
    pub(crate) fn new(json: bool) -> Screen {
        let fits = size().is_ok_and(|(w, h)| w >= LEAST_SIZE.0 && h >= LEAST_SIZE.1);
        let style = match (json, stdout().is_terminal() && fits) {
            (true, _) => Style::Quiet,
            (false, true) => Style::Live,
            (false, false) => Style::Plain,
        };
        let begun = Instant::now();
        let (step, events) = (String::new(), VecDeque::new());
        let view = View { begun, step, events, occupancy: None, painted: 0 };
        let view = Arc::new(Mutex::new(view));
        let mut tasks = Vec::new();
        if style == Style::Live {
            let view = view.clone();
            tasks.push(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(FRAME).await;
                    lock(&view).paint();
                }
            }));
        }
        Screen { style, view, tasks }
    }

    /// From now on the picture shows this cluster.
    pub(crate) fn follow(&mut self, rpc: Rpc) {
        let view = self.view.clone();
        self.tasks.push(tokio::spawn(async move {
            loop {
                if let Ok(mut stream) = rpc.watch_occupancy().await {
                    while let Ok(Some(occupancy)) = stream.message().await {
                        lock(&view).occupancy = Some(occupancy);
                    }
                }
                // The control plane is away for a moment; the last picture stays.
                tokio::time::sleep(FRAME).await;
            }
        }));
    }

    /// The newest occupancy.
    pub(crate) fn occupancy(&self) -> Option<Occupancy> {
        lock(&self.view).occupancy.clone()
    }

    /// A new part of the story begins.
    pub(crate) fn step(&self, title: &str) {
        let mut view = lock(&self.view);
        view.step = title.to_string();
        let line = format!("{:5.1} s  == {title}", view.begun.elapsed().as_secs_f64());
        match self.style {
            Style::Live => {}
            Style::Plain => say(&format!("\n{line}")),
            Style::Quiet => {
                let _ = writeln!(stderr(), "{line}");
            }
        }
    }

    /// Something happened.
    pub(crate) fn event(&self, text: &str) {
        let mut view = lock(&self.view);
        let line = format!("{:5.1} s  {text}", view.begun.elapsed().as_secs_f64());
        match self.style {
            Style::Live => view.remember(line),
            Style::Plain => say(&line),
            Style::Quiet => {}
        }
    }

    /// A moment worth a picture: printed where there is not always one, left standing for a moment
    /// where somebody may be looking.
    pub(crate) async fn draw(&self) {
        if self.style == Style::Live {
            tokio::time::sleep(LOOK).await;
        }
        if self.style == Style::Plain {
            let view = lock(&self.view);
            view.picture(false).iter().for_each(|line| say(&format!("         {line}")));
        }
    }

    /// Something beside the story: standard output may be for figures alone.
    pub(crate) fn aside(&self, text: &str) {
        let _ = writeln!(stderr(), "{text}");
    }

    /// The last picture stays on the terminal.
    pub(crate) fn close(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
        if self.style == Style::Live {
            let mut view = lock(&self.view);
            view.paint();
            view.painted = 0;
            let _ = queue!(stdout(), Show);
            say("");
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if !self.tasks.is_empty() {
            self.close();
        }
    }
}

impl View {
    fn remember(&mut self, line: String) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(line);
    }

    fn picture(&self, colour: bool) -> Vec<String> {
        let Some(occupancy) = &self.occupancy else { return Vec::new() };
        let mut lines = rack_lines(occupancy, colour);
        lines.extend(legend_lines(occupancy, colour));
        lines
    }

    fn paint(&mut self) {
        let width = usize::from(size().map_or(LEAST_SIZE.0, |(width, _)| width)) - 1;
        let cut = |text: &str| text.chars().take(width).collect::<String>();
        let seconds = self.begun.elapsed().as_secs_f64();
        let mut lines = vec![cut(&format!("{seconds:5.1} s  {}", self.step)), String::new()];
        lines.extend(self.picture(std::env::var_os("NO_COLOR").is_none()));
        lines.push(String::new());
        lines.extend(self.events.iter().map(|event| cut(event)));
        // The terminal may be gone; the demo goes on.
        let _ = self.repaint(&lines);
    }

    fn repaint(&mut self, lines: &[String]) -> std::io::Result<()> {
        let mut out = stdout().lock();
        queue!(out, Hide, MoveToColumn(0))?;
        if self.painted > 0 {
            queue!(out, MoveUp(self.painted))?;
        }
        for line in lines {
            queue!(out, Clear(ClearType::CurrentLine))?;
            writeln!(out, "{line}")?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))?;
        self.painted = lines.len() as u16;
        out.flush()
    }
}

fn say(line: &str) {
    // Nobody may be reading any more.
    let _ = writeln!(stdout(), "{line}");
}

fn lock(view: &Mutex<View>) -> std::sync::MutexGuard<'_, View> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}
