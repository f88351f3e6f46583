//! Progress bars on standard error, and none where that is not a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that counts bytes; without a length if that is not known.
pub(crate) fn bytes(what: &'static str, length: Option<u64>) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(length, target).with_message(what);
    let template = match length {
        Some(_) => {
            "{msg:>20} {bar:40} {binary_bytes:>11} of {binary_total_bytes} {binary_bytes_per_sec:>13} {eta:>5}"
        }
        None => "{msg:>20} {spinner} {binary_bytes:>11} {binary_bytes_per_sec:>13}",
    };
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
