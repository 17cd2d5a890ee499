//! Standard output of the commands that say something and end.

use std::io::{self, ErrorKind, Write};

/// Writes it. Whoever reads need not read it all.
///
/// # Errors
/// One line for the user: why it cannot be written, as where a disk is full.
pub fn say(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}
