//! How far a comparison has come: a bar on a terminal, plain lines elsewhere. Both go to standard error.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// Shows each run as it begins and ends.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    total: usize,
    done: usize,
}

impl Progress {
    /// For so many runs, after a line that says what they are.
    pub fn begin(total: usize, what: &str) -> Progress {
        say(what);
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {eta} left  {wide_msg}");
            ProgressBar::new(total as u64).with_style(style.expect("the template is sound"))
        });
        Progress { bar, total, done: 0 }
    }

    /// A run begins.
    pub fn start(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
            bar.tick();
        }
    }

    /// It has ended.
    pub fn end(&mut self, what: &str) {
        self.done += 1;
        match &self.bar {
            Some(bar) => bar.inc(1),
            None => say(&format!("[{}/{}] {what}", self.done, self.total)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn say(line: &str) {
    // Nobody need read it.
    let _ = writeln!(std::io::stderr(), "{line}");
}
