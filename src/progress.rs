//! Progress on standard error; silent where that is not a terminal, so that logs stay readable.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over a known number of steps.
pub fn bar(total: u64, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:<28} {wide_bar} {pos}/{len} {eta}")
        .expect("the template is a constant that is tested by every run");
    ProgressBar::new(total).with_style(style).with_message(what.to_owned())
}

/// A spinner for work of unknown length.
pub fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
