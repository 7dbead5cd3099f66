//! Reading the event log: what happened since a time, and what happens from now on.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use dhow_monitor::events::Event;

use crate::{Engine, Filters, Result};

/// What a client wants to hear. Times in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// `None`: nothing of the past.
    pub since: Option<i64>,
    /// `None`: without end.
    pub until: Option<i64>,
    pub filters: Filters,
}

/// As many past events as dockerd keeps.
const REPLAYED: usize = 256;

impl Engine {
    /// Calls `sink` for each event until it says `false` or the time is over. Blocks; `alive` is asked now and then.
    pub fn events(&self, query: &EventQuery, mut sink: impl FnMut(&Event) -> bool, alive: impl Fn() -> bool) -> Result<()> {
        let path = self.paths().events();
        let opened = dhow_oci::time::now();
        let watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).ok();
        let directory = path.parent().unwrap_or(std::path::Path::new("/")).to_owned();
        if let Some(watch) = &watch {
            use rustix::fs::inotify::WatchFlags;
            let _ = rustix::fs::inotify::add_watch(
                watch,
                &directory,
                WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_FROM,
            );
        }
        let mut tail = Tail::open(&path);
        let mut past: Vec<Event> = Vec::new();
        if query.since.is_some() {
            past.extend(Tail::open(&path.with_extension("jsonl.1")).drain());
        }
        past.extend(tail.drain());
        let wanted = |event: &Event| query.since.is_some_and(|since| event.time_nano >= since) && matches(event, &query.filters);
        let past: Vec<Event> = past
            .into_iter()
            .filter(|event| wanted(event) || event.time_nano >= opened && matches(event, &query.filters))
            .collect();
        for event in &past[past.len().saturating_sub(REPLAYED)..] {
            if query.until.is_some_and(|until| event.time_nano > until) {
                return Ok(());
            }
            if !sink(event) {
                return Ok(());
            }
        }
        loop {
            if !alive() || query.until.is_some_and(|until| dhow_oci::time::now() >= until) {
                return Ok(());
            }
            for event in tail.follow(&path) {
                if query.until.is_some_and(|until| event.time_nano > until) {
                    return Ok(());
                }
                if matches(&event, &query.filters) && !sink(&event) {
                    return Ok(());
                }
            }
            let left = query.until.map_or(i64::MAX, |until| until - dhow_oci::time::now()).max(0) as u64;
            wait_for_change(watch.as_ref(), Duration::from_nanos(left).min(Duration::from_millis(500)));
        }
    }
}

/// Waits until a watched file changes, at most so long.
pub(crate) fn wait_for_change(watch: Option<&std::os::fd::OwnedFd>, longest: Duration) {
    let Some(watch) = watch else { return std::thread::sleep(longest.min(Duration::from_millis(50))) };
    let mut fds = [rustix::event::PollFd::new(watch, rustix::event::PollFlags::IN)];
    let time = rustix::time::Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: i64::from(longest.subsec_nanos()) };
    if matches!(rustix::event::poll(&mut fds, Some(&time)), Ok(ready) if ready > 0) {
        // What changed is seen in the file itself.
        let _ = rustix::io::read(watch, &mut [0u8; 4096]);
    }
}

/// The event log, read as it grows and across its renaming.
struct Tail {
    reader: Option<BufReader<File>>,
    partial: Vec<u8>,
}

impl Tail {
    fn open(path: &std::path::Path) -> Tail {
        Tail { reader: File::open(path).ok().map(BufReader::new), partial: Vec::new() }
    }

    /// The events up to the present end.
    fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let Some(reader) = &mut self.reader else { return events };
        while let Ok(length) = reader.read_until(b'\n', &mut self.partial) {
            if length == 0 || !self.partial.ends_with(b"\n") {
                break;
            }
            // A line that a full disk cut short is skipped.
            events.extend(serde_json::from_slice::<Event>(&self.partial).ok());
            self.partial.clear();
        }
        events
    }

    /// As [`Tail::drain`], and goes on to the new file when the old one was renamed.
    fn follow(&mut self, path: &std::path::Path) -> Vec<Event> {
        use std::os::unix::fs::MetadataExt;
        let mut events = self.drain();
        let open = self.reader.as_ref().and_then(|reader| reader.get_ref().metadata().ok()).map(|stat| stat.ino());
        let now = std::fs::metadata(path).ok().map(|stat| stat.ino());
        if now.is_some() && open != now {
            *self = Tail::open(path);
            events.extend(self.drain());
        }
        events
    }
}

/// Docker's event filters; unknown keys are ignored here, as it does.
fn matches(event: &Event, filters: &Filters) -> bool {
    let attributes = &event.actor.attributes;
    let object = |kind: &str, value: &str| {
        event.kind == kind
            && (event.actor.id == value
                || (!value.is_empty() && event.actor.id.starts_with(value))
                || attributes.get("name").is_some_and(|name| name == value.trim_start_matches('/')))
    };
    let action = |wanted: &str| {
        event.action == wanted
            || ((wanted.starts_with("exec_") || wanted == "health_status") && event.action.starts_with(&format!("{wanted}:")))
    };
    let image = |value: &str| {
        let name = |text: &str| text.split(':').next() == Some(value) || text == value;
        (event.kind == "image" && (name(&event.actor.id) || attributes.get("name").is_some_and(|text| name(text))))
            || attributes.get("image").is_some_and(|text| name(text))
    };
    filters.any("type", |kind| event.kind == kind)
        && filters.any("event", action)
        && filters.any("container", |value| object("container", value))
        && filters.any("volume", |value| object("volume", value))
        && filters.any("network", |value| object("network", value))
        && filters.any("image", image)
        && filters.any("scope", |scope| event.scope == scope)
        && filters.labels(attributes)
}
